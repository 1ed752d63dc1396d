"""How far checkpoints are from the one they were made of, on held-out tokens, one layer in memory at a time.

Perplexity exp(mean -log p(token)); the Kullback-Leibler divergence KL(reference ‖ other) of the predictions at each
position, which sees what perplexity cannot (errors that cancel); the share of positions whose likeliest token is the
same; and, after each layer, the mean squared difference of the hidden states relative to the reference's own.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plimsoll.api.cache_loss import recommended_cache
from plimsoll.api.errors import SpecError
from plimsoll.api.job_budget import LOGIT_ROWS
from plimsoll.api.job_progress import CacheFigures, Evaluation, Figures
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import HeldCache
from plimsoll.api.quantity import format_bytes
from plimsoll.quantjob.data import Tokens
from plimsoll.quantjob.failures import kind_of
from plimsoll.quantjob.kept_evaluation import KeptEvaluation
from plimsoll.quantjob.steps import ComparedSteps, OnShare, Steps, silent
from plimsoll.quantjob.streamed import StreamedModel

#: Rows of logits that one thread compares in float64 at once.
ROWS = 4

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """One checkpoint beside the reference.

    Attributes:
        loss: float64 [P], -log p of each predicted token, nats.
        kl: float64 [P], KL(reference ‖ this) at each position, nats.
        agrees: bool [P], whether both find the same token likeliest.
        layer_error: after each layer, the squared error of the hidden states over the reference's squares; empty where
            there are none to compare.
        note: what the figures leave out, for people; empty for nothing.
    """

    loss: Array
    kl: Array
    agrees: npt.NDArray[np.bool_]
    layer_error: tuple[float, ...] = ()
    note: str = ""

    @property
    def perplexity(self) -> float:
        return _perplexity(self.loss)

    @property
    def kl_mean(self) -> float:
        return float(self.kl.mean())

    @property
    def kl_p99(self) -> float:
        return float(np.quantile(self.kl, 0.99))

    @property
    def top1_agreement(self) -> float:
        return float(self.agrees.mean())

    def figures(self) -> Figures:
        """As status pages and the operator have them. Raises SpecError where one of them is no finite number."""
        found = {
            "perplexity": self.perplexity, "kl_mean": self.kl_mean, "kl_p99": self.kl_p99,
            "top1_agreement": self.top1_agreement,
        }  # fmt: skip
        for name, value in found.items():
            if not 0 <= value <= 1e18:
                raise SpecError(
                    f"{name} is no number to judge by", field="evaluation", value=value,
                    fix="The checkpoint computes values that are not finite; quantize again with other settings",
                )  # fmt: skip
        return Figures(**found)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        loss: float64 [P] of the reference.
        others: by name, in the order they were given.
        caches: by precision, the model of that name in `cached` with such a cache, beside itself with one of floats.
        digest: of the tokens; source: where they come from; windows, length: their shape.
    """

    loss: Array
    others: Mapping[str, Compared]
    digest: str
    source: str
    windows: int
    length: int
    caches: Mapping[HeldCache, Compared] = field(default_factory=dict)
    cached: str = ""

    @property
    def perplexity(self) -> float:
        return _perplexity(self.loss)

    @property
    def positions(self) -> int:
        """Predictions that the figures are over."""
        return len(self.loss)

    def evaluation(self, name: str, nearest: str | None = None) -> Evaluation:
        """The figures of `others[name]`, beside those of round-to-nearest, as status pages have them."""
        after = self.others[name].figures()
        return Evaluation(
            tokens=self.positions,
            before=self.perplexity,
            after=after,
            round_to_nearest=None if nearest is None else self.others[nearest].figures(),
            increase=after.perplexity / self.perplexity - 1,
            caches=self.cache_figures() or None,
            recommended_cache=self.recommended_cache if self.caches else None,
        )

    def cache_figures(self) -> list[CacheFigures]:
        """Of each of `caches`. What is no finite number, or too large, is the largest number that figures have."""
        return [
            CacheFigures(
                precision=name,  # type: ignore[arg-type]
                perplexity=_bounded(one.perplexity), kl_mean=_bounded(one.kl_mean),
                top1_agreement=one.top1_agreement,
                increase=_bounded(one.perplexity / self.others[self.cached].perplexity - 1, -1),
            )
            for name, one in self.caches.items()
        ]  # fmt: skip

    @property
    def recommended_cache(self) -> HeldCache:
        return recommended_cache({one.precision: one.increase for one in self.cache_figures()})


