"""The leader's side of a group over several machines: who has joined, who lives, what ranks left for each other.

One thread owns the socket; it is the group's heart. Everything else reads what the thread has noted.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import zmq

import plimsoll
from plimsoll.api.errors import SpecError
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.curve import as_leader, endpoint
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.engine.group.words import (
    MOST_BYTES,
    MOST_ENTRIES,
    Beat,
    Begin,
    Ended,
    FromLeader,
    Join,
    Joined,
    Leave,
    Lost,
    Pulse,
    Put,
    Refused,
    Said,
    ToLeader,
    Value,
    Want,
    decode_to_leader,
    encode,
)
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.messages import EngineFailed, LoadProgress, RankReady

log = logging.getLogger(__name__)

TURN_MS = 50
"""Between two looks at what the other threads want."""
PULSE_SECONDS = 0.25
SILENT_SECONDS = 3.0
"""An agent gives a sign of life four times a second; after so long without, its machine counts as lost."""
PART_SECONDS = 0.5
"""For the last words of an epoch to leave."""
STUCK_SECONDS = 3.0
"""Rank 0 notices an end between two collectives; where it has not by then, it waits for a machine that is gone."""


@dataclass
class Member:
    """A pod that has joined, by its agent."""

    identity: bytes
    ordinal: int
    name: str
    silent: float = 0.0
    ready: dict[int, RankReady] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)
    progress: dict[int, LoadProgress] = field(default_factory=dict)


class Hub:
    """Attributes:
    failure: why the group is not whole any more, None while it is or has not begun.
    refused: the failure is what a rank said itself: starting again would not help.
    leaving: names of pods that are about to stop and wait until they may.
    serving: set by the leader once a token was generated.
    """

    def __init__(
        self,
        membership: Membership,
        secret: bytes,
        epoch: str,
        digest: str,
        watch: Callable[[], str | None] = lambda: None,
        stuck: Callable[[], None] = lambda: None,
    ) -> None:
        """Listens from now on.

        Args:
            digest: of the checkpoint, which all machines must have.
            watch: why ranks of this machine are not whole, None while they are; asked at every turn.
            stuck: called where the group has failed and the hub is not closed for `STUCK_SECONDS`.

        Raises SpecError where it cannot listen.
        """
        self.epoch = epoch
        self.failure: str | None = None
        self.refused = False
        self.leaving: list[str] = []
        self.serving = False
        self.members: dict[int, Member] = {}
        self._place, self._digest, self._watch, self._stuck = membership, digest, watch, stuck
        self._begun = False
        self._closing = threading.Event()
        self._outgoing: deque[tuple[bytes, FromLeader]] = deque()
        self._values: dict[str, bytes] = {}
        self._wanted: dict[str, list[bytes]] = {}
        self._changed = threading.Condition()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        as_leader(self._socket, secret, MOST_BYTES)
        where = endpoint(membership.address, membership.port)
        try:
            self._socket.bind(where)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise SpecError(
                f"cannot be listened on: {error}", field="the group's address", value=where.removeprefix("tcp://")
            ) from None
        self._thread = threading.Thread(target=self._run, name="group", daemon=True)
        self._thread.start()

    def missing(self) -> list[str]:
        """Names of pods that have not joined."""
        there = set(self.members)
        return [self._place.name_of(one) for one in range(1, self._place.nodes) if one not in there]

    def begin(self, config: EngineConfig, takes: Sequence[int], steps: str) -> None:
        """Has all agents start their ranks, each of which takes its bytes of `takes`. All must have joined."""
        self._begun = True
        begin = Begin(epoch=self.epoch, config=config, takes=list(takes), steps=steps)
        for member in list(self.members.values()):
            self._outgoing.append((member.identity, begin))

    def put(self, key: str, value: bytes) -> None:
        """Leaves a value for ranks. Raises GroupError where there are too many."""
        with self._changed:
            if len(self._values) >= MOST_ENTRIES:
                raise GroupError("ranks leave more values than a group needs")
            self._values[key] = value
            for identity in self._wanted.pop(key, []):
                self._outgoing.append((identity, Value(epoch=self.epoch, key=key, value=value)))
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        """A value that a rank has left, however long it takes. Raises GroupError where the group ends meanwhile."""
        with self._changed:
            while key not in self._values:
                if self.failure is not None:
                    raise GroupError(self.failure)
                self._changed.wait(0.1)
            return self._values[key]

    def ready(self) -> list[RankReady]:
        """What ranks of other machines observed, those that have loaded."""
        return [one for member in list(self.members.values()) for one in list(member.ready.values())]

    def loads(self) -> dict[int, LoadProgress | None]:
        """How far ranks of other machines have loaded their weights, by rank."""
        found: dict[int, LoadProgress | None] = {}
        for member in list(self.members.values()):
            found |= {rank: one for rank, one in list(member.progress.items()) if one.phase == "weights"}
            found |= {rank: one.loaded for rank, one in list(member.ready.items())}
        return found

    def peaks(self) -> dict[int, int]:
        """Most resident bytes by rank, of ranks of other machines."""
        return {rank: peak for member in list(self.members.values()) for rank, peak in member.peaks.items()}

    def close(self) -> None:
        """Ends the epoch for all. Safe to call twice."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        before, due = time.monotonic(), 0.0
        while not self._closing.is_set() and self.failure is None:
            if self._socket.poll(TURN_MS):
                self._receive()
            # Time in which this process was itself kept from running is not counted.
            now = time.monotonic()
            passed, before = min(now - before, 4 * TURN_MS / 1000), now
            self._judge(passed)
            if now >= due:
                due = now + PULSE_SECONDS
                for member in self.members.values():
                    self._send(member.identity, Pulse(epoch=self.epoch, serving=self.serving))
            while self._outgoing:
                self._send(*self._outgoing.popleft())
        if self.failure is not None:
            log.error("the group of %d pods ends: %s", self._place.nodes, self.failure)
        words = self.failure or "the leader has ended it"
        for member in self.members.values():
            self._send(member.identity, Ended(epoch=self.epoch, words=words))
        self._socket.close(linger=int(PART_SECONDS * 1000))
        self._context.term()
        if self.failure is not None and not self._closing.wait(STUCK_SECONDS):
            self._stuck()

    def _judge(self, passed: float) -> None:
        for member in list(self.members.values()):
            member.silent += passed
            if member.silent <= SILENT_SECONDS:
                continue
            if self._begun:
                self._fail(f"pod {member.name} gave no sign of life for {member.silent:.0f} s")
            else:
                del self.members[member.ordinal]
        if (why := self._watch()) is not None:
            self._fail(why)

    def _fail(self, words: str) -> None:
        self.failure = self.failure or words

    def _send(self, identity: bytes, message: FromLeader) -> None:
        self._socket.send_multipart([identity, encode(message)])

    def _receive(self) -> None:
        """All that has arrived, up to a bound, so that beats go out in any flood of messages."""
        for _ in range(256):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) != 2:
                continue
            try:
                message = decode_to_leader(parts[1])
            except msgspec.DecodeError as error:
                log.warning("a message to the group's leader cannot be read: %s", error)
                continue
            self._hear(parts[0], message)

    def _hear(self, identity: bytes, message: ToLeader) -> None:
        if isinstance(message, Join):
            self._join(identity, message)
            return
        if message.epoch != self.epoch:
            words = f"epoch {message.epoch} is over, and this is {self.epoch}"
            self._send(identity, Refused(epoch=self.epoch, words=words))
            return
        if isinstance(message, Put):
            try:
                self.put(message.key, message.value)
            except GroupError as error:
                self._fail(str(error))
        elif isinstance(message, Want):
            self._give(identity, message.key)
        else:
            member = next((one for one in self.members.values() if one.identity == identity), None)
            if member is None:
                self._send(identity, Refused(epoch=self.epoch, words="this agent has not joined"))
            else:
                member.silent = 0.0
                self._note(member, message)

    def _note(self, member: Member, message: Beat | Said | Lost | Leave) -> None:
        if isinstance(message, Beat):
            member.peaks = message.peaks
        elif isinstance(message, Lost):
            self.refused = self.refused or message.refused
            self._fail(f"pod {member.name}: {message.words}")
        elif isinstance(message, Leave):
            self._leave(member)
        elif isinstance(message.message, RankReady):
            member.ready[message.rank] = msgspec.structs.replace(message.message, pid=0)
        elif isinstance(message.message, LoadProgress):
            member.progress[message.rank] = message.message
        elif isinstance(message.message, EngineFailed):
            self.refused = True
            self._fail(f"pod {member.name}: rank {message.rank}: {message.message.error}")

    def _leave(self, member: Member) -> None:
        if self.serving:
            if member.name not in self.leaving:
                self.leaving.append(member.name)
        elif self._begun:
            self._fail(f"pod {member.name} leaves while the group loads")
        else:
            del self.members[member.ordinal]
            self._send(member.identity, Ended(epoch=self.epoch, words="the group has not begun"))

    def _join(self, identity: bytes, message: Join) -> None:
        old = self.members.get(message.ordinal)
        ours = (self._place.nodes, plimsoll.__version__, self._digest)
        wrong = None
        for theirs, mine, what in zip(
            (message.nodes, message.version, message.digest), ours, ("nodes", "version", "checkpoint"), strict=True
        ):
            if theirs != mine:
                wrong = wrong or f"its {what} is {theirs}, the leader's {mine}"
        if wrong is None and message.ordinal >= self._place.nodes:
            wrong = f"its ordinal is {message.ordinal}, of {self._place.nodes} nodes"
        if wrong is not None:
            log.warning("pod %s cannot join: %s", message.name, wrong)
            self._send(identity, Refused(epoch=self.epoch, words=wrong))
            return
        if self._begun:
            # Its old agent is gone, or there are two: either way the ranks of this epoch are not whole.
            self._fail(f"pod {message.name} was started again")
            self._send(identity, Ended(epoch=self.epoch, words="this epoch had begun without it"))
            return
        if old is not None and old.identity != identity:
            self._send(old.identity, Ended(epoch=self.epoch, words="another agent has joined in its place"))
        if old is None or old.identity != identity:
            log.info("pod %s has joined epoch %s", message.name, self.epoch)
            self.members[message.ordinal] = Member(identity, message.ordinal, message.name)
        self._send(identity, Joined(epoch=self.epoch))

    def _give(self, identity: bytes, key: str) -> None:
        with self._changed:
            value = self._values.get(key)
            if value is not None:
                self._outgoing.append((identity, Value(epoch=self.epoch, key=key, value=value)))
            elif sum(map(len, self._wanted.values())) < MOST_ENTRIES:
                self._wanted.setdefault(key, []).append(identity)
