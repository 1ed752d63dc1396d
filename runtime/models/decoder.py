"""The one decoder: every architecture of the registry is this forward pass with other weights and facts."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plimsoll.api.model import ModelFacts
from plimsoll.runtime.kernels.table import AttentionBatch, DecoderLayer, Kernels, KVCaches, Weight


class Decoder:
    """Token ids in, logits out; no state of its own besides the weights and a count of what is done.

    Args:
        facts: shapes and constants.
        kernels: the table every operation goes through.
        rope: (cos, sin) as `rope_table` makes them, on the table's device; as many rows as there are positions.
        embedding: [vocab, hidden]; the same object as `head` where they are tied.

    Attributes:
        done: layers and heads computed so far. It moves in the middle of a step, so that a long one is no hang.
    """

    def __init__(
        self,
        facts: ModelFacts,
        kernels: Kernels,
        rope: tuple[Tensor, Tensor],
        embedding: Weight,
        layers: Sequence[DecoderLayer],
        final_norm: Tensor,
        head: Weight,
    ) -> None:
        self.facts = facts
        self.kernels = kernels
        self.cos, self.sin = rope
        self.embedding = embedding
        self.layers = tuple(layers)
        self.final_norm = final_norm
        self.head = head
        self._next_norms = (*(layer.attention_norm for layer in self.layers[1:]), final_norm)
        self._heads = (facts.num_heads, facts.num_kv_heads, facts.num_kv_heads)
        self._scale = facts.head_dim**-0.5
        self.done = 0
        self.run_layers = kernels.layers and kernels.layers(facts, self.layers, final_norm, rope)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, norms and biases as they lie in memory; a tied head counts once."""
        return sum(weight.nbytes for weight in self._weights())

    def _weights(self) -> Iterator[Weight]:
        yield self.embedding
        yield self.final_norm
        if self.head is not self.embedding:
            yield self.head
        for layer in self.layers:
            parts = (getattr(layer, name) for name in DecoderLayer.__slots__ if name != "window")
            yield from (part for part in parts if part is not None)

    def forward(self, token_ids: Tensor, positions: Tensor, kv_caches: KVCaches, batch: AttentionBatch) -> Tensor:
        """(token_ids, positions int64 [T]) -> normed hidden states [T, hidden]. Writes keys and values of the rows."""
        ops, eps = self.kernels, self.facts.rms_norm_eps
        residual = ops.embedding(token_ids, self.embedding)
        at_once = self.run_layers and self.run_layers(residual, positions, kv_caches, batch)
        if at_once is not None:
            self.done += len(self.layers)
            return at_once
        rotation = self.cos.index_select(0, positions), self.sin.index_select(0, positions)
        hidden = ops.rms_norm(residual, self.layers[0].attention_norm, eps)
        # Each layer ends with the norm the next one begins with, so that adding and norming are one operation.
        for layer, kv_cache, next_norm in zip(self.layers, kv_caches, self._next_norms, strict=True):
            hidden = self._attend(layer, hidden, rotation, kv_cache, batch)
            hidden = ops.add_rms_norm(hidden, residual, layer.mlp_norm, eps)
            gate_up = ops.linear(hidden, layer.gate_up, layer.gate_up_bias)
            hidden = ops.silu_mul(gate_up)
            del gate_up
            hidden = ops.linear(hidden, layer.down, layer.down_bias)
            hidden = ops.add_rms_norm(hidden, residual, next_norm, eps)
            self.done += 1
        return hidden

    def _attend(
        self,
        layer: DecoderLayer,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        kv_cache: tuple[Tensor, Tensor],
        batch: AttentionBatch,
    ) -> Tensor:
        """(hidden [T, hidden]) -> what attention adds to the residual, [T, hidden]."""
        ops, eps = self.kernels, self.facts.rms_norm_eps
        qkv = ops.linear(hidden, layer.qkv, layer.qkv_bias)
        q, k, v = qkv.view(qkv.shape[0], -1, self.facts.head_dim).split_with_sizes(self._heads, dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = ops.rms_norm(q, layer.q_norm, eps), ops.rms_norm(k, layer.k_norm, eps)
        ops.rope(q, k, *rotation)
        ops.write_kv(k, v, *kv_cache, batch.slot_mapping)
        mixed = ops.attention(q, *kv_cache, batch, self._scale, layer.window)
        return ops.linear(mixed, layer.output, layer.output_bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """(hidden [L, hidden] as `forward` returns it) -> float32 [L, vocab]."""
        self.done += 1
        return self.kernels.linear(hidden, self.head, None).to(torch.float32)
