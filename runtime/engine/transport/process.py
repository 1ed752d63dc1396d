"""The engine's process: `python -m plimsoll.runtime.engine.transport.process`. Its task comes through standard input.

It sees token ids only, and outlives neither its parent nor a fault of its own: the client starts another.
"""

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import zmq

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.config import field_of
from plimsoll.runtime.engine.transport.wire import Handover, connect, decode_batch, encode_message
from plimsoll.runtime.framed import read_framed
from plimsoll.runtime.machine.json_lines import log_json_lines
from plimsoll.runtime.machine.parent import die_with_parent
from plimsoll.runtime.messages import (
    AbortRequests,
    EngineFailed,
    EngineRequest,
    FromEngine,
    GroupWaiting,
    Heartbeat,
    LoadProgress,
    PodLeaving,
    StepOutputs,
    ToEngine,
    Vocabulary,
)

if TYPE_CHECKING:
    from plimsoll.runtime.engine.engine import Engine

logger = logging.getLogger("plimsoll.engine")

IDLE_MS = 200
"""An idle engine's loop turns that often."""

BEAT_SECONDS = 0.25
"""Between two heartbeats."""

EXIT_CRASH = 1
EXIT_REFUSED = 3
"""The configuration cannot be served; starting again would not help."""


class Link:
    """The engine's side of the sockets, and a thread that gives signs of life through one of them.

    Attributes:
        progress: how far the engine is, asked for each heartbeat.
    """

    def __init__(self, handover: Handover) -> None:
        self.progress: Callable[[], int] = lambda: 0
        self._context = zmq.Context()
        self._inbox, self._outbox, self._beats = connect(self._context, handover)
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heart", daemon=True)
        self._heart.start()

    def _beat(self) -> None:
        while True:
            self._beats.send(encode_message(Heartbeat(progress=self.progress())))
            if self._closing.wait(BEAT_SECONDS):
                return

    def send(self, message: FromEngine) -> None:
        """Queue a message for the client."""
        self._outbox.send(encode_message(message))

    def receive(self, wait_ms: int) -> list[ToEngine]:
        """All that has arrived, after waiting at most `wait_ms` for the first of it."""
        messages: list[ToEngine] = []
        if wait_ms and not self._inbox.poll(wait_ms):
            return messages
        while True:
            try:
                messages += decode_batch(self._inbox.recv(zmq.NOBLOCK))
            except zmq.Again:
                return messages
            except msgspec.DecodeError as error:
                logger.error("a message could not be read: %s", error)

    def close(self) -> None:
        """Stop the heartbeat and close the sockets."""
        self._closing.set()
        self._heart.join()
        # Long enough for the last words to be read, not for ever: the client may be gone.
        self._context.destroy(linger=2000)


def run(engine: "Engine", link: Link) -> None:
    """Runs steps until a message to shut down. An exception of `step` means that the engine itself is broken."""
    leaving: list[str] = []
    while True:
        engine.check()
        for pod in engine.leaving:
            if pod not in leaving:
                leaving.append(pod)
                link.send(PodLeaving(pod=pod))
        for message in link.receive(0 if engine.has_work else IDLE_MS):
            if isinstance(message, EngineRequest):
                engine.add(message)
            elif isinstance(message, AbortRequests):
                engine.abort(message.request_ids)
            elif isinstance(message, Vocabulary):
                engine.learn(message)
            else:
                return
        if engine.has_work:
            outputs = engine.step()
        else:
            outputs = []
            engine.stats.tick += 1
        link.send(StepOutputs(outputs=outputs, stats=engine.stats, finished=engine.take_times()))


def main() -> int:
    """The process; returns its exit status."""
    # Ctrl-C in a terminal reaches the whole foreground group; the parent drains and then tells us to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log_json_lines()
    try:
        handover = read_framed(sys.stdin.buffer, Handover)
        if handover is None:
            raise EOFError("the hand-over is cut short")
    except (EOFError, msgspec.DecodeError) as error:
        logger.error("the engine process is started by the server, not by hand: %s", error)
        return EXIT_REFUSED
    logging.getLogger().setLevel(handover.log_level)
    die_with_parent(handover.parent)
    threading.Thread(target=_follow_parent, args=(handover.folder,), name="parent", daemon=True).start()
    link = Link(handover)
    try:
        engine = _load(handover, link)
    except PlimsollError as error:
        error.field = field_of(handover.config, error.field)
        link.send(EngineFailed(error=str(error)))
        link.close()
        return EXIT_REFUSED
    except Exception as error:
        logger.exception("the engine crashed while it was loading")
        link.send(EngineFailed(error=f"{type(error).__name__}: {error}"))
        link.close()
        return EXIT_CRASH
    link.progress = lambda: engine.progress
    try:
        link.send(engine.ready)
        run(engine, link)
    except Exception:
        logger.exception("the engine crashed")
        return EXIT_CRASH
    finally:
        link.close()
        engine.close()
    return 0


def end() -> None:
    """Runs the process and ends it at once: a collective that waits for a lost machine must not hold up its end."""
    status = main()
    logging.shutdown()
    os._exit(status)


def _load(handover: Handover, link: Link) -> "Engine":
    # Torch takes seconds to import; a user who starts this by hand gets an answer before that.
    # `threads` before anything that imports torch: it says how OpenMP waits.
    import plimsoll.runtime.machine.threads  # noqa: F401
    from plimsoll.runtime.machine.heap import keep_what_is_loaded, steady_heap

    steady_heap()
    from plimsoll.runtime.engine.engine import Engine

    def report(progress: LoadProgress) -> None:
        link.send(progress)

    def waiting(pods: list[str]) -> None:
        link.send(GroupWaiting(pods=pods))

    engine = Engine(handover.config, report, handover.membership, waiting)
    keep_what_is_loaded()
    return engine


def _follow_parent(folder: str | None) -> None:
    """Ends this process at any point of its work when the parent's end of standard input closes.

    Where the kernel does not do it (`die_with_parent`), and where the parent lives on and lets go."""
    while os.read(0, 4096):
        pass
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    end()
