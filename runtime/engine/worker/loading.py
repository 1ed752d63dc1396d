"""From a configuration to a model that can run: checkpoint, budget, weights, cache, each timed and measured."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from plimsoll.api.activations import refuse_activations, rows_note, rows_of
from plimsoll.api.cache_loss import cache_chosen, cache_loss
from plimsoll.api.device import DeviceKind
from plimsoll.api.draft import FIELD as DRAFT
from plimsoll.api.errors import SpecError
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import ActivationPrecision, slow_codes
from plimsoll.api.second_rounding import as_stored, rounded_again
from plimsoll.api.shard import shards
from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.contents import refuse_changed
from plimsoll.checkpoint.key_biases import key_bias_ranges
from plimsoll.runtime.config import EngineConfig, names_of
from plimsoll.runtime.engine.core.copy_times import CopyTimes
from plimsoll.runtime.engine.core.guesser import Guessing
from plimsoll.runtime.engine.core.payoff import pays_with_draft
from plimsoll.runtime.engine.worker.draft import Draft
from plimsoll.runtime.engine.worker.host_cache import HostCache
from plimsoll.runtime.engine.worker.kv_cache import KVCache
from plimsoll.runtime.engine.worker.memory import MemoryPlan, find_device, find_dtype, plan_memory, resident_bytes
from plimsoll.runtime.engine.worker.runner import Runner
from plimsoll.runtime.engine.worker.self_test import of_group, self_test
from plimsoll.runtime.kernels.forecast import (
    foreseen_libraries,
    libraries_note,
    torch_rows_name,
    wanted_torch_rows,
)
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.selection import select
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.machine.threads import apply_threads, cpu_limit
from plimsoll.runtime.messages import Determinism, EngineReady, LoadProgress, RankReady
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.group import RankGroup
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
    determinism: Determinism
    rank: int = 0
    draft: Draft | None = None
    """On rank 0 alone."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of this rank's cache, the draft's part included."""
        return self.runner.cache.nbytes + (0 if self.draft is None else self.draft.runner.cache.nbytes)

    def guessing(self, tokens: int) -> Guessing:
        """How the engine makes at most `tokens` guesses a step of a sequence."""
        if self.draft is None:
            return Guessing(tokens)
        pays = pays_with_draft(self.draft.runner.decoder.weight_bytes, self.runner.decoder.weight_bytes)
        return Guessing(tokens, self.draft.length, pays)

    def rank_ready(self) -> RankReady:
        """What this rank tells rank 0 once it has loaded."""
        runner = self.runner
        return RankReady(
            rank=self.rank, pid=os.getpid(), num_blocks=runner.cache.num_blocks, weights=runner.decoder.weight_bytes,
            kv_cache=self.cache_bytes, resident=resident_bytes(runner.device), load=self.clock.seconds["weights"],
            determinism=self.determinism, host_blocks=self.plan.host_blocks,
        )  # fmt: skip

    def check_others(self, others: Sequence[RankReady]) -> None:
        """Raises GroupError where another rank has a cache of another size."""
        ours = (self.plan.num_blocks, self.plan.host_blocks)
        for one in others:
            if (one.num_blocks, one.host_blocks) != ours:
                theirs = f"{one.num_blocks} blocks of cache and {one.host_blocks} in its host tier"
                raise GroupError(f"rank {one.rank} has {theirs}, not {ours[0]} and {ours[1]}")

    def copy_times(self) -> CopyTimes:
        """What copying a block between the tiers takes on this machine, measured now; 0 where there is one tier."""
        host = self.runner.host
        return CopyTimes(0.0 if host is None else host.seconds_a_block(), self.runner.cache.block_size)

    def ready(self, others: Sequence[RankReady] = ()) -> EngineReady:
        """What the engine tells the world once it has generated a token: predicted bytes beside observed ones."""
        runner, plan, seconds = self.runner, self.plan, self.clock.seconds
        return EngineReady(
            model_len=plan.model_len,
            num_blocks=runner.cache.num_blocks,
            block_size=runner.cache.block_size,
            host_blocks=0 if runner.host is None else runner.host.num_blocks,
            precision=plan.precision,
            cache_dtype=runner.cache.held,
            predicted=dict(plan.predicted),
            observed={
                "weights": runner.decoder.weight_bytes,
                "kvCache": self.cache_bytes,
                **({} if self.draft is None else {"draft": self.draft.runner.decoder.weight_bytes}),
                **({} if runner.host is None else {"hostCache": runner.host.nbytes}),
                "resident": resident_bytes(runner.device),
            },
            startup={
                "load": max([seconds["weights"], *(one.load for one in others)]),
                "cache": seconds["cache"],
                "warmup": seconds["warmup"],
            },
            kernels=runner.decoder.kernels.name,
            determinism=of_group([self.determinism, *(one.determinism for one in others)]),
            threads=self.threads,
            ranks=[self.rank_ready(), *others] if others else [],
        )


