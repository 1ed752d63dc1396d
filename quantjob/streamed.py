"""A model run one decoder layer at a time: never more than one layer's weights in memory, in float32."""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod

import torch
from torch import Tensor

from plimsoll.api.errors import CheckpointError, SpecError
from plimsoll.api.families.family import Linear
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import LINEARS, has_bias, norm_sizes, role_shape
from plimsoll.api.model import LayerSpec
from plimsoll.api.precision import HeldCache
from plimsoll.checkpoint.checkpoint import Checkpoint, RawTensor
from plimsoll.quantjob.layer import TABLE, LayerMath, LayerWeights, table_of
from plimsoll.quantjob.rounding import Rounding, fit
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.models.decoder import finish_logits
from plimsoll.runtime.models.layer import norm
from plimsoll.runtime.models.loader import TORCH_DTYPES
from plimsoll.runtime.models.weights import Norm

#: Elements of the embedding or the head that are float32 at a time.
_PIECE = 4 * 1024 * 1024


def not_finite(where: str) -> CheckpointError:
    """The refusal of a tensor with such a value."""
    return CheckpointError(
        "holds values that are not finite", field=where,
        fix="Download the checkpoint again; weights like these give no answers",
    )  # fmt: skip


def runs(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, RawTensor, Tensor]]:
    """A tensor's rows by runs of about `_PIECE` elements: where each begins, as read, and as a float of some width.

    Raises:
        CheckpointError: it cannot be read, or holds no floats.
    """
    shape = checkpoint.tensors[name].shape
    step = max(1, _PIECE // max(1, prod(shape[1:])))
    for start in range(0, shape[0], step):
        raw = checkpoint.read(name, (start, min(start + step, shape[0])))
        yield start, raw, _floats(raw, name)


def _floats(raw: RawTensor, name: str) -> Tensor:
    if raw.dtype not in TORCH_DTYPES:
        raise CheckpointError("weights must be floating point", field=name, value=raw.dtype)
    return torch.from_numpy(raw.data).view(TORCH_DTYPES[raw.dtype])


class StreamedModel:
    """Forward pass of `checkpoint` (Hugging Face, GGUF or quantized), a layer at a time.

    Results depend on no number of threads, and a sequence's result on no other sequence.

    Attributes:
        facts: of the checkpoint.
        num_layers: decoder layers.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, round_to: Rounding | None = None, workers: Workers | None = None,
        cache: HeldCache = "float",
    ) -> None:  # fmt: skip
        """Reads nothing yet.

        Args:
            round_to: round each linear to nearest on reading: the figures of round-to-nearest without writing a file.
            workers: the threads to use; a pool of one thread a processor if None.
            cache: int8 and int4 round keys and values as such a cache does.
        """
        self._table = table_of(cache)
        self.checkpoint = checkpoint
        self.facts = checkpoint.facts
        self.num_layers = self.facts.num_layers
        self.workers = workers or Workers()
        self._names = find_family(self.facts.architecture).names
        self._round_to = round_to
        self._math: dict[int, LayerMath] = {}
        self._head: Tensor | None = None

    def math(self, length: int) -> LayerMath:
        """The layer's arithmetic for sequences of `length` tokens."""
        if length not in self._math:
            self._math = {length: LayerMath(self.facts, length, self._table)}
        return self._math[length]

    def embed(self, tokens: Tensor) -> Tensor:
        """(tokens int64 [S, L]) -> float32 [S, L, hidden]. Raises SpecError for a token the model does not have."""
        facts = self.facts
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < facts.vocab_size:
            raise SpecError(
                f"holds tokens outside the vocabulary of {facts.vocab_size}", field="tokens", value=int(tokens.max()),
                fix="Use the tokenizer that came with this checkpoint",
            )  # fmt: skip
        hidden, name = torch.empty(*tokens.shape, facts.hidden_size), f"{self._names.embedding}.weight"
        step = max(1, _PIECE // facts.hidden_size)
        for start in range(0, facts.vocab_size, step):
            here = (tokens >= start) & (tokens < start + step)
            if here.any():
                stop = min(start + step, facts.vocab_size)
                rows = _floats(self.checkpoint.read(name, (start, stop)), name)
                hidden[here] = rows[tokens[here] - start].to(torch.float32)
        return hidden if facts.embedding_multiplier == 1.0 else hidden.mul_(facts.embedding_multiplier)

    def layer(self, index: int, *, at_once: bool = True) -> LayerWeights:
        """Args: at_once: read the linears now, not when each is asked for.

        Raises CheckpointError for a tensor that cannot be read or holds a value that is not finite.
        """
        spec, prefix = self.facts.layers[index], self._names.layer.format(index)
        weights = LayerWeights(index, spec, self._vectors(prefix, spec), self._linears(prefix, spec))
        for role in LINEARS if at_once else ():
            if role != "gate" or spec.gated:
                weights[role]
        return weights

    def _vectors(self, prefix: str, spec: LayerSpec) -> dict[str, Tensor]:
        """Norms and biases by role."""
        found = {}
        for role in norm_sizes(self.facts, spec):
            found[role] = self._whole(f"{prefix}{self._names.norms[role]}.weight")
            if spec.norm.bias:
                found[f"{role}_bias"] = self._whole(f"{prefix}{self._names.norms[role]}.bias")
        for linear in self._names.linears:
            if has_bias(spec, linear.roles[0]):
                parts = self._apart(linear, spec, self._whole(f"{prefix}{linear.module}.bias"))
                found |= {f"{role}_bias": part for role, part in parts.items()}
        return found

    def _linears(self, prefix: str, spec: LayerSpec) -> dict[tuple[str, ...], Callable[[], dict[str, Tensor]]]:
        """What reads them, by their roles."""

        def read(linear: Linear) -> dict[str, Tensor]:
            return self._rounded(self._apart(linear, spec, self._whole(f"{prefix}{linear.module}.weight")))

        return {linear.roles: partial(read, linear) for linear in self._names.linears}

    def _rounded(self, linears: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._round_to is None:
            return linears
        return {role: fit(weight, self._round_to).nearest(weight) for role, weight in linears.items()}

    def run(self, weights: LayerWeights, hidden: Tensor) -> Tensor:
        """A micro-batch through a whole layer: float32 [S, L, hidden] -> a new one."""
        math = self.math(hidden.shape[1])
        return torch.stack(self.workers.map(lambda sequence: math.run(weights, sequence), hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """(hidden [R, hidden] of the last layer) -> float32 [R, vocab]: final norm and head, which stays in memory in
        the precision it is stored in."""
        if self._head is None:
            names, spec = self._names, self.facts.final_norm
            bias = self._whole(f"{names.final_norm}.bias") if spec.bias else None
            self._final_norm = Norm(spec, self._whole(f"{names.final_norm}.weight") + spec.offset, bias)
            self._head = self._in_pieces(f"{names.embedding if self.facts.tie_embeddings else names.head}.weight")
        normed = norm(TABLE, hidden, self._final_norm)
        step = max(1, _PIECE // self.facts.hidden_size)
        head = self._head
        starts = range(0, len(head), step)
        pieces = self.workers.map(lambda start: normed @ head[start : start + step].to(torch.float32).T, starts)
        return finish_logits(self.facts, torch.cat(pieces, 1))

    def _whole(self, name: str) -> Tensor:
        """Float32. Raises CheckpointError for a value that is not finite."""
        values = self._in_pieces(name, torch.float32)
        if not torch.isfinite(values).all():
            raise not_finite(f"{self.checkpoint.path}: {name}")
        return values

    def _in_pieces(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Rows by runs, as stored without a `dtype`: decoding blocks takes several times what comes of it."""
        values: Tensor | None = None
        for start, _, rows in runs(self.checkpoint, name):
            if values is None:
                values = torch.empty(self.checkpoint.tensors[name].shape, dtype=dtype or rows.dtype)
            values[start : start + len(rows)] = rows
        assert values is not None
        return values

    def _apart(self, linear: Linear, spec: LayerSpec, whole: Tensor) -> dict[str, Tensor]:
        """A stored linear's weight or bias by the roles of its rows."""
        facts = self.facts
        if linear.layout == "stacked":
            roles = [role for role in linear.roles if role != "gate" or spec.gated]
            parts = whole.split([role_shape(facts, role)[0] for role in roles])
            # Views: what is stored together is read, and dropped, together.
            return dict(zip(roles, parts, strict=True))
        group = facts.num_heads // facts.num_kv_heads
        heads = whole.unflatten(0, (facts.num_kv_heads, group + 2, facts.head_dim))
        grouped = heads[:, :group], heads[:, group : group + 1], heads[:, group + 1 :]
        return {role: part.flatten(0, 2).contiguous() for role, part in zip("qkv", grouped, strict=True)}
