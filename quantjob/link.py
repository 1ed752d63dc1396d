"""Python objects with tensors between the processes of one job, over a socket that no other process has.

Tensors travel as their bytes beside the pickled rest, without a copy on either side, and arrive on the receiver's
device. Pickle is safe here: both ends are the same program, and the socket was inherited.
"""

import io
import pickle
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Seconds of a wait after which a patient end looks whether the other one is alive.
LOOK_SECONDS = 1.0
_COUNT, _SIZE = struct.Struct("<I"), struct.Struct("<Q")


class _Pickler(pickle.Pickler):
    def persistent_id(self, found: Any) -> npt.NDArray[Any] | None:
        return found.detach().cpu().contiguous().numpy() if isinstance(found, Tensor) else None


class _Unpickler(pickle.Unpickler):
    device = torch.device("cpu")

    def persistent_load(self, pid: Any) -> Tensor:
        return torch.from_numpy(pid).to(self.device)


class Link:
    """One end. Every method raises OSError or EOFError once the other end is gone."""

    def __init__(self, end: socket.socket, device: torch.device, look: Callable[[], None] | None = None) -> None:
        """Args:
        device: where received tensors lie.
        look: called each `LOOK_SECONDS` of a wait; raises OSError to give up. None waits without end.
        """
        self._socket, self._device, self._look = end, device, look
        end.settimeout(None if look is None else LOOK_SECONDS)

    def send(self, value: Any) -> None:
        """All of it."""
        buffers: list[pickle.PickleBuffer] = []
        body = io.BytesIO()
        _Pickler(body, 5, buffer_callback=buffers.append).dump(value)
        parts = [body.getbuffer(), *(buffer.raw() for buffer in buffers)]
        self._write(_COUNT.pack(len(parts)) + b"".join(_SIZE.pack(len(part)) for part in parts))
        for part in parts:
            self._write(part)

    def receive(self) -> Any:
        """The next object."""
        (count,) = _COUNT.unpack(self._read(_COUNT.size))
        sizes = [_SIZE.unpack(self._read(_SIZE.size))[0] for _ in range(count)]
        body, *buffers = [self._read(size) for size in sizes]
        reader = _Unpickler(io.BytesIO(body), buffers=buffers)
        reader.device = self._device
        return reader.load()

    def close(self) -> None:
        self._socket.close()

    def _write(self, part: bytes | memoryview) -> None:
        left = memoryview(part)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except TimeoutError:
                self._wait()

    def _read(self, size: int) -> memoryview:
        data = np.empty(size, np.uint8).data
        left: Sequence[int] = data
        while len(left):
            try:
                count = self._socket.recv_into(left)  # type: ignore[arg-type]
            except TimeoutError:
                self._wait()
                continue
            if not count:
                raise EOFError
            left = left[count:]
        return data

    def _wait(self) -> None:
        assert self._look is not None
        self._look()
