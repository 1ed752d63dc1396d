"""From a configuration to a model that can run: checkpoint, budget, weights, cache, each timed and measured."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from plimsoll.api.device import DeviceKind
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import Precision, slow_codes
from plimsoll.api.quantization import PRECISION_OF_BITS
from plimsoll.api.second_rounding import rounded_again
from plimsoll.api.shard import shards
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.contents import refuse_changed
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.worker.kv_cache import KVCache
from plimsoll.runtime.engine.worker.memory import MemoryPlan, find_device, find_dtype, plan_memory, resident_bytes
from plimsoll.runtime.engine.worker.runner import Runner
from plimsoll.runtime.kernels.forecast import foreseen_libraries, libraries_note
from plimsoll.runtime.kernels.native_group import SharedGroup
from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.machine.threads import apply_threads, cpu_limit
from plimsoll.runtime.messages import EngineReady, LoadProgress, RankReady
from plimsoll.runtime.models.loader import load_decoder

log = logging.getLogger(__name__)

OnProgress = Callable[[LoadProgress], None]

PROGRESS_SECONDS = 0.1
"""Shortest time between two reports of one phase."""


class Clock:
    """Notes how long each phase takes, and reports how far it is."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self._phase = ""
        self._started = self._told = 0.0

    @contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[None]:
        """One phase from its beginning to its end. `total` in bytes, if it has a size."""
        self._phase, self._started = name, time.monotonic()
        self.tell(0, total)
        yield
        self.seconds[name] = time.monotonic() - self._started
        self.tell(total, total)

    def tell(self, done: int, total: int) -> None:
        """Report that `done` of `total` is loaded, at most once every `PROGRESS_SECONDS`."""
        now = time.monotonic()
        if self._on_progress is None or (0 < done < total and now - self._told < PROGRESS_SECONDS):
            return
        self._told = now
        seconds = now - self._started
        self._on_progress(LoadProgress(phase=self._phase, done_bytes=done, total_bytes=total, seconds=seconds))


@dataclass(frozen=True)
class Loaded:
    """A model in memory beside its empty cache."""

    facts: ModelFacts
    plan: MemoryPlan
    runner: Runner
    threads: int
    clock: Clock
    rank: int = 0

    def rank_ready(self) -> RankReady:
        """What this rank tells rank 0 once it has loaded."""
        runner = self.runner
        return RankReady(
            rank=self.rank, pid=os.getpid(), num_blocks=runner.cache.num_blocks, weights=runner.decoder.weight_bytes,
            kv_cache=runner.cache.nbytes, resident=resident_bytes(runner.device), load=self.clock.seconds["weights"],
        )  # fmt: skip

    def ready(self, others: Sequence[RankReady] = ()) -> EngineReady:
        """What the engine tells the world once it has generated a token: predicted bytes beside observed ones."""
        runner, plan, seconds = self.runner, self.plan, self.clock.seconds
        return EngineReady(
            model_len=plan.model_len,
            num_blocks=runner.cache.num_blocks,
            block_size=runner.cache.block_size,
            precision=plan.precision,
            cache_dtype=str(runner.cache.pool.dtype).removeprefix("torch."),
            predicted=dict(plan.predicted),
            observed={
                "weights": runner.decoder.weight_bytes,
                "kvCache": runner.cache.nbytes,
                "resident": resident_bytes(runner.device),
            },
            startup={"load": seconds["weights"], "cache": seconds["cache"], "warmup": seconds["warmup"]},
            kernels=runner.decoder.kernels.name,
            threads=self.threads,
            ranks=[self.rank_ready(), *others] if others else [],
        )


def rank_threads(config: EngineConfig) -> int:
    """CPU threads of one rank."""
    size = 1 if config.tensor == "auto" else config.tensor
    return max(1, (config.threads or cpu_limit()) // size)


def refuse_split(config: EngineConfig) -> None:
    """Raises SpecError where the model does not split over `config.tensor` ranks, before any of them is started."""
    if config.tensor == "auto" or config.tensor == 1:
        return
    facts = open_checkpoint(Path(config.model)).facts
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if facts.quantization is None else PRECISION_OF_BITS[facts.quantization.bits]
    # Unknown names are refused with the device's.
    if precision in get_args(Precision):
        shards(facts, config.tensor, cast(Precision, precision))


def load(config: EngineConfig, on_progress: OnProgress | None = None, group: SharedGroup | None = None) -> Loaded:
    """Opens the checkpoint, closes the budget, then takes the memory: weights first, the cache after them.

    Args:
        group: loads this rank's share, where the model is spread over several; every rank does the same.

    Raises PlimsollError for what cannot be read, run or fitted, before any of that memory is taken.
    """
    threads = apply_threads(rank_threads(config))
    path = Path(config.model)
    refuse_changed(path, config.contents)
    checkpoint = open_checkpoint(path)
    facts = checkpoint.facts
    for notice in checkpoint.notices:
        log.warning(notice)
    device = find_device(config.device)
    dtype = find_dtype(config.precision, device)
    kernels = select(device, dtype, config.kernels, config.torch_rows)
    plan = plan_memory(config, facts, kernels, dtype)
    for option in plan.rejected:
        log.info("passed over %s: %s", option.option, option.reason)
    kind: DeviceKind = "cuda" if device.type == "cuda" else "cpu"
    again, slow = rounded_again(facts, plan.precision), slow_codes(plan.precision, kind, kernels.facts)
    for note in (plan.note, again, slow, libraries_note(foreseen_libraries(kind))):
        if note:
            log.warning(note)
    shard = None if group is None else shards(facts, group.size, plan.precision)[group.rank]
    own = facts if shard is None else shard.facts(facts)
    clock = Clock(on_progress)
    with clock.phase("weights", plan.predicted["weights"]):
        decoder = load_decoder(
            checkpoint,
            facts,
            kernels,
            dtype,
            precision=plan.precision,
            max_model_len=plan.model_len,
            rope=plan.rope,
            on_progress=clock.tell,
            shard=shard,
            group=group,
        )
    # Loading takes minutes, in which the files may be replaced one by one.
    refuse_changed(path, config.contents)
    with clock.phase("cache", plan.predicted["kvCache"]):
        cache = KVCache(own, plan.num_blocks, config.block_size, dtype, device)
    rank = 0 if group is None else group.rank
    return Loaded(facts, plan, Runner(decoder, cache, group), threads, clock, rank)
