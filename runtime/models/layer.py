"""The arithmetic of one decoder layer, written once: every family, in the engine and in `quantjob`, is these functions
under another `LayerSpec`.

`Angles` are (cos, sin) of each row, float32 [T, rotated dimensions / 2], or None for a layer without rotation.
"""

import torch
from torch import Tensor

from plimsoll.api.model import ModelFacts
from plimsoll.runtime.kernels.table import AttentionBatch, Cache, Kernels
from plimsoll.runtime.models.group import Group
from plimsoll.runtime.models.weights import DecoderLayer, Norm

Angles = tuple[Tensor, Tensor] | None


def run_layer(
    ops: Kernels,
    facts: ModelFacts,
    layer: DecoderLayer,
    hidden: Tensor,
    residual: Tensor,
    angles: Angles,
    cache: Cache,
    batch: AttentionBatch,
    next_norm: Norm | None,
    group: Group | None = None,
) -> Tensor:
    """One layer: (hidden [T, hidden], normed already; residual [T, hidden]) -> the next layer's `hidden`.

    Residual changes in place. Each layer ends with the norm the next one begins with, so that adding and norming are
    one operation; with None for `next_norm` the residual itself is what the next layer sees. With a group, `facts` and
    `layer` are one rank's, and what attention and MLP add is summed over ranks.
    """
    added = attend(ops, facts, layer, hidden, angles, cache, batch)
    if group is not None:
        added = group.sum(added)
    hidden = add(ops, layer, added, layer.attention_post_norm, residual, layer.mlp_norm)
    added = feed_forward(ops, layer, hidden)
    if group is not None:
        added = group.sum(added)
    return add(ops, layer, added, layer.mlp_post_norm, residual, next_norm)


def attend(
    ops: Kernels,
    facts: ModelFacts,
    layer: DecoderLayer,
    hidden: Tensor,
    angles: Angles,
    cache: Cache,
    batch: AttentionBatch,
) -> Tensor:
    """(hidden [T, hidden]) -> what attention adds to the residual, [T, hidden]."""
    return ops.linear(mix(ops, facts, layer, hidden, angles, cache, batch), layer.output, layer.output_bias)


def mix(
    ops: Kernels,
    facts: ModelFacts,
    layer: DecoderLayer,
    hidden: Tensor,
    angles: Angles,
    cache: Cache,
    batch: AttentionBatch,
) -> Tensor:
    """(hidden [T, hidden]) -> what goes into the output projection, [T, H * D]. Keys and values go into the cache."""
    spec = layer.spec
    qkv = ops.linear(hidden, layer.qkv, layer.qkv_bias)
    heads, dim = (facts.num_heads, facts.num_kv_heads, facts.num_kv_heads), facts.head_dim
    q, k, v = qkv.view(qkv.shape[0], -1, dim).split_with_sizes(heads, dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        if spec.qk_norm == "whole":
            q, k = q.flatten(1), k.flatten(1)
        q, k = norm(ops, q, layer.q_norm).view(len(q), -1, dim), norm(ops, k, layer.k_norm).view(len(k), -1, dim)
    if angles is not None:
        rotated = 2 * angles[0].shape[-1]
        if rotated == dim:
            ops.rope(q, k, *angles)
        else:
            ops.rope(q[..., :rotated], k[..., :rotated], *angles)
    ops.write_kv(k, v, cache, batch.slot_mapping)
    return ops.attention(q, cache, batch, spec.scale, spec.window, spec.attention_softcap)


def feed_forward(ops: Kernels, layer: DecoderLayer, hidden: Tensor) -> Tensor:
    """(hidden [T, hidden]) -> what the MLP adds to the residual, [T, hidden]."""
    return ops.linear(activated(ops, layer, hidden), layer.down, layer.down_bias)


def activated(ops: Kernels, layer: DecoderLayer, hidden: Tensor) -> Tensor:
    """(hidden [T, hidden]) -> what goes into the down projection, [T, I]."""
    return ops.activate(ops.linear(hidden, layer.gate_up, layer.gate_up_bias), layer.spec.activation, layer.spec.gated)


def norm(ops: Kernels, x: Tensor, by: Norm | None) -> Tensor:
    """x [..., K], normed; x itself where there is no norm."""
    if by is None:
        return x
    if by.spec.kind == "layer":
        return ops.layer_norm(x, by.weight, by.bias, by.spec.eps)
    return ops.rms_norm(x, by.weight, by.spec.eps)


def add(
    ops: Kernels, layer: DecoderLayer, added: Tensor, post: Norm | None, residual: Tensor, then: Norm | None
) -> Tensor:
    """Residual [T, hidden] becomes residual + norm(added, post), in place; -> the same normed by `then`."""
    added = norm(ops, added, post)
    if layer.spec.residual_multiplier != 1.0:
        added = torch.mul(added, layer.spec.residual_multiplier)
    if then is not None and then.spec.kind == "rms":
        return ops.add_rms_norm(added, residual, then.weight, then.spec.eps)
    return norm(ops, residual.add_(added), then)
