"""Limits of the container: the tightest of this process's group and those above it, in either version of cgroups."""

from pathlib import Path

from plimsoll.runtime.machine.cgroup import cpu_quotas, memory_kills, memory_limit

MIB = 1 << 20


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_version_2_takes_the_tightest_group_above(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pod/container\n")
    write(tmp_path / "pod" / "container", memory__max="max", cpu__max="max 100000")
    write(tmp_path / "pod", memory__max=str(300 * MIB), cpu__max="150000 100000")
    write(tmp_path, memory__max=str(200 * MIB))
    assert memory_limit(tmp_path, own) == 200 * MIB
    assert cpu_quotas(tmp_path, own) == [1.5]


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/box\n3:cpu,cpuacct:/box\n1:name=systemd:/box\n")
    write(tmp_path / "memory" / "box", memory__limit_in_bytes=str(100 * MIB))
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    write(tmp_path / "cpu,cpuacct" / "box", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert memory_limit(tmp_path, own) == 100 * MIB
    assert cpu_quotas(tmp_path, own) == [2.0]


def test_without_groups_nothing_limits(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "none") is None
    assert cpu_quotas(tmp_path, tmp_path / "none") == []


def test_processes_killed_for_want_of_memory_are_counted_in_the_own_group(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pod/container\n")
    assert memory_kills(tmp_path, own) == 0
    write(tmp_path / "pod", memory__events="oom 9\noom_kill 9")
    write(tmp_path / "pod" / "container", memory__events="low 0\nmax 21\noom 2\noom_kill 1\noom_group_kill 5")
    assert memory_kills(tmp_path, own) == 1
    own.write_text("4:memory:/box\n")
    write(tmp_path / "memory" / "box", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3")
    assert memory_kills(tmp_path, own) == 3
