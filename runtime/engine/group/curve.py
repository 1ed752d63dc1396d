"""Sockets that only holders of a group's secret can use: CURVE, with the leader's keys derived from the secret.

A client must know the leader's public key, and so the secret; the leader proves that it has the private one. Everything
between them is encrypted.
"""

import hashlib
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from plimsoll.api.errors import SpecError
from plimsoll.api.group import KEY_BYTES

_LABEL = b"plimsoll group leader 1"
_MOST_BYTES = 4096

HANDSHAKE_MS = 5000
"""A stranger who connects and says nothing is cut off after so long."""
PING_MS, LOST_MS = 500, 3000
"""Signs of life of libzmq itself, from threads that Python's lock does not hold up: a process or a node that gives none
for the second number is disconnected."""


def read_secret(path: str, field: str) -> bytes:
    """The group's secret: at least 32 bytes as hexadecimal digits. Raises SpecError, which never repeats it."""
    fix = f"Make one with: openssl rand -hex {KEY_BYTES} > FILE"
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", field=field, value=path, fix=fix) from None
    try:
        secret = bytes.fromhex(text.decode("ascii").strip()) if len(text) <= _MOST_BYTES else b""
    except ValueError:
        secret = b""
    if len(secret) < KEY_BYTES:
        raise SpecError(
            f"must hold at least {2 * KEY_BYTES} hexadecimal digits and nothing else", field=field, value=path, fix=fix
        )
    return secret


def _leader_keys(secret: bytes) -> tuple[bytes, bytes]:
    private = z85.encode(hashlib.sha256(_LABEL + secret).digest())
    return zmq.curve_public(private), private


def as_leader(socket: zmq.Socket[Any], secret: bytes, most_bytes: int) -> None:
    """Before `bind`: lets in holders of the secret alone, with messages of at most `most_bytes`."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, _leader_keys(secret)[1])
    socket.setsockopt(zmq.MAXMSGSIZE, most_bytes)
    _steady(socket)


def as_follower(socket: zmq.Socket[Any], secret: bytes) -> None:
    """Before `connect`: talks to the holder of the secret alone."""
    public, private = zmq.curve_keypair()
    socket.setsockopt(zmq.CURVE_SERVERKEY, _leader_keys(secret)[0])
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, private)
    # A socket that connects again has missed messages: a new attempt takes a new socket.
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    _steady(socket)


def _steady(socket: zmq.Socket[Any]) -> None:
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, LOST_MS)


def endpoint(address: str, port: int | str) -> str:
    """An address as libzmq writes it."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
