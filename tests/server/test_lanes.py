"""Jobs in forked processes: bounded in time and memory, and never in each other's way."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from plimsoll.runtime.server.forked import Forker
from plimsoll.runtime.server.lanes import SHORT_BYTES, SHORT_SECONDS, FaultError, Lanes, UnfinishedError, _Turn

MIB = 1 << 20
LONG = b" " * (SHORT_BYTES + 1)
"""After what a job is to do, this makes it a long one."""


def work(payload: bytearray, arguments: Any, note: Callable[[int], None]) -> Any:
    """What the tests have done in the forked process."""
    what = bytes(payload).strip()
    note(7)
    if what == b"hang":
        while True:
            pass
    if what == b"wait":
        time.sleep(arguments)
    if what == b"die":
        os._exit(3)
    if what == b"raise":
        raise ValueError("a fault")
    if what == b"fill":
        return len(bytearray(arguments))
    return os.getpid(), arguments


@contextlib.asynccontextmanager
async def lanes(seconds: float = 30.0, patience: float = 60.0) -> AsyncIterator[Lanes]:
    made = Lanes(Forker(work), seconds, patience)
    try:
        yield made
    finally:
        made.close()


async def unfinished(made: Lanes, payload: bytes, arguments: Any = None) -> UnfinishedError:
    with pytest.raises(UnfinishedError) as caught:
        await made.run(payload, arguments, 64 * MIB)
    return caught.value


def test_a_long_job_that_hangs_holds_up_no_short_one_and_is_ended() -> None:
    async def scene() -> None:
        async with lanes(1.0) as made:
            hung = asyncio.create_task(unfinished(made, b"hang" + LONG))
            done = [await made.run(b"", number, MIB) for number in range(20)]
            assert not hung.done()
            assert [number for _, number in done] == list(range(20))
            assert len({pid for pid, _ in done}) == 1
            error = await hung
            assert (error.reason, error.step) == ("time", 7)
            assert (await made.run(LONG, "next", 64 * MIB))[1] == "next"

    asyncio.run(scene())


def test_a_job_that_gets_little_of_a_processor_is_not_ended_for_it() -> None:
    async def scene() -> None:
        async with lanes() as made:
            pid, _ = await made.run(b"", None, MIB)
            assert await made.run(b"wait", 2 * SHORT_SECONDS, MIB) == (pid, 2 * SHORT_SECONDS)
        async with lanes(patience=0.5) as made:
            assert (await unfinished(made, b"wait" + LONG, 30)).reason == "busy"

    asyncio.run(scene())


def test_a_smaller_long_job_waits_for_no_crowd_of_large_ones() -> None:
    async def scene() -> None:
        ended: list[str] = []

        async def run(name: str, payload: bytes) -> None:
            await made.run(payload, name, 64 * MIB)
            ended.append(name)

        async with lanes() as made, asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(run(f"large {number}", bytes(2 * MIB)))
            await asyncio.sleep(0)
            group.create_task(run("small", LONG))
        assert ended == ["large 0", "small", "large 1", "large 2", "large 3"]

    asyncio.run(scene())


def test_a_large_job_comes_before_small_ones_that_came_much_later() -> None:
    async def scene() -> None:
        turn, order, free = _Turn(), list[str](), asyncio.Event()

        async def run(name: str, seconds: float) -> None:
            async with turn.take(seconds):
                order.append(name)
                await free.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(run("first", 1))
            await asyncio.sleep(0)
            group.create_task(run("large", 0.1))
            await asyncio.sleep(0)
            gone = group.create_task(run("gone", 0.05))
            await asyncio.sleep(0)
            gone.cancel()
            for number in range(3):
                group.create_task(run(f"small {number}", 0.2))
            await asyncio.sleep(0)
            free.set()
        assert order == ["first", "large", "small 0", "small 1", "small 2"]

    asyncio.run(scene())


def test_a_short_job_that_hangs_makes_way_for_the_next() -> None:
    async def scene() -> None:
        async with lanes() as made:
            hung = [asyncio.create_task(made.run(b"hang", None, MIB)) for _ in range(2)]
            assert (await made.run(b"", "next", MIB))[1] == "next"
            assert not any(task.done() for task in hung)
            for task in hung:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            assert (await made.run(LONG, "long", 64 * MIB))[1] == "long"

    asyncio.run(scene())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory")
def test_memory_is_bounded_and_a_process_that_has_grown_is_replaced() -> None:
    async def scene() -> None:
        async with lanes() as made:
            assert (await unfinished(made, b"fill", 1 << 40)).reason == "memory"
            # More than this process may have let go of and kept: its children could use that.
            assert (await unfinished(made, b"fill", 1024 * MIB)).reason == "memory"
            before = (await made.run(LONG, None, 64 * MIB))[0]
            assert await made.run(b"fill" + LONG, 56 * MIB, 64 * MIB) == 56 * MIB
            assert (await made.run(LONG, None, 64 * MIB))[0] != before

    asyncio.run(scene())


def test_a_process_that_dies_is_replaced() -> None:
    async def scene() -> None:
        async with lanes() as made:
            for payload in (b"die", b"die" + LONG):
                assert (await unfinished(made, payload)).reason == "end"
            pid, _ = await made.run(b"", None, MIB)
            # Whoever ended an idle process, it was not the next job.
            os.kill(pid, signal.SIGKILL)
            again, arguments = await made.run(b"", "again", MIB)
            assert again != pid
            assert arguments == "again"
            with pytest.raises(FaultError, match="a fault"):
                await made.run(b"raise", None, MIB)

    asyncio.run(scene())


def test_that_no_process_can_be_forked_any_more_is_noticed() -> None:
    async def scene() -> None:
        forker = Forker(work)
        made = Lanes(forker, 30.0, 60.0)
        await made.run(b"", None, MIB)
        lost = asyncio.create_task(made.lost())
        await asyncio.sleep(0)
        assert not lost.done()
        os.kill(forker.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            await lost
        with pytest.raises(BrokenPipeError):
            await made.run(LONG, None, MIB)
        made.close()

    asyncio.run(scene())


PARENT = """
import asyncio, os, time
from plimsoll.runtime.server.forked import Forker
from plimsoll.runtime.server.lanes import Lanes

def work(payload, arguments, note):
    if arguments:
        os.kill(arguments, 9)
        while True: pass
    return os.getpid()

async def main():
    made = Lanes(Forker(work), 60, 60)
    print(await made.run(b"", None, 1 << 20), made._forker.pid, flush=True)
    await made.run(b"", os.getpid(), 1 << 20)

asyncio.run(main())
"""


def test_no_process_outlives_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        found = [psutil.Process(pid) for pid in pids]
    # One of them still works.
    assert len(found) == 2
    for process in found:
        process.wait(30)
