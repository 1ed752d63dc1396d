"""The model from the first layer to the last, one in memory at a time, so that a kill at any instant costs one layer.

In `folder`: `output/` with a shard for what lies outside the layers and one for each layer, `hidden-*.f32`, and
`state.json`. After each layer its shard, then the hidden states, then the state reach the disk: the state never counts
on what is not there. After the last layer the shards are merged into files of the usual size. The bytes depend on
neither the interruptions, the threads, the processes, the memory nor the size of a batch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.quantjob.crew import Crew
from plimsoll.quantjob.data import Tokens
from plimsoll.quantjob.failures import writing
from plimsoll.quantjob.groups import groupings_of
from plimsoll.quantjob.layer_quantizer import LayerQuantizer, QuantizedLayer, rounded
from plimsoll.quantjob.merge import forget_plan, merged
from plimsoll.quantjob.output_tensors import OutputTensors
from plimsoll.quantjob.recipe import Recipe
from plimsoll.quantjob.rounding import MOST_SCALE, Rounding
from plimsoll.quantjob.shards import Entry, write_shard
from plimsoll.quantjob.state import State, fingerprint, load_state, weights_digest
from plimsoll.quantjob.states import HiddenStates
from plimsoll.quantjob.steps import OnShare, Steps, silent
from plimsoll.quantjob.streamed import StreamedModel
from plimsoll.quantjob.workers import Workers


@dataclass(frozen=True)
class WalkPlan:
    """How much is computed and held at once. Nothing of it decides a bit of the output.

    Attributes:
        batch: sequences computed at once.
        in_memory: hold the hidden states in memory too, not on disk alone.
    """

    batch: int = 1
    in_memory: bool = True


#: (layers written, layers there are, seconds worked)
OnLayer = Callable[[int, int, float], None]
#: Bytes of tensors in a file, as transformers cuts them.
SHARD_BYTES = 5_000_000_000


class Walk:
    """One quantization of the layers of `checkpoint`, going on from what `folder` holds.

    Args:
        tokens: what calibrates; None for a recipe that looks at no text.
        folder: of this work alone; made if it is not there.
        weights: `weights_digest` of the checkpoint, where it is known already.
        lengths: seconds of the steps of a layer, as `forecast.layer_steps` has them; for the progress alone.
        shard_bytes: most bytes of tensors in a file of the output.
        crew: what shares the searches; this process alone if None.

    Raises:
        CheckpointError: the checkpoint cannot be read, or `folder` holds other work.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        tokens: Tokens | None,
        folder: Path,
        plan: WalkPlan,
        workers: Workers,
        weights: str | None = None,
        lengths: Sequence[float] = (),
        shard_bytes: int = SHARD_BYTES,
        crew: Crew | None = None,
    ) -> None:
        self.model = StreamedModel(checkpoint, workers=workers)
        self.crew = crew or Crew(1, workers)
        self.recipe = recipe
        self.folder = folder
        self.plan = plan
        self._lengths, self._shard_bytes = lengths, shard_bytes
        self.tokens = tokens if recipe.calibrates and groupings_of(self.model.facts) else None
        self._stamps = _stamps(checkpoint)
        self._tensors = OutputTensors(checkpoint, recipe)
        identity = fingerprint(
            checkpoint,
            weights or weights_digest(checkpoint, workers),
            recipe,
            self.tokens.digest if self.tokens else None,
            self.crew.kind,
        )
        (folder / "output").mkdir(parents=True, exist_ok=True)
        self.state = load_state(folder, identity) or State(identity)

    @property
    def layers(self) -> int:
        """Decoder layers there are."""
        return self.model.num_layers

    def run(
        self, on_layer: OnLayer = lambda done, of, seconds: None, proceed: Callable[[], None] = lambda: None,
        progress: OnShare = silent,
    ) -> State:  # fmt: skip
        """Every layer that is left, and the files of the output.

        Args:
            on_layer: called at the beginning and after each layer.
            progress: called before each step of a layer, with shares of all layers.
            proceed: called before anything of a layer is kept; raises where this process may not write any more.

        Raises:
            CheckpointError: a tensor cannot be read or holds what cannot be quantized, the source changed meanwhile, or
                the disk is full. What is done stays, and a later run goes on from it.
        """
        with writing(self.folder):
            self._run(on_layer, proceed, progress)
            self.state.shards = merged(self.folder, self.state.shards, self._shard_bytes, proceed)
            self.state.save(self.folder)
            forget_plan(self.folder)
            return self.state

    def _run(self, on_layer: OnLayer, proceed: Callable[[], None], progress: OnShare) -> None:
        state, began = self.state, time.monotonic() - self.state.seconds
        states = self._hidden_states()
        if not state.shards:
            if states is not None:
                self._embed(states)
            self._write(0, self._tensors.outer())
            state.seconds = time.monotonic() - began
            state.save(self.folder)
        on_layer(state.layers, self.layers, state.seconds)
        for index in range(state.layers, self.layers):
            steps = Steps([1.0] * self.layers, progress)
            layer = self._quantize(index, states, partial(steps.begin, index))
            self._check_unchanged()
            proceed()
            self._write(index + 1, self._tensors.layer(index, layer))
            if states is not None and index + 1 < self.layers:
                states.keep(index + 1)
            state.layers = index + 1
            state.seconds = time.monotonic() - began
            state.report.append({"layer": index, "groupings": [asdict(entry) for entry in layer.report]})
            state.save(self.folder)
            del layer
            on_layer(state.layers, self.layers, state.seconds)
        if states is not None:
            states.remove()

    def _hidden_states(self) -> HiddenStates | None:
        if self.tokens is None:
            return None
        shape = (*self.tokens.windows.shape, self.model.facts.hidden_size)
        return HiddenStates(self.folder, shape, in_memory=self.plan.in_memory)

    def _embed(self, states: HiddenStates) -> None:
        assert self.tokens is not None
        ids = torch.from_numpy(self.tokens.windows)
        states.start()
        for start, stop in states.batches(max(1, (1 << 20) // ids.shape[1])):
            states.write(start, self.model.embed(ids[start:stop]))
        states.keep(0)

    def _quantize(self, index: int, states: HiddenStates | None, progress: OnShare) -> QuantizedLayer:
        with torch.inference_mode():
            weights = self.model.layer(index, at_once=False)
            if states is None:
                progress(0.0, 1.0)
                layer = rounded(weights, Rounding(self.recipe.bits, self.recipe.group_size), self.model.workers)
            else:
                states.begin(index)
                layer = LayerQuantizer(
                    self.model.math(states.shape[1]), self.recipe, groupings_of(self.model.facts),
                    self._tensors.norm_dtype(index), self.model.workers, self.crew, self.plan.batch, self._lengths,
                ).quantize(weights, states, progress)  # fmt: skip
        for role, coded in layer.linears.items():
            if not bool((coded.grid.scales <= MOST_SCALE).all()):
                raise too_large(f"layer {index}: {role}")
        return layer

    def _write(self, place: int, entries: Mapping[str, Entry]) -> None:
        name = f"part-{place + 1:05}-of-{self.layers + 1:05}.safetensors"
        shard = write_shard(self.folder / "output" / name, entries)
        self.state.shards = [*self.state.shards[:place], shard]

    def _check_unchanged(self) -> None:
        if _stamps(self.model.checkpoint) != self._stamps:
            raise CheckpointError(
                "changed while it was read", field=str(self.model.checkpoint.path),
                fix=f"Remove {self.folder} and start again, with a source that does not change",
            )  # fmt: skip


def too_large(where: str) -> CheckpointError:
    """The refusal of weights that no scale reaches."""
    return CheckpointError(
        "holds weights too large for a scale of float16", field=where,
        fix="Leave this checkpoint as it is; its weights are damaged or of another scale than any known",
    )  # fmt: skip


def _stamps(checkpoint: Checkpoint) -> list[tuple[str, int, int]]:
    try:
        found = [(path, path.stat()) for path in checkpoint.files()]
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", field=str(error.filename), fix="Complete the checkpoint"
        ) from None
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]
