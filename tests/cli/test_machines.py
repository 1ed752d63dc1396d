"""`plimsoll serve` over several machines: options that do not go together are refused before anything is read."""

from pathlib import Path

import pytest

from plimsoll.cli.machines import membership_of
from plimsoll.cli.main import main

GIVEN = ("--nnodes", "2", "--tp", "4", "--dist-init-addr", "127.0.0.1:8002", "--group-key-file", "{key}")


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
        (GIVEN[:4], "--dist-init-addr: is needed with --nnodes. Give HOST:PORT of machine 0"),
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
    leader = membership_of(4, 2, 0, "localhost:8002", key)
    follower = membership_of(4, 2, 1, "127.0.0.1:8002", key)
    assert leader is not None
    assert follower is not None
    assert leader.address in ("127.0.0.1", "::1")
    assert (follower.address, follower.host, follower.port, follower.ordinal) == ("127.0.0.1", "127.0.0.1", 8002, 1)
    assert membership_of(4, 1, 0, None, None) is None
