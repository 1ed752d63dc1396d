"""A rank's own side of a group over several machines: it meets the others through the leader, then hears of steps."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import torch.distributed as dist
import zmq

from plimsoll.api.group import GROUP_KEY
from plimsoll.runtime.engine.group.crew import Seat
from plimsoll.runtime.engine.group.curve import as_follower, as_leader, endpoint, read_secret
from plimsoll.runtime.engine.group.words import (
    Hello,
    Put,
    Refused,
    Value,
    Want,
    decode_from_leader,
    decode_hello,
    encode,
)
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native_group import COLLECTIVE_SECONDS
from plimsoll.runtime.kernels.torch_group import TorchGroup, gloo

MOST_HELLO = 1 << 10
"""Bytes of what a rank may say where steps are announced."""


class MeetingStore(dist.Store):
    """What a process group needs of a store while its ranks meet: values that one leaves and another waits for.

    torch's own TCPStore lets in who connects; these values come through sockets that need the group's secret.
    """

    def __init__(self, put: Callable[[str, bytes], None], get: Callable[[str], bytes]) -> None:
        super().__init__()
        self._put, self._get = put, get

    def set(self, key: str, value: Any) -> None:
        self._put(key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        return self._get(key)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        # The bound of another machine's silence is the group's, not torch's.
        for key in keys:
            self._get(key)


class StepsOut:
    """Where rank 0 announces steps to all other ranks. For one thread.

    Attributes:
        address: where it listens, as libzmq writes it.
    """

    def __init__(self, address: str, secret: bytes, epoch: str, size: int) -> None:
        """Raises zmq.ZMQError where `address` cannot be listened on."""
        self._epoch, self._size = epoch, size
        self._ranks: dict[int, bytes] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        as_leader(self._socket, secret, MOST_HELLO)
        self._socket.bind(endpoint(address, "*"))
        bound = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self.address = bound.rstrip(b"\0").decode()

    def gather(self, ended: Callable[[], str | None]) -> None:
        """Until all ranks listen. Raises GroupError."""
        deadline = time.monotonic() + COLLECTIVE_SECONDS
        while len(self._ranks) < self._size - 1:
            why = ended()
            if why is None and time.monotonic() > deadline:
                missing = sorted(set(range(1, self._size)) - set(self._ranks))
                why = f"rank {missing[0]} did not say that it hears of steps for {COLLECTIVE_SECONDS:g} s"
            if why is not None:
                raise GroupError(why)
            if not self._socket.poll(100):
                continue
            identity, *rest = self._socket.recv_multipart()
            try:
                hello = decode_hello(rest[-1])
            except (msgspec.DecodeError, IndexError):
                continue
            if hello.epoch == self._epoch and 0 < hello.rank < self._size:
                self._ranks[hello.rank] = identity

    def send(self, message: bytes) -> None:
        """To every rank. Raises GroupError where one is gone."""
        epoch = self._epoch.encode()
        for rank, identity in self._ranks.items():
            try:
                self._socket.send_multipart([identity, epoch, message])
            except zmq.ZMQError:
                raise GroupError(f"rank {rank} is not connected any more") from None

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


class Lost:
    """Whether the connection to rank 0 has ended: libzmq notices a process or a node that is gone, in `LOST_MS`."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self.monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._seen = False

    def words(self) -> str | None:
        """Why the group has ended, None while it lives."""
        self._seen = self._seen or bool(self.monitor.poll(0))
        return "the connection to rank 0 has ended" if self._seen else None


class LeadingGroup(TorchGroup):
    """Rank 0's end: collectives, and steps to announce."""

    def __init__(self, work: dist.ProcessGroup, size: int, ended: Callable[[], str | None], steps: StepsOut) -> None:
        super().__init__(work, 0, size, ended)
        self._steps = steps

    def send(self, message: bytes) -> None:
        """To all other ranks. Raises GroupError where one is gone."""
        self._steps.send(message)

    def receive(self) -> bytes:
        """Raises GroupError: rank 0 announces steps itself."""
        raise GroupError("rank 0 announces steps, and receives none")


class FollowingGroup(TorchGroup):
    """Another rank's end: collectives, and steps to hear of. It ends when rank 0 is gone."""

    def __init__(
        self, work: dist.ProcessGroup, rank: int, size: int, steps: "zmq.Socket[bytes]", lost: Lost, epoch: str
    ) -> None:
        super().__init__(work, rank, size, lost.words)
        self._steps, self._lost, self._epoch = steps, lost, epoch.encode()
        self._poller = zmq.Poller()
        self._poller.register(steps, zmq.POLLIN)
        self._poller.register(lost.monitor, zmq.POLLIN)

    def send(self, message: bytes) -> None:
        """Raises GroupError: this rank follows."""
        raise GroupError(f"rank {self.rank} follows, and announces no steps")

    def receive(self) -> bytes:
        """The next message of rank 0. Raises GroupError for one of another epoch, and where rank 0 is gone."""
        ready = dict(self._poller.poll())
        if self._steps not in ready:
            raise GroupError(self._lost.words() or "rank 0 is gone")
        epoch, *message = self._steps.recv_multipart()
        if epoch != self._epoch or len(message) != 1:
            raise GroupError(f"rank {self.rank} met a step of epoch {epoch[:64]!r}")
        return message[0]


def take_seat(seat: Seat, rank: int, size: int) -> FollowingGroup:
    """Meets all other ranks; takes as long as the last of them does. Raises SpecError, GroupError."""
    secret = read_secret(seat.key_file, GROUP_KEY)
    context = zmq.Context()
    hub, steps = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    for socket in (hub, steps):
        socket.setsockopt(zmq.RCVHWM, 0)
        as_follower(socket, secret)
    lost = Lost(steps)
    hub.connect(seat.leader)
    steps.connect(seat.steps)
    steps.send(encode(Hello(epoch=seat.epoch, rank=rank)))
    known: dict[str, bytes] = {}

    def put(key: str, value: bytes) -> None:
        hub.send(encode(Put(epoch=seat.epoch, key=key, value=value)))

    def get(key: str) -> bytes:
        if key not in known:
            hub.send(encode(Want(epoch=seat.epoch, key=key)))
        while key not in known:
            while not hub.poll(100):
                if (why := lost.words()) is not None:
                    raise GroupError(why)
            message = decode_from_leader(hub.recv())
            if isinstance(message, Value) and message.epoch == seat.epoch:
                known[message.key] = message.value
            elif isinstance(message, Refused):
                raise GroupError(f"rank {rank} is refused: {message.words}")
        return known[key]

    try:
        work = gloo(MeetingStore(put, get), rank, size, seat.address)
    except RuntimeError as error:
        raise GroupError(f"rank {rank} cannot reach another rank: {error}") from None
    hub.close()
    return FollowingGroup(work, rank, size, steps, lost, seat.epoch)
