"""Collectives of ranks on one machine whose tensors lie on a device each. **No GPU has run this yet.**

Sums go through a process group of torch.distributed, NCCL on GPUs. Announcements of steps go through the memory that
the ranks of a machine share anyway, and so do the addresses by which they meet.
"""

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native_group import COLLECTIVE_SECONDS, SharedGroup
from plimsoll.runtime.kernels.torch_group import TorchGroup, gloo

LOOPBACK = "127.0.0.1"


class DeviceGroup(TorchGroup):
    """One rank's end: `sum` and `gather` of tensors on `device`, the rest through `shared`.

    Calls raise GroupError as those of `TorchGroup`, and where `shared` has ended.
    """

    def __init__(self, shared: SharedGroup, device: torch.device) -> None:
        """Meets all other ranks, each of which makes the same call, and adds once: so the first step pays nothing.

        Raises GroupError where another rank is gone.
        """
        self._shared, self._device = shared, device
        if shared.rank == 0:
            # A folder of this user alone: its name is no secret from processes of another one, which cannot open it.
            with tempfile.TemporaryDirectory(prefix="plimsoll-ranks-") as folder:
                shared.send(folder.encode())
                self._meet(Path(folder))
        else:
            self._meet(Path(shared.receive().decode()))

    def _meet(self, folder: Path) -> None:
        shared, device = self._shared, self._device
        store = dist.FileStore(str(folder / "addresses"), shared.size)
        try:
            work = _backend(store, shared.rank, shared.size, device)
        except RuntimeError as error:
            raise GroupError(f"rank {shared.rank} cannot reach another rank: {error}") from None
        super().__init__(work, shared.rank, shared.size, shared.ended, on_cpu=device.type == "cpu")
        self.sum(torch.ones(1, device=device))

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest over ranks of each element of a tensor on the CPU, in place."""
        return tensor.copy_(super().largest(tensor.to(self._device)))

    def send(self, message: bytes) -> None:
        """From rank 0 to all others, each of which calls `receive`."""
        self._shared.send(message)

    def receive(self) -> bytes:
        """The next message of rank 0, however long it takes until there is one."""
        return self._shared.receive()


def _backend(store: dist.Store, rank: int, size: int, device: torch.device) -> dist.ProcessGroup:
    """NCCL for a GPU, gloo for a CPU. Raises RuntimeError."""
    if device.type == "cpu":
        return gloo(store, rank, size, LOOPBACK)
    # torch builds for CPUs have no such name, and their stubs neither.
    kind: Any = dist.ProcessGroupNCCL  # type: ignore[attr-defined,unused-ignore]
    options = kind.Options()
    options._timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    torch.cuda.set_device(device)
    made: dist.ProcessGroup = kind(store, rank, size, options)
    return made
