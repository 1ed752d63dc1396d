"""The plain table against arithmetic written out by hand, in float64 where that is wider."""

import math

import pytest
import torch
from torch import Tensor

from plimsoll.runtime.kernels import torch_ops
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.kernels.table import AttentionBatch
from plimsoll.runtime.kernels.torch_ops import mix_values, torch_kernels

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=TOLERANCE[found.dtype], atol=TOLERANCE[found.dtype], check_dtype=False
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_multiplies_and_adds_the_bias(dtype: torch.dtype) -> None:
    ops = torch_kernels("cpu", dtype)
    x, weight, bias = torch.randn(5, 24), torch.randn(7, 24) / 5, torch.randn(7)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    wanted = x.double() @ weight.double().T
    close(ops.linear(x, ops.pack(weight), None), wanted)
    close(ops.linear(x, ops.pack(weight), bias), wanted + bias.double())


def test_narrow_weights_are_widened_and_not_the_activations_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_ops, "UPCAST_ELEMENTS", 50)
    ops = torch_kernels("cpu", torch.float32)
    x, weight, bias = torch.randn(3, 24), torch.randn(7, 24).bfloat16(), torch.randn(7)
    packed = ops.pack(weight)
    assert packed.nbytes == 7 * 24 * 2
    close(ops.linear(x, packed, bias), x.double() @ weight.double().T + bias.double())
    assert ops.embedding(torch.tensor([2, 2, 6]), packed).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_divide_by_the_root_mean_square(dtype: torch.dtype) -> None:
    ops = torch_kernels("cpu", dtype)
    x, residual, weight = (torch.randn(shape).to(dtype) for shape in ((4, 16), (4, 16), (16,)))

    def norm(value: Tensor) -> Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()

    close(ops.rms_norm(x, weight, 1e-3), norm(x.double()))
    total = x + residual
    close(ops.add_rms_norm(x, residual, weight, 1e-3), norm(total.double()))
    assert torch.equal(residual, total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activate_gates_the_second_half_by_the_first(dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 10).to(dtype)
    gate, up = gate_up[:, :5].double(), gate_up[:, 5:].double()
    close(torch_kernels("cpu", dtype).activate(gate_up, "silu", True), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_and_layer_norms_are_their_formulas(dtype: torch.dtype) -> None:
    ops, x = torch_kernels("cpu", dtype), torch.randn(3, 10).to(dtype)
    wide = x.double()
    cubic = (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    close(ops.activate(x, "gelu", False), wide * (1 + torch.erf(wide / 2**0.5)) / 2)
    close(ops.activate(x, "gelu_tanh", False), wide * (1 + cubic.tanh()) / 2)
    close(ops.activate(x, "relu2", False), wide.clamp(min=0) ** 2)
    weight, bias = torch.randn(10).to(dtype), torch.randn(10).to(dtype)
    apart = wide - wide.mean(1, keepdim=True)
    normed = apart / (apart.square().mean(1, keepdim=True) + 1e-3).sqrt()
    close(ops.layer_norm(x, weight, bias, 1e-3), normed * weight.double() + bias.double())
    close(ops.layer_norm(x, weight, None, 1e-3), normed * weight.double())


def test_a_soft_cap_bends_scores_before_the_softmax() -> None:
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    seen = torch.ones(3, 5, dtype=torch.bool).tril(2)
    scores = 2 * torch.tanh(q.double() @ k.double().mT * 0.7 / 2)
    wanted = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.double()
    close(mix_values(q, k, v, seen, 0.7, 2.0), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_turns_pairs_half_a_head_apart_in_strided_views(dtype: torch.dtype) -> None:
    qkv = torch.randn(3, 2 + 1 + 1, 8).to(dtype)
    before = qkv.double()
    angles = torch.rand(3, 4, dtype=torch.float64) * 6
    q, k, _ = qkv.split((2, 1, 1), dim=1)
    torch_kernels("cpu", dtype).rope(q, k, angles.cos().float(), angles.sin().float())
    turned = torch.complex(before[:, :3, :4], before[:, :3, 4:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    close(qkv[:, :3], torch.cat([turned.real, turned.imag], dim=-1))
    assert torch.equal(qkv[:, 3].double(), before[:, 3])


def paged(lengths: list[tuple[int, int]], block_size: int, heads: int, kv_heads: int, dtype: torch.dtype) -> tuple:
    """(batch, caches, q, contiguous keys and values) of sequences of (rows of this step, context)."""
    generator = torch.Generator().manual_seed(3)
    counts = [-(-context // block_size) for _, context in lengths]
    order = torch.randperm(sum(counts), generator=generator).tolist()
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    full = torch.full((sum(counts), kv_heads, block_size, 8), 1e4, dtype=dtype)
    cache = LayerCache(full, full.clone())
    ops, starts, slots, keys, values = torch_kernels("cpu", dtype), [0], [], [], []
    for b, (rows, context) in enumerate(lengths):
        blocks = [order.pop() for _ in range(counts[b])]
        tables[b, : counts[b]] = torch.tensor(blocks)
        where = torch.tensor([blocks[p // block_size] * block_size + p % block_size for p in range(context)])
        k, v = (torch.randn(context, kv_heads, 8, generator=generator).to(dtype) for _ in range(2))
        ops.write_kv(k, v, cache, where)
        keys.append(k)
        values.append(v)
        slots.append(where[-rows:])
        starts.append(starts[-1] + rows)
    batch = AttentionBatch(
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor([context for _, context in lengths], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        query_start_cpu=starts,
        context_lens_cpu=[context for _, context in lengths],
    )
    q = torch.randn(starts[-1], heads, 8, generator=generator).to(dtype)
    return batch, cache, q, keys, values


def dense_attention(batch: AttentionBatch, q: Tensor, keys: list, values: list, window: int | None) -> Tensor:
    """One row, one head, one softmax at a time."""
    out = torch.empty(q.shape, dtype=torch.float64)
    group = q.shape[1] // keys[0].shape[1]
    for b, context in enumerate(batch.context_lens_cpu):
        start, end = batch.query_start_cpu[b : b + 2]
        for row in range(start, end):
            position = context - (end - row)
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(q.shape[1]):
                k = keys[b][first : position + 1, head // group].double()
                v = values[b][first : position + 1, head // group].double()
                out[row, head] = ((k @ q[row, head].double()) / math.sqrt(8)).softmax(0) @ v
    return out.flatten(1)


MIXES = {
    "decode": [(1, 1), (1, 33), (1, 16), (1, 70)],
    "whole prompts": [(5, 5), (40, 40), (16, 16)],
    "chunks after a prefix": [(7, 50), (3, 19)],
    "all at once": [(1, 20), (1, 9), (13, 40), (1, 33), (4, 4)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 12, 1000])
@pytest.mark.parametrize("mix", MIXES)
def test_attention_sees_the_past_of_its_own_sequence(
    mix: str, window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_ops, "MASK_ELEMENTS", 6 * 40)
    monkeypatch.setattr(torch_ops, "GATHER_BYTES", 2 * 48 * 2 * 8 * 4)
    batch, cache, q, keys, values = paged(MIXES[mix], 16, 6, 2, dtype)
    found = torch_kernels("cpu", dtype).attention(q, cache, batch, 8**-0.5, window)
    assert found.dtype == dtype
    assert found.shape == (len(q), 6 * 8)
    close(found, dense_attention(batch, q, keys, values, window))


def test_cache_may_be_narrower_than_the_queries() -> None:
    batch, cache, q, keys, values = paged(MIXES["all at once"], 32, 4, 4, torch.bfloat16)
    found = torch_kernels("cpu", torch.float32).attention(q.float(), cache, batch, 8**-0.5, None)
    close(found, dense_attention(batch, q, keys, values, None))


def test_writing_keys_leaves_other_slots_alone() -> None:
    cache = LayerCache(torch.zeros(3, 2, 4, 8), torch.zeros(3, 2, 4, 8))
    k, v = torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    torch_kernels("cpu", torch.float32).write_kv(k, v, cache, torch.tensor([9, 2]))
    assert torch.equal(cache.keys[2, :, 1], k[0])
    assert torch.equal(cache.values[0, :, 2], v[1])
    assert int((cache.keys != 0).sum()) == 2 * 2 * 8
