"""Messages through a pipe: each is preceded by its length."""

from typing import Any

import msgspec

LENGTH_BYTES = 4
"""Of the length, big-endian."""


def frame(message: msgspec.Struct) -> bytes:
    """A message as it goes through a pipe: its length, then its bytes."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_framed(stream: Any, kind: Any) -> Any:
    """The next message of a binary stream, None at its end. Raises msgspec.DecodeError."""
    size = stream.read(LENGTH_BYTES)
    body = stream.read(int.from_bytes(size, "big")) if len(size) == LENGTH_BYTES else b""
    if not body or len(body) < int.from_bytes(size, "big"):
        return None
    return msgspec.msgpack.decode(body, type=kind)
