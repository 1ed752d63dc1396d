"""`plimsoll serve` over several machines: options that do not go together are refused before anything is read."""

from pathlib import Path

import pytest

from plimsoll.cli import serve
from plimsoll.cli.machines import leader_of, membership_of
from plimsoll.cli.main import main
from plimsoll.runtime.config import EngineConfig
from tests.support.checkpoints import make_checkpoint

GIVEN = ("--nnodes", "2", "--tp", "4", "--dist-init-addr", "127.0.0.1:8002", "--group-key-file", "{key}")
#: As vLLM's users write it.
VLLM = ("-n", "2", "--tensor-parallel-size", "4", "--group-key-file", "{key}")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("ab" * 32)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--node-rank", "1"), "--node-rank: is for several machines, and --nnodes is 1 (found 1). Give --nnodes too"),
        (("--dist-init-addr", "h:1"), "--dist-init-addr: is for several machines, and --nnodes is 1 (found 'h:1')"),
        (("--group-key-file", "{key}"), "--group-key-file: is for several machines"),
        ((*GIVEN, "--tp", "3"), "--tp: must be a multiple of --nnodes, which is 2 (found 3). Use 2 or 4"),
        ((*GIVEN, "--tp", "1"), "--tp: must be a multiple of --nnodes, which is 2 (found 1). Use 2"),
        ((*GIVEN, "--tp", "auto"), "--tp: must be a multiple of --nnodes, which is 2 (found 'auto'). Use 2"),
        ((*GIVEN, "--node-rank", "2"), "--node-rank: must be below --nnodes, which is 2 (found 2)"),
        (GIVEN[:4], "--dist-init-addr: is needed with --nnodes. Give HOST:PORT of machine 0, or --master-addr"),
        (("--master-addr", "h"), "--master-addr: is for several machines, and --nnodes is 1 (found 'h')"),
        ((*GIVEN, "--master-addr", "h"), "--master-addr: says the same as --dist-init-addr (found 'h'). Leave one"),
        ((*GIVEN, "--master-port", "1"), "--master-port: says the same as --dist-init-addr (found 1). Leave one"),
        ((*VLLM, "--master-port", "8002"), "--master-port: goes with --master-addr (found 8002). Give --master-addr"),
        ((*VLLM, "--master-addr", "h:8002"), "--master-addr: must be the name or the address of machine 0, without"),
        ((*VLLM, "--master-addr", ""), "--master-addr: must be the name or the address of machine 0, without"),
        ((*VLLM, "--master-addr", "h", "--master-port", "0"), "--master-port: must be 1 to 65535 (found 0)"),
        ((*VLLM, "--master-addr", "h", "--master-port", "65536"), "--master-port: must be 1 to 65535 (found 65536)"),
        ((*VLLM, "--master-addr", "h.invalid"), "--master-addr: is not found: "),
        ((*GIVEN, "--headless"), "--headless: is for machines that follow, and --node-rank is 0: machine 0 serves"),
        # As far as the checkpoint.
        ((*VLLM, "-r", "1", "--master-addr", "127.0.0.1", "--headless"), "/nowhere"),
        (GIVEN[:6], "--group-key-file: is needed with --nnodes: it keeps strangers out"),
        ((*GIVEN, "--dist-init-addr", "127.0.0.1"), "--dist-init-addr: must be HOST:PORT (found '127.0.0.1')"),
        ((*GIVEN, "--group-key-file", "/nowhere/key"), "--group-key-file: cannot be read: No such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    key: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "/nowhere", *(one.format(key=key) for one in options)])
    said = " ".join(capsys.readouterr().err.split())
    assert words in said


def test_a_machine_listens_on_the_address_that_leads_to_the_others(key: Path) -> None:
    leader = membership_of(4, 2, 0, leader_of("localhost:8002", None, None), key)
    follower = membership_of(4, 2, 1, leader_of("127.0.0.1:8002", None, None), key)
    assert leader is not None
    assert follower is not None
    assert leader.address in ("127.0.0.1", "::1")
    assert (follower.address, follower.host, follower.port, follower.ordinal) == ("127.0.0.1", "127.0.0.1", 8002, 1)
    assert membership_of(4, 1, 0, None, None) is None


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [
        (("10.0.0.1:8002", None, None), "10.0.0.1", 8002),
        ((None, "10.0.0.1", 8002), "10.0.0.1", 8002),
        ((None, "node-0.group", None), "node-0.group", 29501),
        ((None, "2001:db8::1", 8002), "2001:db8::1", 8002),
        ((None, "[2001:db8::1]", 8002), "2001:db8::1", 8002),
    ],
)
def test_the_leader_is_named_as_in_lmdeploy_or_as_in_vllm(
    given: tuple[str | None, str | None, int | None], host: str, port: int
) -> None:
    found = leader_of(*given)
    assert found is not None
    assert (found.host, found.port) == (host, port)


def test_a_machine_that_follows_opens_no_draft(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All machines get one command, and machine 0 runs the draft."""
    configs: list[EngineConfig] = []
    monkeypatch.setattr(serve, "follow", lambda engine, *_: configs.append(engine))
    command = ["serve", str(make_checkpoint(tmp_path / "tiny")), *(one.format(key=key) for one in GIVEN)]
    command += ["--draft-model", "/nowhere", "--speculative-tokens", "4", "--node-rank"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "1"])
    assert ended.value.code == 0
    (config,) = configs
    assert config.draft_model is None
    with pytest.raises(SystemExit):
        main([*command, "0"])
    assert "--draft-model: there is no such file" in capsys.readouterr().err
