"""What the container allows this process, as Linux's control groups say it, versions 1 and 2 alike. Without torch."""

from collections.abc import Iterator
from pathlib import Path

import psutil

UNASKED_CACHE_BYTES = 4 << 30
"""Most that becomes cache on a machine that sets no limit, for a user who named no size."""

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def groups(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[Path]:
    """Folders of this process's group under `controller` (cpu, memory) and of those above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = root
        elif controller in controllers.split(","):
            names = (controllers, controller)
            base = next((root / name for name in names if (root / name).is_dir()), root / controller)
        else:
            continue
        folder = base / path.lstrip("/")
        # A container without a cgroup namespace sees its host's path and only its own folder: the root is its own.
        for group in (folder, *folder.parents):
            yield group
            if group == base:
                break


def cpu_quotas(root: Path = ROOT, own: Path = OWN) -> list[float]:
    """CPUs each group allows, of those that set a limit."""
    return [quota for group in groups("cpu", root, own) if (quota := _quota(group)) is not None]


def memory_limit(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes the container may take; None where nothing limits this process."""
    limits = [limit for group in groups("memory", root, own) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def memory_kills(root: Path = ROOT, own: Path = OWN) -> int:
    """Processes of this container that the kernel has killed because memory ran out; 0 where it does not say."""
    for group in groups("memory", root, own):
        for name in ("memory.events", "memory.oom_control"):
            try:
                lines = (group / name).read_text().splitlines()
            except OSError:
                continue
            return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


def host_line() -> tuple[int, int | None]:
    """(the budget's total on a CPU where the configuration sets no line, most of it that becomes cache).

    The container's limit; without one, half of what is free, and a cache that leaves room for others.
    """
    limit = memory_limit()
    return (limit, None) if limit else (psutil.virtual_memory().available // 2, UNASKED_CACHE_BYTES)


def free_bytes() -> int:
    """Bytes that others leave of this machine's memory, at most what the container may take in all."""
    available = psutil.virtual_memory().available
    return min(available, memory_limit() or available)


def _quota(group: Path) -> float | None:
    """`cpu.max` is "quota period" or "max period", in microseconds."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _limit(group: Path) -> int | None:
    """Bytes one group allows; None where it sets no limit. Version 1 says so with a number beyond any machine."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (group / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < psutil.virtual_memory().total:
            return int(text)
    return None