def compare(
    reference: StreamedModel,
    others: Mapping[str, StreamedModel],
    tokens: Tokens,
    *,
    caches: Mapping[HeldCache, StreamedModel] | None = None,
    cached: str = "",
    batch: int | None = None,
    scratch: Path | None = None,
    kept: KeptEvaluation | None = None,
    progress: OnShare = silent,
    lengths: ComparedSteps | None = None,
) -> Comparison:
    """Run every model over the same tokens, side by side.

    Each holds one layer, then its head; the hidden states of all lie side by side. The figures depend on no number of
    threads.

    Args:
        others: checkpoints with the reference's vocabulary; each is named.
        caches: the checkpoint `cached` of `others` with caches of codes, by precision: measured beside itself.
        batch: windows computed at once; None for one a thread.
        scratch: a folder for the hidden states, 4 * S * L * hidden bytes a model; memory if None.
        kept: goes on from what it holds, and puts there what a later run goes on from; nothing outlives this process if
            None.
        progress: called before each part of the work, first with what was kept.
        lengths: about how long a layer and a window take, for `progress`; None counts multiply-adds.

    Raises:
        SpecError: a model predicts other tokens than the reference, or the tokens are too few.
        CheckpointError: a tensor cannot be read, or there is no room for the hidden states.
        OSError: what is kept cannot be written.
    """
    check_length(tokens.windows.shape[1], reference.facts)
    check_vocabularies(reference, others)
    caches = caches or {}
    models = [reference, *others.values(), *caches.values()]
    # What each model but the first is measured beside.
    beside = [0] * len(others) + [1 + [*others].index(cached) for _ in caches]
    ids = torch.from_numpy(tokens.windows)
    batch = batch or reference.workers.count
    passes = sum(model.num_layers for model in models)
    lengths = lengths or multiply_adds(reference.facts, len(models), *ids.shape)
    steps = Steps([lengths.layer] * passes + [lengths.window] * len(ids), progress)
    done = kept.done if kept else 0
    if done < passes + len(ids):
        steps.begin(done)
    hidden = [embedded(model, ids, batch, scratch, index, kept) for index, model in enumerate(models)]
    errors = [list(some) for some in kept.errors] if kept else [[] for _ in models]
    for layer in range(max(model.num_layers for model in models)):
        for index, (model, states) in enumerate(zip(models, hidden, strict=True)):
            if layer >= model.num_layers or (kept and layer < kept.layers[index]):
                continue
            run_layer(model, layer, states, batch, partial(steps.begin, done))
            alike = 0 < index <= len(others) and layer < reference.num_layers and states.shape == hidden[0].shape
            error = relative_error(reference, hidden[0], states) if alike else None
            errors[index] += [] if error is None else [error]
            if kept is not None:
                kept.keep_layer(index, states, error)
            done += 1
    windows = []
    for number in range(len(ids)):
        figures = kept.window(number) if kept else None
        if figures is None:
            steps.begin(done)
            figures = _predictions(models, beside, [states[number] for states in hidden], ids[number])
            if kept is not None:
                kept.keep_window(number, figures)
            done += 1
        windows.append(figures)
    progress(1.0, 1.0)
    loss, *rows = np.concatenate(windows, axis=1)
    compared = [
        Compared(rows[3 * place], rows[3 * place + 1], rows[3 * place + 2] != 0, tuple(errors[place + 1]))
        for place in range(len(beside))
    ]
    count, length = tokens.windows.shape
    return Comparison(
        loss, dict(zip(others, compared, strict=False)), tokens.digest, tokens.source, count, length,
        dict(zip(caches, compared[len(others) :], strict=True)), cached,
    )  # fmt: skip


def check_vocabularies(reference: StreamedModel, others: Mapping[str, StreamedModel]) -> None:
    """Raises SpecError where a model predicts other tokens than the reference."""
    for name, model in others.items():
        if model.facts.vocab_size != reference.facts.vocab_size:
            raise SpecError(
                f"has a vocabulary of {model.facts.vocab_size} tokens, the reference of {reference.facts.vocab_size}",
                field=name, fix="Compare checkpoints of one model",
            )  # fmt: skip


def check_length(length: int, facts: ModelFacts, field: str = "--seqlen") -> None:
    """Raises SpecError where windows of `length` tokens predict nothing, or exceed what the model was trained for."""
    if length < 2:
        raise SpecError("must be 2 or more, to predict a token from one before it", field=field, value=length)
    if length > facts.max_position:
        raise SpecError(
            f"is longer than the {facts.max_position} positions the model was trained for", field=field, value=length,
            fix=f"Use {facts.max_position} or less",
        )  # fmt: skip


def run_layer(
    model: StreamedModel, index: int, hidden: Tensor, batch: int, progress: OnShare = silent
) -> None:  # fmt: skip
    """`hidden` float32 [S, L, hidden] through layer `index`, in place, `batch` windows at once."""
    weights = model.layer(index)
    for start in range(0, len(hidden), batch):
        progress(start / len(hidden), min(1.0, (start + batch) / len(hidden)))
        some = hidden[start : start + batch]
        some.copy_(model.run(weights, some))


def relative_error(model: StreamedModel, reference: Tensor, other: Tensor) -> float:
    """Sum of (other - reference)² over the sum of reference²; both float32 [S, L, hidden]."""

    def squares(index: int) -> tuple[float, float]:
        wanted = reference[index]
        apart = (other[index] - wanted).square().sum(dtype=torch.float64)
        return float(apart), float(wanted.square().sum(dtype=torch.float64))

    sums = model.workers.map(squares, range(len(reference)))
    apart, whole = (float(np.sum([pair[place] for pair in sums])) for place in (0, 1))
    return apart / whole if whole else float(apart > 0)