def rank_threads(config: EngineConfig, local: int) -> int:
    """CPU threads of one of `local` ranks on this machine."""
    return max(1, (config.threads or cpu_limit()) // local)


@dataclass(frozen=True)
class Prepared:
    """All that is known before memory is taken."""

    config: EngineConfig
    checkpoint: Checkpoint
    kernels: Kernels
    dtype: torch.dtype
    """Of the cache, and of weights that are no codes."""
    plan: MemoryPlan
    threads: int
    determinism: Determinism
    draft: Checkpoint | None = None

    def of_followers(self) -> EngineConfig:
        """What ranks that follow are given: all that this machine decided, so that none decides otherwise.

        Rank 0 alone runs a draft: the cache of the others is as many blocks of the model's part."""
        terms, draft = self.plan.predicted, self.plan.draft
        beside = 0 if draft is None else self.plan.num_blocks * draft.block
        return msgspec.structs.replace(
            self.config, precision=self.plan.precision, cache_precision=self.plan.cache_precision,
            activation_precision=rows_of(self.config.activation_precision, self.plan.precision, self.kernels.facts),
            tensor=self.plan.tensor, memory=terms["total"],
            kv_cache_bytes=terms["kvCache"] - beside, max_model_len=self.plan.model_len,
            max_batched_tokens=self.plan.max_batched_tokens, draft_model=None,
        )  # fmt: skip


def prepare(config: EngineConfig, *, follows: bool = False) -> Prepared:
    """Opens the checkpoint and closes the budget.

    Args:
        follows: for a rank that follows: rank 0 has seen that there is memory for all, and has logged what to know.

    Raises PlimsollError for what cannot be read, run or fitted.
    """
    path = Path(config.model)
    refuse_changed(path, config.contents)
    checkpoint = open_checkpoint(path)
    draft = _open_draft(config)
    device = find_device(config.device)
    dtype = find_dtype(config.precision, device)
    names = names_of(config)

    def table(rows: ActivationPrecision) -> Kernels:
        return select(device, dtype, config.kernels, config.torch_rows, int8=rows == "int8", names=names)

    kernels = table(config.activation_precision)
    plan = plan_memory(
        config, checkpoint.facts, kernels, dtype, None if draft is None else draft.facts, follows=follows
    )
    kind: DeviceKind = "cuda" if device.type == "cuda" else "cpu"
    refuse_activations(config.activation_precision, plan.precision, kind, config.torch_rows, names)
    rows = rows_of(config.activation_precision, plan.precision, kernels.facts)
    if rows != config.activation_precision:
        kernels = table(rows)
    threads = apply_threads(rank_threads(config, plan.tensor // config.nodes))
    determinism = self_test(kernels, dtype)
    if config.deterministic and not determinism.deterministic:
        raise SpecError(
            f"answers cannot be kept equal here: {determinism.reason}", field="spec.serving.deterministic",
            value=True, fix=_unequal(config),
        )  # fmt: skip
    if not follows:
        _log_notes(config, checkpoint, kernels, plan)
        if not determinism.deterministic:
            log.warning("answers may depend on load: %s", determinism.reason)
    return Prepared(config, checkpoint, kernels, dtype, plan, threads, determinism, draft)


def _unequal(config: EngineConfig) -> str:
    """What a user can leave out where answers cannot be kept equal."""
    given = wanted_torch_rows(config.torch_rows) is not None
    other = f", or leave out {torch_rows_name(config.torch_rows, names_of(config))}" if given else ""
    return f"Leave it out to serve with answers that may depend on load{other}"


def _open_draft(config: EngineConfig) -> Checkpoint | None:
    """Raises PlimsollError for a draft that guesses nothing, and for a checkpoint that cannot be read."""
    if config.draft_model is None:
        return None
    if not config.speculative_tokens:
        raise SpecError(
            "guesses no tokens", field=DRAFT, value=config.draft_model, fix=f"Set {names_of(config).guesses} 4"
        )
    return open_checkpoint(Path(config.draft_model))


def _log_notes(config: EngineConfig, checkpoint: Checkpoint, kernels: Kernels, plan: MemoryPlan) -> None:
    for notice in checkpoint.notices:
        log.warning(notice)
    for option in plan.rejected:
        log.info("passed over %s: %s", option.option, option.reason)
    if rows := rows_note(config.activation_precision, plan.precision, kernels.facts, names_of(config)):
        log.info(rows)
    if stored := as_stored(checkpoint.facts, plan.precision):
        log.info("%s holds the checkpoint's %s as they are stored", plan.precision, stored)
    kind: DeviceKind = "cuda" if kernels.device.type == "cuda" else "cpu"
    again, slow = rounded_again(checkpoint.facts, plan.precision), slow_codes(plan.precision, kind, kernels.facts)
    biases = None if plan.cache_precision == "float" else key_bias_ranges(checkpoint)
    lossy = cache_loss(checkpoint.facts, plan.cache_precision, biases)
    chosen = cache_chosen(checkpoint.facts, config.cache_precision, plan.cache_precision)
    for note in (plan.note, again, chosen, lossy, slow, libraries_note(foreseen_libraries(kind))):
        if note:
            log.warning(note)


def load(prepared: Prepared, on_progress: OnProgress | None = None, group: RankGroup | None = None) -> Loaded:
    """Takes the memory: weights first, the cache after them.

    Args:
        group: loads this rank's share, where the model is spread over several; every rank does the same.

    Raises PlimsollError for what cannot be read, GroupError where another rank is gone.
    """
    config, plan, facts = prepared.config, prepared.plan, prepared.checkpoint.facts
    shard = None if group is None else shards(facts, group.size, plan.precision)[group.rank]
    clock = Clock(on_progress)
    held = plan.predicted.get("draft", 0)
    with clock.phase("weights", plan.rank_weights[0 if group is None else group.rank] + held):
        decoder = load_decoder(
            prepared.checkpoint,
            facts,
            prepared.kernels,
            prepared.dtype,
            precision=plan.precision,
            max_model_len=plan.model_len,
            rope=plan.rope,
            on_progress=lambda done, total: clock.tell(done, total + held),
            shard=shard,
            group=group,
        )
        draft = None if prepared.draft is None else _draft_decoder(prepared, prepared.draft, clock)
    # Loading takes minutes, in which the files may be replaced one by one.
    refuse_changed(Path(config.model), config.contents)
    with clock.phase("cache", plan.predicted["kvCache"] + plan.predicted.get("hostCache", 0)):
        cache = KVCache(
            decoder.facts, plan.num_blocks, config.block_size, prepared.dtype, prepared.kernels.device,
            plan.cache_precision,
        )  # fmt: skip
        host = HostCache(cache, plan.host_blocks) if plan.host_blocks else None
        guesser = None
        if draft is not None and plan.draft is not None:
            beside = KVCache(
                draft.facts, plan.num_blocks, config.block_size, prepared.dtype, prepared.kernels.device,
                plan.cache_precision,
            )  # fmt: skip
            guesser = Draft(Runner(draft, beside), plan.draft.length, facts.vocab_size)
    rank, runner = 0 if group is None else group.rank, Runner(decoder, cache, group, host)
    return Loaded(facts, plan, runner, prepared.threads, clock, prepared.determinism, rank, guesser)


def _draft_decoder(prepared: Prepared, checkpoint: Checkpoint, clock: Clock) -> Decoder:
    plan = prepared.plan
    assert plan.draft is not None
    before, held = plan.rank_weights[0], plan.draft.weights
    return load_decoder(
        checkpoint, checkpoint.facts, prepared.kernels, prepared.dtype, precision=plan.draft.precision,
        max_model_len=plan.draft.length, on_progress=lambda done, _: clock.tell(before + done, before + held),
    )  # fmt: skip
