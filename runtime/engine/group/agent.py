"""The agent of a machine that follows: it joins the leader's group, starts its ranks, and ends them with the epoch."""

import contextlib
import logging
import socket as sockets
import threading
import time

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

import plimsoll
from plimsoll.api.quantity import format_bytes
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.crew import Crew, RankProcess, Seat
from plimsoll.runtime.engine.group.curve import as_follower, endpoint
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.group.words import (
    Beat,
    Begin,
    Ended,
    FromLeader,
    Join,
    Joined,
    Leave,
    Lost,
    Pulse,
    Refused,
    Said,
    decode_from_leader,
    encode,
)
from plimsoll.runtime.machine.cgroup import free_bytes
from plimsoll.runtime.machine.peak import peak_bytes
from plimsoll.runtime.messages import LoadProgress, RankReady

log = logging.getLogger("plimsoll.agent")

ANSWER_SECONDS = 3.0
"""The leader answers an agent within so long, or the agent tries again."""
AGAIN_SECONDS = 0.5
"""Between two attempts to join."""
REFUSED_SECONDS = 3.0
"""The same where the leader has said why it does not take this machine."""
BEAT_SECONDS = 0.25
TURN_MS = 50
SILENT_SECONDS = 3.0
"""A leader that serves gives a sign of life four times a second; after so long without, it counts as lost."""
LOADING_SILENT_SECONDS = 120.0
"""The same while it loads, where Python's lock may be held. libzmq notices a process that is gone by itself."""

_GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class Agent:
    """Joins again whenever an epoch ends, until `leave` or `close`. Works in a thread of its own.

    Args:
        config: this machine's own paths and threads; the leader decides the rest.
        digest: of the checkpoint.

    Attributes:
        crew: this machine's ranks, None between two epochs.
        epoch: that it is part of, None between two.
        serving: whether the whole group has loaded and has generated a token.
        failure: why the last epoch ended, or why the leader is not found.
        released: set once `leave` was answered.
    """

    def __init__(self, config: EngineConfig, membership: Membership, secret: bytes, digest: str) -> None:
        self.crew: Crew | None = None
        self.epoch: str | None = None
        self.serving = False
        self.failure: str | None = None
        self.released = threading.Event()
        self._config, self._place, self._secret, self._digest = config, membership, secret, digest
        self._refused = False
        self._leaving = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def leave(self) -> None:
        """Says to the leader that this machine is about to stop; `released` is set once it may."""
        self._leaving.set()
        if self.epoch is None:
            self.released.set()

    def close(self) -> None:
        """Ends this machine's ranks. Safe to call twice."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing.is_set() and not self._leaving.is_set():
                ended = self._epoch_of()
                if ended != self.failure:
                    log.warning("%s", ended)
                self.failure = ended
                # What the leader refuses now it will not take in half a second.
                self._closing.wait(REFUSED_SECONDS if self._refused else AGAIN_SECONDS)
        finally:
            self.released.set()

    def _epoch_of(self) -> str:
        """One attempt to join, and the epoch that follows where it succeeds; returns how it ended."""
        try:
            found = sockets.getaddrinfo(self._place.host, self._place.port, type=sockets.SOCK_STREAM)
        except OSError as error:
            return f"the leader {self._place.host} is not found: {error.strerror or error}"
        session = _Session(endpoint(str(found[0][4][0]), self._place.port), self._secret)
        try:
            return self._live(session)
        finally:
            self.serving, self.epoch = False, None
            crew, self.crew = self.crew, None
            if crew is not None:
                crew.close()
            session.close()

    def _live(self, session: "_Session") -> str:
        place, said = self._place, _Reported()
        self._refused = False
        session.send(
            Join(ordinal=place.ordinal, name=place.name, nodes=place.nodes, version=plimsoll.__version__,
                 digest=self._digest)
        )  # fmt: skip
        silent, due, before, left = 0.0, 0.0, time.monotonic(), False
        while not self._closing.is_set():
            gone = session.poll()
            if gone is not None:
                return f"the leader at {session.address} {gone}"
            while (message := session.receive()) is not None:
                silent = 0.0
                if isinstance(message, Refused):
                    self._refused = self.epoch is None
                    return f"the leader refuses this machine: {message.words}"
                if isinstance(message, Ended):
                    return f"the leader has ended this epoch: {message.words}"
                if isinstance(message, Joined):
                    self.epoch, self.failure = message.epoch, None
                    log.info("joined epoch %s of the leader at %s", message.epoch, session.address)
                elif isinstance(message, Begin):
                    short = self._short(message)
                    if short is None:
                        self.crew = self._begin(message, session.address)
                    else:
                        session.send(Lost(epoch=message.epoch, words=short, refused=True))
                elif isinstance(message, Pulse):
                    self.serving = message.serving
            now = time.monotonic()
            silent, before = silent + min(now - before, 4 * TURN_MS / 1000), now
            if self.epoch is None:
                if silent > ANSWER_SECONDS:
                    return f"the leader at {session.address} does not answer"
                if self._leaving.is_set():
                    return "this machine leaves before it has joined"
                continue
            if silent > (LOADING_SILENT_SECONDS if self.crew is not None and not self.serving else SILENT_SECONDS):
                return f"the leader gave no sign of life for {silent:.0f} s"
            if self._leaving.is_set() and not left:
                session.send(Leave(epoch=self.epoch))
                left = True
            if now >= due:
                due = now + BEAT_SECONDS
                session.send(Beat(epoch=self.epoch, peaks=self._peaks()))
            if self.crew is not None:
                said.report(self.crew, self.epoch, session)
        return "this machine stops"

    def _begin(self, message: Begin, leader: str) -> Crew:
        place, size, ranks = self._place, len(message.takes), self._ranks(message)
        own = self._config
        config = msgspec.structs.replace(message.config, model=own.model, contents=own.contents, threads=own.threads)
        seat = Seat(
            epoch=message.epoch, leader=leader, steps=message.steps, address=place.address, key_file=place.key_file
        )
        log.info("starting ranks %d to %d of %d", ranks[0], ranks[-1], size)
        return Crew(lambda rank: RankProcess(config, rank, size, 0, None, seat), ranks)

    def _ranks(self, message: Begin) -> range:
        each = len(message.takes) // self._place.nodes
        return range(self._place.ordinal * each, (self._place.ordinal + 1) * each)

    def _short(self, message: Begin) -> str | None:
        """Why this machine has too little memory for its ranks: the leader has seen its own only."""
        wanted, left = sum(message.takes[rank] for rank in self._ranks(message)), free_bytes()
        if wanted <= left:
            return None
        return f"its ranks take {format_bytes(wanted)}, and others leave {format_bytes(left)} of this machine's memory"

    def _peaks(self) -> dict[int, int]:
        return {} if self.crew is None else {one.rank: peak_bytes(one.process.pid) or 0 for one in self.crew.processes}


class _Reported:
    """What of a crew the leader knows already."""

    def __init__(self) -> None:
        self._progress: dict[int, LoadProgress | None] = {}
        self._ready: set[int] = set()
        self._lost = False

    def report(self, crew: Crew, epoch: str, session: "_Session") -> None:
        """Says what is new."""
        for one in crew.processes:
            news: list[LoadProgress | RankReady] = []
            if one.progress is not None and one.progress is not self._progress.get(one.rank):
                self._progress[one.rank] = one.progress
                news.append(one.progress)
            if one.ready is not None and one.rank not in self._ready:
                self._ready.add(one.rank)
                news.append(one.ready)
            for message in news:
                session.send(Said(epoch=epoch, rank=one.rank, message=message))
        if crew.failure is not None and not self._lost:
            self._lost = True
            session.send(Lost(epoch=epoch, words=crew.failure[:8192], refused=crew.refused))


class _Session:
    """One connection to the leader: it is not made again."""

    def __init__(self, address: str, secret: bytes) -> None:
        self.address = address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        as_follower(self._socket, secret)
        self._monitor = self._socket.get_monitor_socket(_GONE | _REFUSED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(address)

    def send(self, message: msgspec.Struct) -> None:
        # One that is disconnected takes nothing, and the monitor says so.
        with contextlib.suppress(zmq.Again):
            self._socket.send(encode(message), zmq.NOBLOCK)

    def poll(self) -> str | None:
        """Waits a turn for a message; how the connection ended, None while it lives."""
        ready = dict(self._poller.poll(TURN_MS))
        if self._monitor not in ready:
            return None
        event = int(recv_monitor_message(self._monitor)["event"])
        if event & _REFUSED:
            return "refuses this machine's key, or speaks another protocol"
        return "is not there, or has gone"

    def receive(self) -> FromLeader | None:
        """The next message that has arrived."""
        try:
            message: FromLeader = decode_from_leader(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None
        return message

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=200)
        self._context.term()
