"""The decoder's own layer on the torch table, for whole sequences in float32, cut where quantization looks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plimsoll.api.layer_tensors import FUSED, fused_roles
from plimsoll.api.model import Activation, LayerSpec, ModelFacts
from plimsoll.api.precision import CACHE_BITS, KEY_BITS, HeldCache
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.kernels.quantized_cache import dequantize, quantize
from plimsoll.runtime.kernels.table import AttentionBatch, Cache, Kernels
from plimsoll.runtime.kernels.torch_ops import ACTIVATIONS, mix_values, torch_kernels
from plimsoll.runtime.models import layer as arithmetic
from plimsoll.runtime.models.rope import rope_table
from plimsoll.runtime.models.weights import DecoderLayer, Norm

#: Rows that an activation is computed of at a time, in the place of its input.
_ROWS = 256


class LayerWeights(dict[str, Tensor]):
    """Float32 weights of one layer by role, as stored: `api/layer_tensors.py` names the roles; biases are
    `<role>_bias`. Matrices are [out, in]; a fused projection comes apart.

    Linears may be read when first asked for, by `weights[role]`: by one thread, before others run through them.

    Attributes:
        index: which layer.
        spec: its arithmetic.
    """

    def __init__(
        self,
        index: int,
        spec: LayerSpec,
        tensors: Mapping[str, Tensor],
        unread: Mapping[tuple[str, ...], Callable[[], Mapping[str, Tensor]]] | None = None,
    ) -> None:
        """Args: unread: what reads linears that are not there yet, by their roles."""
        super().__init__(tensors)
        self.index = index
        self.spec = spec
        self._unread = dict(unread or {})

    def __missing__(self, role: str) -> Tensor:
        for roles in self._unread:
            if role in roles:
                self.update(self._unread.pop(roles)())
                return self[role]
        raise KeyError(role)

    def drop(self, roles: Iterable[str]) -> None:
        """Free what is held of them. It is not read again."""
        for role in roles:
            self.pop(role, None)

    def decoder_layer(self) -> DecoderLayer:
        """The same as the decoder has it. Reads nothing: a linear is asked for when something runs through it."""
        norms = {role: self._norm(role) for role in self if role.endswith("_norm")}
        matrices = {matrix: _Parts(self, fused_roles(self.spec, matrix)) for matrix in FUSED}
        return DecoderLayer(self.spec, **matrices, **norms, **dict.fromkeys(f"{matrix}_bias" for matrix in FUSED))  # type: ignore[arg-type]

    def _norm(self, role: str) -> Norm:
        spec, weight = self.spec.norm, self[role]
        return Norm(spec, weight + spec.offset if spec.offset else weight, self.get(f"{role}_bias"))


@dataclass(frozen=True)
class _Parts:
    """A fused matrix and its bias, each role in a tensor of its own."""

    weights: LayerWeights
    roles: tuple[str, ...]


def _linear(x: Tensor, parts: Any, bias: Tensor | None) -> Tensor:
    """x [L, K] through the linears of all roles of `_Parts`, with their own biases: side by side, [L, N]."""
    weights = [parts.weights[role] for role in parts.roles]
    out = x.new_empty(len(x), sum(map(len, weights)))
    places = out.split([len(weight) for weight in weights], dim=1)
    for role, weight, place in zip(parts.roles, weights, places, strict=True):
        added = parts.weights.get(f"{role}_bias")
        if added is None:
            torch.mm(x, weight.T, out=place)
        else:
            torch.addmm(added, x, weight.T, out=place)
    return out


def _activate(x: Tensor, activation: Activation, gated: bool) -> Tensor:
    """As the table's own, in the place of its input: a whole sequence's is the largest tensor there is."""
    gate, up = x.chunk(2, dim=-1) if gated else (x, None)
    for start in range(0, len(gate), _ROWS):
        rows = gate[start : start + _ROWS]
        rows.copy_(ACTIVATIONS[activation](rows))
        if up is not None:
            rows.mul_(up[start : start + _ROWS])
    return gate


def _write_kv(k: Tensor, v: Tensor, cache: Cache, slots: Tensor) -> None:
    assert isinstance(cache, LayerCache)
    cache.keys.copy_(k)
    cache.values.copy_(v)


def _attention(
    q: Tensor, cache: Cache, batch: AttentionBatch, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of one whole sequence, q [L, H, D] over keys and values [L, G, D] -> [L, H * D]."""
    assert isinstance(cache, LayerCache)
    length = len(q)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, cache.keys, cache.values))
    seen = None if window is None or window >= length else _in_window(length, window)
    if softcap is None:
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=True
        )
    else:
        # Scores that are capped exist whole: of one head at a time.
        group = q.shape[1] // k.shape[1]
        mixed = torch.empty_like(q)
        for head in range(q.shape[1]):
            keys, values = k[:, head // group], v[:, head // group]
            mixed[:, head] = mix_values(q[:, head], keys, values, seen, scale, softcap, causal=seen is None)
    return mixed[0].transpose(0, 1).reshape(length, -1)


def table_of(cache: HeldCache) -> Kernels:
    """`TABLE`, where keys and values are what a cache of that precision gives back of them."""
    if cache == "float":
        return TABLE
    bits = CACHE_BITS[cache]

    def held(x: Tensor, bits: int) -> Tensor:
        return dequantize(*quantize(x, bits), bits, x.shape[-1], torch.float32)

    def write_kv(k: Tensor, v: Tensor, cache: Cache, slots: Tensor) -> None:
        _write_kv(held(k, KEY_BITS[bits]), held(v, bits), cache, slots)

    return replace(TABLE, write_kv=write_kv)


def _in_window(length: int, window: int) -> Tensor:
    """bool [L, L]: which positions each position sees."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window)


#: The torch table for one whole sequence in place of paged ones: keys and values lie as they were made.
TABLE = replace(
    torch_kernels("cpu", torch.float32), linear=_linear, activate=_activate, write_kv=_write_kv, attention=_attention
)  # fmt: skip
_NONE = torch.empty(0, dtype=torch.int64)
_WHOLE = AttentionBatch(_NONE, _NONE, _NONE, _NONE, [], [])


@dataclass
class LayerMath:
    """The layers of a model for sequences of `length` tokens, each method for one sequence."""

    facts: ModelFacts
    length: int
    table: Kernels = TABLE
    """Whose cache attention reads."""
    _angles: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, rope in enumerate(self.facts.ropes):
            self._angles[place] = rope_table(self.facts, rope, self.length)

    def normed(self, weights: LayerWeights, hidden: Tensor) -> Tensor:
        """(hidden [L, hidden]) -> what q, k and v see."""
        return arithmetic.norm(TABLE, hidden, weights.decoder_layer().attention_norm)

    def mix(self, weights: LayerWeights, hidden: Tensor) -> Tensor:
        """(hidden [L, hidden]) -> what o sees, [L, heads * head_dim]."""
        layer = weights.decoder_layer()
        normed = arithmetic.norm(TABLE, hidden, layer.attention_norm)
        shape = (len(hidden), self.facts.num_kv_heads, self.facts.head_dim)
        cache = LayerCache(torch.empty(shape), torch.empty(shape))
        return arithmetic.mix(self.table, self.facts, layer, normed, self._of(weights, len(hidden)), cache, _WHOLE)

    def attend(self, weights: LayerWeights, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden [L, hidden]) -> (the residual after attention, what gate and up see), both [L, hidden]."""
        layer, residual = weights.decoder_layer(), hidden.clone()
        added = TABLE.linear(self.mix(weights, hidden), layer.output, None)
        return residual, arithmetic.add(TABLE, layer, added, layer.attention_post_norm, residual, layer.mlp_norm)

    def activated(self, weights: LayerWeights, residual: Tensor) -> Tensor:
        """(the residual after attention [L, hidden]) -> what down sees, [L, intermediate]."""
        layer = weights.decoder_layer()
        return arithmetic.activated(TABLE, layer, arithmetic.norm(TABLE, residual, layer.mlp_norm))

    def finish(self, weights: LayerWeights, residual: Tensor) -> Tensor:
        """(the residual after attention [L, hidden]) -> a new one after the MLP."""
        layer, residual = weights.decoder_layer(), residual.clone()
        added = TABLE.linear(self.activated(weights, residual), layer.down, None)
        arithmetic.add(TABLE, layer, added, layer.mlp_post_norm, residual, None)
        return residual

    def run(self, weights: LayerWeights, hidden: Tensor) -> Tensor:
        """One sequence through the layer: [L, hidden] -> a new [L, hidden]."""
        return self.finish(weights, self.attend(weights, hidden)[0])

    def _of(self, weights: LayerWeights, length: int) -> arithmetic.Angles:
        rope = weights.spec.rope
        if rope is None:
            return None
        cos, sin = self._angles[self.facts.ropes.index(rope)]
        return cos[:length], sin[:length]
