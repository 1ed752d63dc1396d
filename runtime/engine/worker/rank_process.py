"""A rank that follows: `python -m plimsoll.runtime.engine.worker.rank_process`. Its task comes through standard input.

It computes what rank 0 announces, and outlives neither the process that started it nor a fault of its own.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.machine.json_lines import log_json_lines
from plimsoll.runtime.machine.parent import die_with_parent
from plimsoll.runtime.messages import EngineFailed, LoadProgress, RankBeat, RankReady

logger = logging.getLogger("plimsoll.rank")

BEAT_SECONDS = 0.25
"""Between two signs of life."""


def main() -> int:
    """The process; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log_json_lines()
    # Torch takes seconds to import; `threads` before anything that does: it says how OpenMP waits.
    import plimsoll.runtime.machine.threads  # noqa: F401
    from plimsoll.runtime.engine.group.crew import RankHandover
    from plimsoll.runtime.framed import frame, read_framed
    from plimsoll.runtime.machine.heap import keep_what_is_loaded, steady_heap

    given = read_framed(sys.stdin.buffer, RankHandover)
    if given is None:
        logger.error("a rank is started by the engine, not by hand")
        return 2
    logging.getLogger().setLevel(given.log_level)
    die_with_parent(given.parent)
    threading.Thread(target=_follow_parent, name="parent", daemon=True).start()
    steady_heap()
    from plimsoll.runtime.engine.worker.loading import load, prepare
    from plimsoll.runtime.engine.worker.memory import find_device
    from plimsoll.runtime.kernels.device_group import DeviceGroup
    from plimsoll.runtime.kernels.group_error import GroupError
    from plimsoll.runtime.kernels.native_group import SharedGroup
    from plimsoll.runtime.models.group import RankGroup

    pipe = threading.Lock()

    def say(message: LoadProgress | RankReady | RankBeat | EngineFailed) -> None:
        with pipe:
            os.write(given.words, frame(message))

    try:
        group: RankGroup
        if given.seat is None:
            assert given.segment is not None
            shared = group = SharedGroup(given.segment, given.rank, given.size, given.spins)
            _beat(shared.beat)
            device = find_device(given.config.device)
            if device.type != "cpu":
                group = DeviceGroup(shared, device)
        else:
            from plimsoll.runtime.engine.group.seated import take_seat

            _beat(lambda: say(RankBeat()))
            group = take_seat(given.seat, given.rank, given.size)
        loaded = load(prepare(given.config, follows=True), say, group)
        keep_what_is_loaded()
        say(loaded.rank_ready())
    except GroupError as error:
        # Another rank has said why.
        logger.info("rank %d ends: %s", given.rank, error)
        return 1
    except PlimsollError as error:
        say(EngineFailed(error=str(error)))
        return 1
    except Exception as error:
        logger.exception("rank %d crashed while it was loading", given.rank)
        say(EngineFailed(error=f"{type(error).__name__}: {error}"))
        return 1
    try:
        while loaded.runner.follow():
            pass
    except GroupError as error:
        logger.info("rank %d ends: %s", given.rank, error)
        return 1
    except Exception as error:
        logger.exception("rank %d crashed", given.rank)
        say(EngineFailed(error=f"{type(error).__name__}: {error}"))
        return 1
    return 0


def _beat(beat: Callable[[], None]) -> None:
    """Gives signs of life from now on, in a thread."""

    def work() -> None:
        while True:
            beat()
            threading.Event().wait(BEAT_SECONDS)

    threading.Thread(target=work, name="heart", daemon=True).start()


def _follow_parent() -> None:
    """Ends this process, even in the middle of a step, when the other end of standard input closes."""
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # At the interpreter's end gloo would wait for a sum that another rank has left: 15 s on a busy node, 150 s at most.
    os._exit(status)
