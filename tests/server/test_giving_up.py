"""An engine that cannot live: the service ends and says why, so that whoever started it can do something about it."""

import os
import signal
from pathlib import Path

import pytest

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.engine.transport import client
from tests.support.endpoint import eventually, serving


def kill_the_engine(checkpoint: Path) -> None:
    with serving(checkpoint) as endpoint:
        pid = endpoint.service.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not endpoint.service.running)


def test_a_service_whose_engine_dies_too_often_ends_with_the_reason(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUICK_CRASHES", 1)
    with pytest.raises(PlimsollError, match="the engine died 1 times in a row, at last: killed by signal 9"):
        kill_the_engine(tiny_checkpoint)
