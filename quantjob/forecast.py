"""How long the layers and the evaluation take, from the real functions run on small pieces of the first layer.

Measuring takes about a second for a small model and some ten seconds for one of billions of weights. Forecasts are for
the bar and the time left until a phase has a pace of its own.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from plimsoll.api.layer_tensors import FUSED, fused_roles, role_shape
from plimsoll.api.model import ModelFacts
from plimsoll.quantjob.coding import ROWS as CODED_ROWS
from plimsoll.quantjob.coding import Coder, runs_of
from plimsoll.quantjob.crew import Crew
from plimsoll.quantjob.evaluation import ROWS as COMPARED_ROWS
from plimsoll.quantjob.evaluation import divergences, losses
from plimsoll.quantjob.gram import WIDEST, Gram
from plimsoll.quantjob.groups import groupings_of
from plimsoll.quantjob.layer import LayerWeights
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.rounding import Rounding, fit
from plimsoll.quantjob.search import JUDGED_ROWS, STEPS, Judge
from plimsoll.quantjob.search import ROWS as SEARCHED_ROWS
from plimsoll.quantjob.steps import ComparedSteps
from plimsoll.quantjob.streamed import StreamedModel

#: Multiply-adds that one thread is timed on, and bytes that the disk is.
_ENOUGH, _WRITTEN = 2e9, 4 << 20
#: Attention beside the multiply-adds of its two products, and a head that is converted piece by piece.
_SOFTMAX, _CONVERTED = 2.0, 1.2

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rates:
    """Seconds on all threads together, of all processes for what they share.

    Attributes:
        read: of a weight, from the file to float32.
        product: of a multiply-add in a pass.
        moment: of a multiply-add in second moments.
        judged: by columns (hidden, intermediate): of a row that one candidate of a search is judged on.
        coded: by columns: of a row that gets its codes.
        rounded: of a weight that is rounded to nearest.
        compared: of the predictions of one position by two models.
        written: of a byte that reaches the disk.
    """

    read: float
    product: float
    moment: float
    judged: tuple[float, float]
    coded: tuple[float, float]
    rounded: float
    compared: float
    written: float


def measure(model: StreamedModel, recipe: Recipe, length: int, folder: Path | None, crew: Crew | None = None) -> Rates:
    """Time each kind of work on the first layer of `model`, with windows of `length` tokens.

    Args:
        folder: where states are going to be written; None for nowhere.
        crew: what is going to share the searches; this process alone if None.

    Raises:
        CheckpointError: the layer cannot be read.
    """
    facts, workers = model.facts, model.workers
    size = facts.hidden_size * facts.intermediate_size
    with torch.inference_mode():
        weights, reading = _timed(lambda: _mlp(model))
        tokens = int(min(length, max(16, _ENOUGH / (3 * size))))
        inputs = [torch.rand(tokens, facts.hidden_size) for _ in range(workers.count)]
        math = model.math(length)
        workers.map(lambda one: math.finish(weights, one[:16]), inputs)
        _, passing = _timed(lambda: workers.map(lambda one: math.finish(weights, one), inputs))
        moment, judged, coded = 0.0, (0.0, 0.0), (0.0, 0.0)
        if recipe.calibrates:
            moment, judged, coded = _searching(model, recipe, weights, tokens, crew or Crew(1, workers))
        rows = weights["up"][:CODED_ROWS]
        rounding = Rounding(recipe.bits, recipe.group_size)
        _, nearest = _timed(lambda: fit(rows, rounding).nearest(rows))
        logits = torch.rand(COMPARED_ROWS * workers.count, facts.vocab_size)
        targets = torch.zeros(len(logits), dtype=torch.int64)
        _, compared = _timed(lambda: (losses(model, logits, targets), divergences(model, logits, logits)))
    return Rates(
        read=reading / (3 * size), product=passing / (len(inputs) * tokens * 3 * size), moment=moment, judged=judged,
        coded=coded, rounded=nearest / rows.numel(), compared=compared / len(logits),
        written=0.0 if folder is None else _writing(folder),
    )  # fmt: skip


def _mlp(model: StreamedModel) -> LayerWeights:
    """The largest linears of the first layer: no more is held than while it is quantized."""
    weights = model.layer(0, at_once=False)
    for role in (*fused_roles(weights.spec, "gate_up"), "down"):
        weights[role]
    return weights


def _searching(
    model: StreamedModel, recipe: Recipe, weights: LayerWeights, tokens: int, crew: Crew
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """(seconds of a multiply-add in moments, (hidden, intermediate) of a judged row, the same of a coded one)."""
    workers, moment = model.workers, 0.0
    judged, coded = [], []
    rounding = Rounding(4, recipe.group_size)
    for role in ("up", "down"):
        matrix = weights[role]
        columns = matrix.shape[1]
        gram = Gram(columns, recipe.group_size)
        seen = [torch.rand(tokens, columns) for _ in range(workers.count)]
        _, counting = _timed(lambda gram=gram, seen=seen: gram.add(seen, workers))  # type: ignore[misc]
        moment = counting / (len(seen) * tokens * _moments(columns))
        one = torch.ones(columns)
        few = matrix[:SEARCHED_ROWS]
        judge = Judge([few], rounding, gram)
        coder = Coder(gram, one, recipe.group_size, recipe.clip, recipe.compensate)
        some = runs_of(matrix[: CODED_ROWS * crew.threads])
        # The others are still starting: what they do first says nothing of their pace.
        crew.share(judge, [one] * crew.threads)
        judged.append(_judging(judge, one, crew) / len(few))
        _, coding = _timed(lambda coder=coder, some=some: crew.share(coder, some))  # type: ignore[misc]
        coded.append(coding / sum(map(len, some)))
    return moment, (judged[0], judged[1]), (coded[0], coded[1])


def _judging(judge: Judge, scale: torch.Tensor, crew: Crew) -> float:
    """Seconds of a candidate, without what handing out takes: a search has many more candidates than these."""
    _, once = _timed(lambda: crew.share(judge, [scale] * crew.threads))
    _, whole = _timed(lambda: crew.share(judge, [scale] * 4 * crew.threads))
    return ((whole - once) / 3 if whole > once else whole / 4) / crew.threads


def _writing(folder: Path) -> float:
    """Seconds of a byte that is written and reaches the disk; 0 where none can be: the job itself reports that."""
    path = folder / ".pace"
    began = time.perf_counter()
    try:
        with open(path, "wb") as file:
            file.write(bytes(_WRITTEN))
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) / _WRITTEN
    except OSError:
        return 0.0
    finally:
        path.unlink(missing_ok=True)


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


@dataclass(frozen=True)
class Shape:
    """Multiply-adds of one layer for one token, by linear, and what else its work follows from."""

    rows: dict[str, int]
    columns: dict[str, int]

    @staticmethod
    def of(facts: ModelFacts) -> "Shape":
        """The matrices of a model's first layer."""
        # Families whose layers differ in size have none here.
        spec = facts.layers[0]
        shapes = {role: role_shape(facts, role) for matrix in FUSED for role in fused_roles(spec, matrix)}
        return Shape({role: rows for role, (rows, _) in shapes.items()}, {role: k for role, (_, k) in shapes.items()})

    def weights(self, roles: str = "") -> int:
        """Of the linears of these roles, which are apart by spaces; of all without any."""
        return sum(self.rows[role] * self.columns[role] for role in self.rows if not roles or role in roles.split())


