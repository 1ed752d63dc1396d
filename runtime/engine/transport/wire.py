"""What client and engine process share: the settings at the start, and the two sockets between them."""

import contextlib
import logging
import os
import shutil
import tempfile
from typing import Any

import msgspec
import zmq

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.membership import Membership
from plimsoll.runtime.messages import FromEngine, ToEngine

# A path longer than this does not fit into a Unix socket's address on every system.
_LONGEST_PATH = 100


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of an engine process, sent through its standard input at its start.

    That input stays open as long as the parent lives: its end tells the engine to go too.
    """

    config: EngineConfig
    membership: Membership | None = None
    """The machine's place in a group over several, which it leads."""
    parent: int
    """Process id of the client."""
    log_level: int = logging.INFO
    """The least that the process logs: as much as the client's."""
    requests: str
    """Address where the client gives out batches of requests and aborts (PUSH)."""
    outputs: str
    """Address where the client takes outputs (PULL)."""
    folder: str | None = None
    """Where the Unix sockets are. The client takes it away once the engine is connected; the engine does if the client
    dies before."""
    key: str | None = None
    """The client's CURVE public key. None on Unix sockets, which the folder's mode guards."""


encode_batch = msgspec.msgpack.Encoder().encode
"""list[ToEngine] to bytes."""
decode_batch = msgspec.msgpack.Decoder(list[ToEngine]).decode
encode_message = msgspec.msgpack.Encoder().encode
"""FromEngine to bytes."""
decode_message = msgspec.msgpack.Decoder(FromEngine).decode


class Binding:
    """Where one engine process finds its client: Unix sockets in a folder that only this user enters.

    Where no such folder can be made (a read-only file system) it is loopback TCP, encrypted and closed to every
    process without this binding's public key.
    """

    def __init__(
        self,
        config: EngineConfig,
        requests: zmq.Socket[Any],
        outputs: zmq.Socket[Any],
        membership: Membership | None = None,
    ) -> None:
        self._folder: str | None = None
        key: str | None = None
        with contextlib.suppress(OSError):
            # mkdtemp makes it with mode 0700.
            self._folder = tempfile.mkdtemp(prefix="plimsoll-")
        if self._folder is not None and len(self._folder) > _LONGEST_PATH - len("/requests"):
            self.remove()
        if self._folder is not None:
            addresses = [f"ipc://{self._folder}/{name}" for name in ("requests", "outputs")]
        else:
            addresses = ["tcp://127.0.0.1:*"] * 2
            public, secret = zmq.curve_keypair()
            key = public.decode()
            for socket in (requests, outputs):
                socket.setsockopt(zmq.CURVE_SERVER, 1)
                socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        bound = []
        for socket, address in zip((requests, outputs), addresses, strict=True):
            _unbounded(socket)
            socket.bind(address)
            bound.append(socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())  # type: ignore[union-attr]
        self.handover = Handover(
            config=config, membership=membership, parent=os.getpid(), log_level=logging.getLogger().level,
            requests=bound[0], outputs=bound[1], folder=self._folder, key=key,
        )  # fmt: skip

    def remove(self) -> None:
        """Takes the folder away. Sockets that are connected stay so, and nothing else can connect any more."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def connect(context: zmq.Context[zmq.Socket[bytes]], handover: Handover) -> tuple[zmq.Socket[bytes], ...]:
    """The engine's ends: (requests to pull, outputs to push, heartbeats to push), connected in this order."""
    ends = context.socket(zmq.PULL), context.socket(zmq.PUSH), context.socket(zmq.PUSH)
    for socket, address in zip(ends, (handover.requests, handover.outputs, handover.outputs), strict=True):
        _unbounded(socket)
        if handover.key is not None:
            public, secret = zmq.curve_keypair()
            socket.setsockopt(zmq.CURVE_SERVERKEY, handover.key.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        socket.connect(address)
    return ends


def _unbounded(socket: zmq.Socket[Any]) -> None:
    # The engine's own queue is what bounds requests; a message dropped or a step that waits would hang a request.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
