"""The other ranks of a tensor-parallel group on this machine, as rank 0 sees them.

Each is a process (`rank_process.py`) that loads its share and then follows: it computes each step that rank 0
announces. Rank 0 is this process. They live and die together (`Crew`), and share memory.
"""

import os
import time

import msgspec
import torch

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.group.crew import Crew, RankProcess
from plimsoll.runtime.kernels.build import NativeUnavailableError
from plimsoll.runtime.kernels.device_group import DeviceGroup
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native_group import SPINS, SharedGroup, make_segment
from plimsoll.runtime.machine.threads import cpu_limit
from plimsoll.runtime.messages import LoadProgress, RankReady
from plimsoll.runtime.models.group import RankGroup


class Ranks:
    """The group of this engine. `close` ends it; so does the end of this process, however it comes."""

    def __init__(self, config: EngineConfig, size: int, threads: int, device: torch.device) -> None:
        """Starts ranks 1 to `size` - 1 with `config`, `threads` each.

        Args:
            device: of rank 0; on GPUs each rank has the one of its number.

        Raises PlimsollError where this machine cannot run ranks, OSError where memory or a process cannot be had.
        """
        self.size = size
        self._device = device
        spins = SPINS if size * threads <= cpu_limit() else 0
        try:
            segment = make_segment(size)
        except NativeUnavailableError as error:
            raise PlimsollError(
                f"ranks share memory through the native kernels, and {error}", field="tensor", value=size, fix="Use 1"
            ) from error
        group = self._group = SharedGroup(segment, 0, size, spins)

        def ending() -> None:
            group.end()
            os.close(segment)

        self._crew = Crew(
            lambda rank: RankProcess(_on_its_device(config, rank, device), rank, size, spins, segment), range(1, size),
            lambda one: group.beats(one.rank), ending,
        )  # fmt: skip

    @property
    def failure(self) -> str | None:
        """Why the group is not whole any more, None while it is."""
        return self._crew.failure

    def form(self) -> RankGroup:
        """Rank 0's end of the collectives. On GPUs it waits for the other ranks, and raises GroupError."""
        return self._group if self._device.type == "cpu" else DeviceGroup(self._group, self._device)

    def check(self) -> None:
        """Raises GroupError where the group is not whole any more."""
        if self.failure is not None:
            raise GroupError(self.failure)

    def loads(self) -> list[LoadProgress | None]:
        """How far each of the others has loaded its weights, rank 1 first."""
        return [one.weights for one in self._crew.processes]

    def wait_ready(self) -> list[RankReady]:
        """Until every rank has loaded; what each observed. Raises PlimsollError or GroupError in the words of the one
        that has not."""
        while True:
            if self.failure is not None:
                if self._crew.refused:
                    raise PlimsollError(self.failure, field="tensor", value=self.size)
                raise GroupError(self.failure)
            found = self._crew.ready
            if len(found) == self.size - 1:
                return found
            time.sleep(0.01)

    def close(self) -> None:
        """Ends all of them. Safe to call twice."""
        self._crew.close()


def _on_its_device(config: EngineConfig, rank: int, device: torch.device) -> EngineConfig:
    return config if device.type == "cpu" else msgspec.structs.replace(config, device=f"{device.type}:{rank}")
