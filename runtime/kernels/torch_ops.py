"""Plain torch, on any device: the specification every faster table is held to, and the table that always runs."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from plimsoll.api.device import TORCH_TABLE
from plimsoll.api.model import Activation
from plimsoll.runtime.kernels.quantized import TorchQuantized, dequantize, pack_torch, quantized_rows
from plimsoll.runtime.kernels.table import AttentionBatch, Cache, Kernels

GATHER_BYTES = TORCH_TABLE.scratch_bytes // 2
"""Keys, and as many bytes of values, copied out of the cache at once. One sequence alone may need more."""
MASK_ELEMENTS = 2 * 1024 * 1024
"""Of one causal mask [rows, context]: how many rows of a prefill go together."""
UPCAST_ELEMENTS = 4 * 1024 * 1024
"""Elements of a narrow weight widened at once."""


def torch_kernels(device: torch.device | str, dtype: torch.dtype, *, int8: bool = False) -> Kernels:
    """The plain table. `dtype` (float32, bfloat16, float16) is that of activations; a Weight is the tensor [N, K].

    Weights and cache may be narrower: both are widened to the activations' dtype before any arithmetic. `int8`: rows
    are quantized to 8 bits where they meet codes of 4 or 8 bits, which makes them no faster here.
    """

    def embedding(ids: Tensor, weight: Tensor | TorchQuantized) -> Tensor:
        if isinstance(weight, TorchQuantized):
            return dequantize(weight.picked(ids), dtype)
        return functional.embedding(ids, weight).to(dtype)

    return Kernels(
        name="torch-int8" if int8 else "torch",
        device=torch.device(device),
        dtype=dtype,
        pack=lambda weight: weight.to(device).contiguous(),
        pack_quantized=lambda matrix: pack_torch(matrix, device),
        embedding=embedding,
        linear=linear_int8 if int8 else linear,
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        layer_norm=layer_norm,
        activate=activate,
        rope=rope,
        write_kv=lambda k, v, cache, slot_mapping: cache.write(k, v, slot_mapping),
        attention=attention,
        facts=TORCH_TABLE,
        varies="plain torch sums in an order that depends on the number of rows",
    )


def linear(x: Tensor, weight: Tensor | TorchQuantized, bias: Tensor | None) -> Tensor:
    """(x [T, K], weight [N, K], bias [N] or None) -> [T, N] in x's dtype. Wider weights are made a run at a time."""
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return functional.linear(x, weight, bias)
    (rows, columns), products = weight.shape, []
    # A quantized run passes through float32 on its way.
    step = max(1, UPCAST_ELEMENTS // (1 if isinstance(weight, Tensor) else 4) // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if isinstance(weight, Tensor):
            run = weight[start:stop].to(x.dtype)
        else:
            run = dequantize(weight.rows(start, stop), x.dtype)
        products.append(functional.linear(x, run))
    out = torch.cat(products, dim=-1)
    return out if bias is None else out.add_(bias)


def linear_int8(x: Tensor, weight: Tensor | TorchQuantized, bias: Tensor | None) -> Tensor:
    """`linear`, of rows that are quantized to 8 bits where the weight is codes."""
    return linear(quantized_rows(x, weight.group_size) if isinstance(weight, TorchQuantized) else x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, statistics in float32 (Zhang & Sennrich 2019)."""
    return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm(x + residual); residual becomes the sum, in place."""
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, in float32 (Ba et al. 2016)."""
    added = None if bias is None else bias.float()
    return functional.layer_norm(x.float(), weight.shape, weight.float(), added, eps).to(x.dtype)


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu2": lambda x: functional.relu(x).square_(),
}


def activate(x: Tensor, activation: Activation, gated: bool) -> Tensor:
    """(x [T, 2I], gate and up) -> act(gate) * up, [T, I]; (x [T, I]) -> act(x) where nothing is gated."""
    if not gated:
        return ACTIVATIONS[activation](x)
    gate, up = x.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate).mul_(up)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates q [T, H, D], k [T, G, D] in place by the angles of cos, sin [T, D/2]; i pairs with i + D/2."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        rotated = first * cos - second * sin
        second.copy_(second * cos + first * sin)
        first.copy_(rotated)


def attention(
    q: Tensor,
    cache: Cache,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of q [T, H, D] over the paged cache -> [T, H*D].

    Neighbouring sequences with one row each go together; a prefill chunk goes alone, in slices.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    starts, contexts = batch.query_start_cpu, batch.context_lens_cpu
    _, kv_heads, block_size, head_dim = cache.shape
    token_bytes = kv_heads * head_dim * q.element_size()
    b = 0
    while b < len(contexts):
        if starts[b + 1] - starts[b] > 1:
            place = batch.block_tables[b], starts[b], starts[b + 1], contexts[b]
            _prefill(q, cache, *place, scale, window, softcap, out)
            b += 1
            continue
        first, longest = b, 0
        while b < len(contexts) and starts[b + 1] - starts[b] == 1:
            padded = -(-max(longest, contexts[b]) // block_size) * block_size
            if b > first and (b + 1 - first) * padded * token_bytes > GATHER_BYTES:
                break
            longest = max(longest, contexts[b])
            b += 1
        _decode(q, cache, batch, first, b, longest, scale, window, softcap, out)
    return out.flatten(1)


def mix_values(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, softcap: float | None, causal: bool = False
) -> Tensor:
    """Attention of q [..., Q, D] over k, v [..., K, D] -> [..., Q, D]. `seen` bool: which keys each query may see."""
    if softcap is None:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=scale)
    scores = (q.float() * scale) @ k.float().transpose(-2, -1)
    scores = scores.div_(softcap).tanh_().mul_(softcap)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if seen is not None:
        scores = scores.masked_fill_(~seen, -torch.inf)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def _decode(
    q: Tensor,
    cache: Cache,
    batch: AttentionBatch,
    first: int,
    last: int,
    longest: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor,
) -> None:
    """Sequences first..last-1, one row each. The queries of a group are rows against their one key-value head."""
    kv_heads, block_size, head_dim = cache.shape[1:]
    contexts = batch.context_lens_cpu[first:last]
    # Keys before every sequence's window are not even gathered.
    begin = 0 if window is None else max(0, min(contexts) - window) // block_size
    blocks = batch.block_tables[first:last, begin : -(-longest // block_size)]
    k, v = cache.gather(blocks, q.dtype)
    position = torch.arange(begin * block_size, begin * block_size + k.shape[2], device=q.device)
    ends = batch.context_lens[first:last].unsqueeze(1)
    seen = position < ends
    if window is not None:
        seen &= position >= ends - window
    row = batch.query_start_cpu[first]
    rows = q[row : row + last - first].reshape(last - first, kv_heads, -1, head_dim)
    mixed = mix_values(rows, k, v, seen[:, None, None, :], scale, softcap)
    out[row : row + last - first] = mixed.reshape(last - first, -1, head_dim)


def _prefill(
    q: Tensor,
    cache: Cache,
    table: Tensor,
    start: int,
    end: int,
    context: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor,
) -> None:
    """Rows start..end-1, one sequence whose last row is position context-1: the mask is causal from the lower right."""
    kv_heads, block_size = cache.shape[1:3]
    group = q.shape[1] // kv_heads
    # Scores that are capped exist whole, for each head.
    step = max(1, MASK_ELEMENTS // context // (1 if softcap is None else q.shape[1]))
    for row in range(start, end, step):
        stop = min(row + step, end)
        position, reach = context - (end - row), context - (end - stop)
        begin = 0 if window is None else max(0, position - window + 1) // block_size
        blocks = table[begin : -(-reach // block_size)].unsqueeze(0)
        key = torch.arange(begin * block_size, reach, device=q.device)
        k, v = (
            found[0, :, : len(key)].unsqueeze(1).expand(-1, group, -1, -1) for found in cache.gather(blocks, q.dtype)
        )
        query = torch.arange(position, reach, device=q.device).unsqueeze(1)
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        rows = q[row:stop].unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
        mixed = mix_values(rows, k, v, seen, scale, softcap)
        out[row:stop] = mixed.permute(2, 0, 1, 3).flatten(1, 2)