def _predictions(
    models: Sequence[StreamedModel], beside: Sequence[int], hidden: Sequence[Tensor], ids: Tensor
) -> Array:
    """The head over one window, in slices: `hidden` float32 [L, hidden] of each model, `ids` int64 [L].

    `beside`: of each model but the first, which one it is measured beside; that comes before it. Float64
    [1 + 3 * others, L - 1]: losses of the reference; of each other model losses, divergences, and 1 where it agrees.
    """
    targets = ids[1:]
    slices = []
    for start in range(0, len(targets), LOGIT_ROWS):
        stop = min(start + LOGIT_ROWS, len(targets))
        wanted = targets[start:stop]
        bases = {0: models[0].logits(hidden[0][start:stop])}
        rows: list[npt.NDArray[Any]] = [losses(models[0], bases[0], wanted)]
        for index, base in enumerate(beside, start=1):
            model = models[index]
            # One checkpoint with other linears or another cache has the head of the same: it is held once.
            head = next(one for one in models if one.checkpoint is model.checkpoint)
            logits = head.logits(hidden[index][start:stop])
            rows += [losses(model, logits, wanted), *divergences(model, bases[base], logits)]
            if index in beside:
                bases[index] = logits
        slices.append(np.stack(rows, dtype=np.float64))
    return np.concatenate(slices, axis=1)


def losses(model: StreamedModel, logits: Tensor, targets: Tensor) -> Array:
    """-log p of `targets` int64 [R] under `logits` float32 [R, vocab]; float64 [R]."""

    def some(start: int) -> Tensor:
        rows = logits[start : start + ROWS].to(torch.float64)
        chosen = rows.gather(1, targets[start : start + ROWS, None]).squeeze(1)
        return torch.logsumexp(rows, 1) - chosen

    return _joined(model, some, len(logits)).numpy()


def divergences(model: StreamedModel, reference: Tensor, other: Tensor) -> tuple[Array, npt.NDArray[np.bool_]]:
    """KL(reference ‖ other), float64 [R] in nats, and whether the likeliest token is the same, of logits [R, vocab]."""

    def some(start: int) -> Tensor:
        wanted = torch.log_softmax(reference[start : start + ROWS].to(torch.float64), 1)
        given = torch.log_softmax(other[start : start + ROWS].to(torch.float64), 1)
        # Rounding alone can bring a sum of nothing below zero.
        return (wanted.exp() * (wanted - given)).sum(1).clamp_(min=0)

    kl = _joined(model, some, len(reference)).numpy()
    return kl, (reference.argmax(1) == other.argmax(1)).numpy()


def _joined(model: StreamedModel, work: Callable[[int], Tensor], count: int) -> Tensor:
    return torch.cat(model.workers.map(work, range(0, count, ROWS)))


def embedded(
    model: StreamedModel, ids: Tensor, batch: int, scratch: Path | None, index: int, kept: KeptEvaluation | None
) -> Tensor:
    """float32 [S, L, hidden]: what the first layer reads, or where an earlier run had come to."""
    if scratch is None and not (kept and kept.layers[index]):
        return model.embed(ids)
    shape = (*ids.shape, model.facts.hidden_size)
    held = torch.empty(shape) if scratch is None else _on_disk(scratch, shape, index)
    if kept is None or not kept.restore(index, held):
        for start in range(0, len(ids), batch):
            held[start : start + batch] = model.embed(ids[start : start + batch])
    return held


def _on_disk(folder: Path, shape: tuple[int, ...], index: int) -> Tensor:
    """float32 in a file without a name: it is gone when the tensor is, however the process ends."""
    path = folder / f".evaluation-{index}.f32"
    try:
        with open(path, "wb") as file:
            # Room is taken before anything is computed: a full disk found while a map is written ends the process.
            os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        mapped = np.memmap(path, np.float32, "r+", shape=shape)
    except OSError as error:
        raise kind_of(error)(
            f"hidden states of {format_bytes(4 * math.prod(shape))} cannot be written: {error.strerror or error}",
            field="scratch", value=str(folder), fix="Free space there, or use fewer or shorter windows",
        ) from None  # fmt: skip
    finally:
        path.unlink(missing_ok=True)
    return torch.from_numpy(mapped)


def multiply_adds(facts: ModelFacts, models: int, windows: int, length: int) -> ComparedSteps:
    """Multiply-adds of a layer over all windows, and of the head over one."""
    width = facts.num_heads * facts.head_dim
    layer = 2 * facts.hidden_size * (width + facts.num_kv_heads * facts.head_dim)
    layer += 3 * facts.hidden_size * facts.intermediate_size + length * width
    return ComparedSteps(windows * length * layer, models * length * facts.hidden_size * facts.vocab_size)


def _bounded(value: float, least: float = 0) -> float:
    return max(least, value) if value <= 1e18 else 1e18


def _perplexity(loss: Array) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(loss.mean()))
