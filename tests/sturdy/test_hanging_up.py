"""Ten rounds of 200 streams of which a third hang up: the others are whole, and nothing is left behind."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.endpoint import eventually
from tests.support.server_process import ServerProcess, server_process
from tests.support.streams import Heard, listen

ROUNDS, STREAMS, KINDS = 10, 200, 20
#: What a round may add to a process that has served a few: one page a stream would be more.
GROWTH = 400_000


def request(kind: int) -> dict[str, Any]:
    """One of `KINDS` requests: half of them greedy, half of them seeded, of several lengths."""
    sampled = {"temperature": 0.9, "top_p": 0.95, "seed": kind} if kind % 2 else {"temperature": 0}
    prompt = "The quick brown fox jumps over the lazy dog. " * (kind % 4) + f"{kind} "
    return {"model": "tiny", "prompt": prompt, "max_tokens": 8 + kind, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}} | sampled  # fmt: skip


async def one_round(server: ServerProcess) -> list[Heard]:
    """All streams at once; every third one would be long, and hangs up after one to three events."""
    return await asyncio.gather(
        *(
            listen(server.port, request(number % KINDS))
            if number % 3
            else listen(server.port, request(number % KINDS) | {"max_tokens": 150}, hang_up_after=1 + number % 5 // 2)
            for number in range(STREAMS)
        )
    )


def resident(server: ServerProcess) -> tuple[int, int]:
    """Bytes that server and engine hold."""
    return server.server.memory_info().rss, server.engine.memory_info().rss


def test_the_rest_complete_and_nothing_is_left_behind(
    tiny_checkpoint: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with server_process(tiny_checkpoint, tmp_path / "log", "--log-level", "warning") as server:
        alone = [asyncio.run(listen(server.port, request(kind))) for kind in range(KINDS)]
        assert [one.completion_tokens for one in alone] == [8 + kind for kind in range(KINDS)]
        assert len({one.text for one in alone}) == KINDS
        # The connection that this asks on stays open.
        assert server.idle()
        descriptors = server.server.num_fds()
        sizes = []
        for _ in range(ROUNDS):
            heard = asyncio.run(one_round(server))
            for number, one in enumerate(heard):
                expected = alone[number % KINDS]
                if number % 3:
                    assert one.done
                    assert (one.status, one.error, one.finish_reason) == (200, None, "length")
                    assert (one.text, one.completion_tokens) == (expected.text, expected.completion_tokens)
            # Events that pile up become one, so now and then a whole answer fits into three.
            assert sum(not one.done for one in heard) > STREAMS // 4
            eventually(server.idle)
            sizes.append(resident(server))
        eventually(lambda: server.server.num_fds() <= descriptors)
        seen = server.metrics()
        for process, rss in zip(("server", "engine"), zip(*sizes, strict=True), strict=True):
            record_property(f"{process} MiB after each round", [round(size / 2**20, 1) for size in rss])
            # Of the last three the middle one: what grows is in all of them, and a page that comes late in one.
            assert sorted(rss[-3:])[1] - rss[3] < GROWTH * (ROUNDS - 5), f"the {process} grows: {rss}"
        assert seen["engine_restarts_total"] == 0
        assert "Traceback" not in server.words()
