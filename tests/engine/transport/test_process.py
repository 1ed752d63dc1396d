"""The engine process by itself: the turns of its loop, its first and its last words."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.transport.process import EXIT_REFUSED, run
from plimsoll.runtime.machine.json_lines import JsonLines
from plimsoll.runtime.messages import AbortRequests, EngineRequest, FromEngine, Shutdown, StepOutputs, ToEngine
from tests.support.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", tokenizer=False)
    config = EngineConfig(
        model=str(folder), precision="float32", device="cpu", kv_cache_bytes=1 << 20, block_size=16, threads=1
    )
    return Engine(config, lambda progress: None)


class Script:
    """The client's side of the link, turn by turn: what arrives in each, and what was sent at its end."""

    def __init__(self, *turns: list[ToEngine]) -> None:
        self._turns: Iterator[list[ToEngine]] = iter(turns)
        self.sent: list[FromEngine] = []

    def receive(self, wait_ms: int) -> list[ToEngine]:
        return next(self._turns)

    def send(self, message: FromEngine) -> None:
        # Gauges live in one object that later turns change.
        self.sent.append(StepOutputs(outputs=message.outputs, stats=_copy(message.stats), finished=message.finished))


def _copy(stats):
    import msgspec

    return msgspec.structs.replace(stats)


def long_request(name: str) -> EngineRequest:
    params = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
    return EngineRequest(request_id=name, prompt_token_ids=[1] * 40, params=params, arrival=time.monotonic())


def test_an_abort_frees_its_blocks_in_the_same_turn(engine: Engine) -> None:
    script = Script(
        [long_request("a"), long_request("b")], [], [AbortRequests(["a"])], [AbortRequests(["b"])], [Shutdown()]
    )
    run(engine, script)
    first, second, third, fourth = (message for message in script.sent if isinstance(message, StepOutputs))
    assert (first.stats.running, second.stats.running, third.stats.running, fourth.stats.running) == (2, 2, 1, 0)
    assert {output.request_id: output.finish_reason for output in third.outputs} == {"a": "abort", "b": None}
    assert fourth.stats.blocks_free + fourth.stats.blocks_cached == fourth.stats.blocks_total
    engine.check_integrity()


def test_an_idle_turn_still_ticks(engine: Engine) -> None:
    script = Script([], [], [Shutdown()])
    run(engine, script)
    first, second = (message for message in script.sent if isinstance(message, StepOutputs))
    assert second.stats.tick == first.stats.tick + 1
    assert first.outputs == second.outputs == []


def test_shutdown_leaves_the_rest_unread(engine: Engine) -> None:
    script = Script([Shutdown(), long_request("late")])
    run(engine, script)
    assert script.sent == []
    assert not engine.has_work


@pytest.mark.parametrize("told", [b"", b"\0\0\0\x08half", b"\0\0\0\x04junk"])
def test_started_by_hand_it_says_so_on_one_line(told: bytes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plimsoll.runtime.engine.transport.process"]
    ended = subprocess.run(command, input=told, capture_output=True, cwd=tmp_path, check=False)
    assert ended.returncode == EXIT_REFUSED
    [line] = ended.stderr.splitlines()
    assert json.loads(line)["event"].startswith("the engine process is started by the server, not by hand")
    assert ended.stdout == b""


def test_a_traceback_is_one_line_of_the_log() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record = logging.LogRecord(
            "plimsoll.engine", logging.ERROR, __file__, 1, "the engine crashed", (), sys.exc_info()
        )
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["event"] == "the engine crashed"
    assert "two\nlines" in json.loads(line)["exception"]