def layer_steps(facts: ModelFacts, recipe: Recipe, rates: Rates, samples: int, length: int) -> tuple[float, ...]:
    """Seconds of the steps of one layer: reading; for each grouping its inputs, then its search and codes; the last
    pass with what is written."""
    shape = Shape.of(facts)
    whole = shape.weights()
    if not (recipe.calibrates and samples):
        return (whole * (rates.read + rates.rounded),)
    tokens = samples * length
    attention = _SOFTMAX * length * shape.rows["q"]
    # What is run through again to see the inputs of a grouping's first target.
    passes = {"o": shape.weights("q k v") + attention, "down": float(shape.weights("gate up"))}
    passes |= dict.fromkeys(("gate", "up"), shape.weights("q k v o") + attention)
    steps = [whole * rates.read]
    for grouping in groupings_of(facts):
        first = grouping.targets[0]
        wide, columns = first == "down", shape.columns[first]
        steps.append(tokens * (passes.get(first, 0.0) * rates.product + _moments(columns) * rates.moment))
        rows = [shape.rows[role] for role in grouping.targets]
        judged = sum(rows) // max(1, sum(rows) // JUDGED_ROWS) * (2 * STEPS + 1 if recipe.search_scale else 0)
        steps.append(judged * rates.judged[wide] + sum(rows) * rates.coded[wide])
    last = tokens * shape.weights("gate up down") * rates.product
    written = (4 * tokens * facts.hidden_size + whole * recipe.bits // 8) * rates.written
    return (*steps, last + written)


def compared_steps(
    facts: ModelFacts, rates: Rates, windows: int, length: int, models: int, *, nearest: bool
) -> ComparedSteps:
    """Seconds of an evaluation.

    Args:
        models: the reference and the others.
        nearest: one of them is rounded while it is read.
    """
    shape = Shape.of(facts)
    whole, tokens = shape.weights(), windows * length
    passed = tokens * (whole + _SOFTMAX * length * shape.rows["q"]) * rates.product
    layer = whole * rates.read + passed + 4 * tokens * facts.hidden_size * rates.written
    if nearest:
        layer += whole * rates.rounded / models
    head = _CONVERTED * facts.vocab_size * facts.hidden_size * rates.product
    return ComparedSteps(layer, length * (models * head + (models - 1) * rates.compared))


def _moments(columns: int) -> int:
    """Multiply-adds of a token in the second moments of so many columns."""
    return columns * min(columns, WIDEST)
