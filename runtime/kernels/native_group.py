"""Collectives of ranks on one machine through shared memory, as `csrc/group.c` does them."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plimsoll.api.collectives import MESSAGE_BYTES, SLOT_BYTES
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native import native_library
from plimsoll.runtime.kernels.native_checks import check_floats

_P, _L, _I, _D = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
_BROKEN, _LATE = 1, 2
_ENDED = "the group of ranks has ended"

SEGMENT_NAME = "plimsoll-group"
"""What the memory of a group is called in /proc."""
COLLECTIVE_SECONDS = 120.0
"""What a collective, or the reading of a message, may take. Ranks that are gone or stopped are noticed far sooner, by
their signs of life: this bounds what neither shows."""
SPINS = 2_000
"""Looks at a word, one after the other, where every rank has a CPU for each of its threads: some 20 microseconds."""
YIELDS = 2_000
"""Looks after that which let others run in between, before sleeping on the word: some 0.6 ms on an idle CPU. A rank
that was put on the CPU of the one that waits for it goes on at once."""


class GroupState(ctypes.Structure):
    """`group` of `csrc/group.h`: one rank's view of the segment."""

    _fields_ = [
        ("base", _P),
        *((name, _L) for name in ("rank", "size", "slot_floats", "message_bytes", "spins", "yields")),
        ("seconds", _D),
        ("turn", ctypes.c_uint32),
        ("message", ctypes.c_uint32),
    ]


_STATE = ctypes.POINTER(GroupState)
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "group_sum": ([_STATE, _P, _L], _I),
    "group_largest": ([_STATE, _P, _L], _I),
    "group_gather": ([_STATE, _P, _P, _L, _P], _I),
    "group_send": ([_STATE, _P, _L], _I),
    "group_receive": ([_STATE, _P, ctypes.POINTER(ctypes.c_int64), _D], _I),
    "group_beat": ([_STATE], None),
    "group_beats": ([_STATE, _L], _L),
    "group_break": ([_STATE], None),
    "group_bytes": ([_L, _L, _L], _L),
}


def _library() -> ctypes.CDLL:
    library = native_library()
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def make_segment(size: int) -> int:
    """Memory for a group of `size` ranks, as a descriptor that children inherit. It has no name: nothing stays behind.

    Raises NativeUnavailableError, OSError.
    """
    length = _library().group_bytes(size, SLOT_BYTES // 4, MESSAGE_BYTES)
    descriptor = os.memfd_create(SEGMENT_NAME, os.MFD_CLOEXEC)
    os.ftruncate(descriptor, length)
    return descriptor


class SharedGroup:
    """One rank of a group that shares the memory of `make_segment`. Every rank makes the same calls in the same order.

    Calls raise GroupError where another rank is gone or late.

    Args:
        descriptor: of the segment; it may be closed afterwards.
        spins: 0 where ranks share CPUs.
    """

    name = "shared memory"

    def __init__(self, descriptor: int, rank: int, size: int, spins: int = SPINS) -> None:
        self.rank, self.size = rank, size
        self._library = _library()
        self._memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self.state = GroupState(
            ctypes.addressof(self._view), rank, size, SLOT_BYTES // 4, MESSAGE_BYTES, spins, YIELDS if spins else 0,
            COLLECTIVE_SECONDS,
        )  # fmt: skip
        self._message = ctypes.create_string_buffer(MESSAGE_BYTES)
        self._over = False

    def sum(self, tensor: Tensor) -> Tensor:
        """float32 of any shape: becomes its sum over ranks, to the same bits on each, in place."""
        check_floats(tensor=tensor)
        self._done(self._library.group_sum(self.state, tensor.data_ptr(), tensor.numel()))
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The same with the largest of each element."""
        check_floats(tensor=tensor)
        self._done(self._library.group_largest(self.state, tensor.data_ptr(), tensor.numel()))
        return tensor

    def gather(self, tensor: Tensor, widths: Sequence[int]) -> Tensor | None:
        """float32 [L, widths[rank]] of each rank -> [L, sum of widths] on rank 0, None elsewhere."""
        check_floats(tensor=tensor)
        if tensor.shape[1] != widths[self.rank] or not tensor.is_contiguous():
            raise ValueError(f"rank {self.rank} gives {tuple(tensor.shape)}, and has {widths[self.rank]} columns")
        out = torch.empty(len(tensor), sum(widths)) if self.rank == 0 else None
        sizes = (ctypes.c_int64 * self.size)(*widths)
        address = 0 if out is None else out.data_ptr()
        self._done(self._library.group_gather(self.state, tensor.data_ptr(), address, len(tensor), sizes))
        return out

    def send(self, message: bytes) -> None:
        """From rank 0 to all others, each of which calls `receive`."""
        # A piece is followed by another one where it is full.
        for start in range(0, len(message) + 1, MESSAGE_BYTES):
            piece = message[start : start + MESSAGE_BYTES]
            self._done(self._library.group_send(self.state, piece, len(piece)))

    def receive(self) -> bytes:
        """The next message of rank 0, however long it takes until there is one."""
        pieces: list[bytes] = []
        length = ctypes.c_int64(MESSAGE_BYTES)
        while length.value == MESSAGE_BYTES:
            seconds = COLLECTIVE_SECONDS if pieces else -1.0
            self._done(self._library.group_receive(self.state, self._message, ctypes.byref(length), seconds))
            pieces.append(ctypes.string_at(self._message, length.value))
        return b"".join(pieces)

    @property
    def adder(self) -> tuple[int, int]:
        """Addresses of a C function that does `sum` (`int sum(void *, float *, long)`) and of its first argument."""
        function = ctypes.cast(self._library.group_sum, _P).value
        assert function is not None
        return function, ctypes.addressof(self.state)

    def beat(self) -> None:
        """Gives a sign of life. Any thread may."""
        self._library.group_beat(self.state)

    def beats(self, rank: int) -> int:
        """Signs of life that a rank has given."""
        return int(self._library.group_beats(self.state, rank))

    def end(self) -> None:
        """Ends every wait in every rank, with GroupError."""
        self._over = True
        self._library.group_break(self.state)

    def ended(self) -> str | None:
        """Why the group is not whole any more, None until `end` is called on this object."""
        return _ENDED if self._over else None

    def _done(self, failed: int) -> None:
        if failed == _BROKEN:
            raise GroupError(_ENDED)
        if failed == _LATE:
            raise GroupError(f"rank {self.rank} waited {COLLECTIVE_SECONDS:g} s for another rank")
