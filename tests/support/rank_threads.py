"""The other ranks of an engine as threads of this process: real collectives and announcements, no process to start."""

import os
import threading
from typing import Any

import torch

from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.worker.loading import load, prepare
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native_group import SharedGroup, make_segment
from plimsoll.runtime.messages import LoadProgress, RankReady

SECONDS = 60.0


class RankThreads:
    """Stands for `runtime.engine.worker.ranks.Ranks`."""

    def __init__(self, config: EngineConfig, size: int, threads: int, device: torch.device) -> None:
        segment = make_segment(size)
        self._groups = [SharedGroup(segment, rank, size, spins=0) for rank in range(size)]
        os.close(segment)
        self._ready: list[RankReady | None] = [None] * (size - 1)
        self._loaded = threading.Barrier(size)
        self._failed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._follow, args=(config, group), daemon=True) for group in self._groups[1:]
        ]
        for thread in self._threads:
            thread.start()

    def _follow(self, config: EngineConfig, group: SharedGroup) -> None:
        try:
            loaded = load(prepare(config, follows=True), None, group)
            self._ready[group.rank - 1] = loaded.rank_ready()
            self._loaded.wait(SECONDS)
            while loaded.runner.follow():
                pass
        except GroupError:
            return
        except BaseException as error:
            self._failed.append(error)
            self._loaded.abort()
            group.end()

    def form(self) -> SharedGroup:
        return self._groups[0]

    def check(self) -> None:
        if self._failed:
            raise self._failed[0]

    def loads(self) -> list[LoadProgress | None]:
        return [None] * len(self._threads)

    def wait_ready(self) -> list[Any]:
        try:
            self._loaded.wait(SECONDS)
        except threading.BrokenBarrierError:
            self.check()
            raise
        return list(self._ready)

    def close(self) -> None:
        self._groups[0].end()
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
