"""One decoder layer from float weights to codes: groupings in the order of the forward pass, each fed what the
quantized ones before it give."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from plimsoll.api.families.family import Grouping
from plimsoll.api.layer_tensors import FUSED, LINEARS, fused_roles, role_shape
from plimsoll.quantjob import groups
from plimsoll.quantjob.coding import Coded, Coder, nearest, runs_of, stacked
from plimsoll.quantjob.crew import Crew
from plimsoll.quantjob.gram import Gram
from plimsoll.quantjob.layer import LayerMath, LayerWeights
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.rounding import Grid, Rounding, stored_scale
from plimsoll.quantjob.search import Candidate, Judge, best, candidates, identity, sampled, weight_magnitude
from plimsoll.quantjob.states import HiddenStates
from plimsoll.quantjob.steps import OnShare, Steps, silent
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.machine.heap import return_freed_memory

#: By the first target of a grouping: linears that nothing runs through from the time its inputs are counted until it is
#: coded. Of attention nothing does after either.
PASSED = dict.fromkeys(("gate", "up"), ("q", "k", "v", "o")) | {"down": ("gate", "up")}


@dataclass
class GroupingReport:
    """What was decided for the linears of one grouping.

    Attributes:
        roles: of the linears.
        scale: the grid its scale comes from; `identity` for none, `fallback` where round-to-nearest was better.
        exponent: in that grid.
        loss: squared error of their outputs on the calibration text, as a share of round-to-nearest's.
    """

    roles: tuple[str, ...]
    scale: str
    exponent: float
    loss: float


@dataclass
class QuantizedLayer:
    """`linears` by role; `weights` holds the norms and biases as they are to be written, and of the linears what passes
    run through, in the end none."""

    weights: LayerWeights
    linears: dict[str, Coded] = field(default_factory=dict)
    report: list[GroupingReport] = field(default_factory=list)

    def put(self, role: str, coded: Coded) -> None:
        """From here on the linear of that role is what its codes stand for."""
        self.linears[role] = coded
        if role in self.weights:
            coded.write_to(self.weights[role])

    def hold(self, role: str) -> None:
        """Its values are in `weights` again."""
        coded = self.linears[role]
        self.weights[role] = torch.empty(coded.codes.shape)
        coded.write_to(self.weights[role])


def rounded(weights: LayerWeights, rounding: Rounding, workers: Workers) -> QuantizedLayer:
    """Every linear rounded to nearest: what needs no text."""
    layer = QuantizedLayer(weights)
    for role in (role for matrix in FUSED for role in fused_roles(weights.spec, matrix)):
        layer.linears[role] = nearest(weights[role], rounding, workers)
        weights.drop((role,))
    return layer


@dataclass(frozen=True)
class LayerQuantizer:
    """AWQ with everything that `recipe` asks for.

    Attributes:
        groupings: of the architecture.
        workers, crew: what passes run on, and what searches and codes do.
        norm_dtype: precision that norms are written in; scales are chosen so that folding into them is exact.
        batch: sequences computed at once. No bit depends on it.
        lengths: seconds of the steps of a layer, as `forecast.layer_steps` has them; for the progress alone.
    """

    math: LayerMath
    recipe: Recipe
    groupings: Sequence[Grouping]
    norm_dtype: torch.dtype
    workers: Workers
    crew: Crew
    batch: int
    lengths: Sequence[float] = ()

    def quantize(self, weights: LayerWeights, states: HiddenStates, progress: OnShare = silent) -> QuantizedLayer:
        """Quantize `weights`, whose linears are read when they are needed, and run the sequences of `states` through
        what came of it."""
        layer = QuantizedLayer(weights)
        # Reading, two steps a grouping, and the last pass.
        count = 2 * len(self.groupings) + 2
        steps = Steps(self.lengths if len(self.lengths) == count else [1.0] * count, progress)
        for place, grouping in enumerate(self.groupings):
            steps.begin(1 + 2 * place if place else 0)
            layer.report.append(self._group(grouping, layer, states, steps, 1 + 2 * place))
            return_freed_memory()
        for role in fused_roles(weights.spec, "gate_up"):
            layer.hold(role)
        steps.begin(count - 1)
        self.workers.map(partial(self._add_mlp, weights, states), range(states.shape[0]))
        weights.drop(LINEARS)
        return layer

    def _group(
        self, grouping: Grouping, layer: QuantizedLayer, states: HiddenStates, steps: Steps, step: int
    ) -> GroupingReport:
        weights = layer.weights
        gram = self._gram(grouping.targets[0], weights, states, partial(steps.begin, step))
        steps.begin(step + 1)
        weights.drop(PASSED.get(grouping.targets[0], ()))
        matrices = [weights[role] for role in grouping.targets]
        channels = groups.gather(grouping, gram.mean_magnitude, self.math.facts)
        chosen = identity(len(channels))
        if self.recipe.search_scale:
            chosen = self._search(grouping, weights, gram, channels)
        columns = self._columns(grouping, chosen.scale, weights)
        coder = Coder(gram, columns, self.recipe.group_size, self.recipe.clip, self.recipe.compensate)
        cut = [runs_of(matrix) for matrix in matrices]
        runs = self.crew.share(coder, [run for some in cut for run in some])
        loss, before = sum(run.loss for run in runs), sum(run.nearest_loss for run in runs)
        if loss < before:
            left = iter(runs)
            found = [stacked([next(left).coded for _ in some]) for some in cut]
        else:
            chosen = Candidate("fallback", 0.0, torch.ones_like(channels))
            found, loss = [nearest(matrix, self._rounding, self.workers) for matrix in matrices], before
        self._fold(grouping, chosen.scale, layer)
        for role, coded in zip(grouping.targets, found, strict=True):
            layer.put(role, coded)
        return GroupingReport(grouping.targets, chosen.name, chosen.exponent, loss / before if before else 1.0)

    def _gram(self, role: str, weights: LayerWeights, states: HiddenStates, progress: OnShare) -> Gram:
        """Of what the linear of that role sees."""
        gram = Gram(role_shape(self.math.facts, role)[1], self.recipe.group_size)
        for start, stop in states.batches(self.batch):
            progress(start / states.shape[0], stop / states.shape[0])
            gram.add(self._inputs(role, weights, states, start, stop), self.workers)
        return gram

    def _search(self, grouping: Grouping, weights: LayerWeights, gram: Gram, channels: Tensor) -> Candidate:
        matrices = [weights[role] for role in grouping.targets]
        magnitude = weight_magnitude(matrices, self.recipe.group_size)
        found = candidates(channels, groups.gather(grouping, magnitude, self.math.facts))
        scales = [self._columns(grouping, one.scale, weights) for one in found]
        return best(found, self.crew.share(Judge(sampled(matrices), self._rounding, gram), scales))

    @property
    def _rounding(self) -> Rounding:
        return Rounding(4, self.recipe.group_size)

    def _columns(self, grouping: Grouping, scale: Tensor, weights: LayerWeights) -> Tensor:
        """What a scale of the source's channels multiplies the targets' columns by, once it is folded."""
        allowed = groups.foldable(grouping, scale, weights, self.norm_dtype)
        return groups.spread(grouping, allowed, self.math.facts)

    def _fold(self, grouping: Grouping, scale: Tensor, layer: QuantizedLayer) -> None:
        allowed = groups.foldable(grouping, scale, layer.weights, self.norm_dtype)
        groups.fold(grouping, allowed, layer.weights)
        if grouping.source in layer.linears:
            # Its rows were coded already. The codes of a row are the same for any multiple of it: its scales shrink.
            coded = layer.linears[grouping.source]
            grid = Grid(coded.grid.bits, stored_scale(coded.grid.scales / allowed[:, None]), coded.grid.zeros)
            layer.put(grouping.source, Coded(grid, coded.codes))

    def _inputs(self, role: str, weights: LayerWeights, states: HiddenStates, start: int, stop: int) -> list[Tensor]:
        """What the linear of that role sees of sequences [start, stop), each [L, K]. The residual after attention is
        written on the way to the MLP."""
        math = self.math

        def one(index: int) -> Tensor:
            if role == "down":
                return math.activated(weights, states.outputs(index, index + 1)[0])
            hidden = states.inputs(index, index + 1)[0]
            if role == "q":
                return math.normed(weights, hidden)
            if role == "o":
                return math.mix(weights, hidden)
            attended, normed = math.attend(weights, hidden)
            states.write(index, attended[None])
            return normed

        return self.workers.map(one, range(start, stop))

    def _add_mlp(self, weights: LayerWeights, states: HiddenStates, index: int) -> None:
        """What the layer ends with in place of the residual after attention, of one sequence."""
        states.write(index, self.math.finish(weights, states.outputs(index, index + 1)[0])[None])
