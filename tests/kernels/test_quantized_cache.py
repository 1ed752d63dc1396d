"""A cache of codes: what is written is read back within half a step, on both tables to the same codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api import sizes
from plimsoll.api.facts import facts_from_config
from plimsoll.api.precision import KEY_BITS
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized_cache import (
    LEAST_SCALE,
    QuantizedCache,
    block_bytes,
    dequantize,
    head_bytes,
    quantize,
    spread,
)
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.support.miniature import CONFIG

TABLES = (native_kernels("cpu", torch.bfloat16), torch_kernels("cpu", torch.float32))


def cache_of(bits: int, blocks: int, heads: int, block_size: int, dim: int) -> QuantizedCache:
    data = torch.zeros(blocks, heads, block_bytes(bits, block_size, dim), dtype=torch.uint8)
    return QuantizedCache(data, bits, block_size, dim)  # type: ignore[arg-type]


def key_codes(cache: QuantizedCache, native: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [blocks, G, S, D] of keys, read bit by bit as a table lays them out, and the bytes behind them."""
    size, dim, bits = cache.block_size, cache.head_dim, KEY_BITS[cache.bits]
    whole = cache.data[..., : head_bytes(bits, size, dim)]
    codes, rest = whole.split((whole.shape[-1] - 4 * size, 4 * size), dim=-1)
    rows = codes.unflatten(-1, (-1, size)).transpose(-1, -2) if native else codes.unflatten(-1, (size, -1))
    if bits == 8:
        return rows, rest
    found = torch.empty(*rows.shape[:-1], dim, dtype=torch.uint8)
    share = -(-dim // 4)
    for d in range(dim):
        byte, high = (d // 2, d % 2) if native else (d % (dim // 2), d // (dim // 2))
        at, place = (d // 4, d % 4) if native else (d % share, d // share)
        upper = (rows[..., dim // 2 + at] >> (2 * place)) & 3
        found[..., d] = ((rows[..., byte] >> (4 * high)) & 15) | (upper << 4)
    return found, rest


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([8, 6, 4]), st.integers(1, 66), st.floats(-50, 50), st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 90.0])
)
def test_numbers_come_back_within_half_a_step(bits: int, half: int, middle: float, width: float) -> None:
    x = torch.randn(5, 3, 2 * half, generator=torch.Generator().manual_seed(half)) * width + middle
    codes, scales, minimums = quantize(x, bits)
    found = dequantize(codes, scales, minimums, bits, x.shape[-1], torch.float32)
    # A rounded minimum moves all numbers by at most its last place, and a rounded scale the largest by a part of it;
    # below 2^-14 a scale's last place is 2^-24.
    slack = x.abs().amax(-1, keepdim=True) * 2**-10 + 2.0 ** (bits - 24)
    if bits < 8:
        # Half a step of what was spread: together as large after it.
        found, x = spread(found), spread(x)
        slack = slack + x.abs().amax(-1, keepdim=True) * 2**-10
    assert ((found - x).abs() <= scales.float().unsqueeze(-1) / 2 + slack).all()
    assert (scales.float() >= LEAST_SCALE).all()


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([8, 4]),
    st.integers(1, 70),
    st.sampled_from([2, 16, 20, 64, 100]),
    st.sampled_from([1e-6, 0.02, 3.0, 9e4]),
)
def test_both_tables_write_the_same_codes(bits: int, rows: int, dim: int, spread: float) -> None:
    keys, values = torch.randn(2, rows, 2, dim, generator=torch.Generator().manual_seed(rows)) * spread
    values[0] = 0.25
    slots = torch.randperm(80)[:rows]
    caches = [cache_of(bits, 5, 2, 16, dim) for _ in TABLES]
    for table, cache in zip(TABLES, caches, strict=True):
        table.write_kv(keys, values, cache, slots)
    values_from = head_bytes(KEY_BITS[bits], 16, dim)
    assert torch.equal(caches[0].data[..., values_from:], caches[1].data[..., values_from:])
    for found, wanted in zip(key_codes(caches[0], True), key_codes(caches[1], False), strict=True):
        assert torch.equal(found, wanted)
    assert caches[0].data.count_nonzero() > 0


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_hidden_by_no_code(bits: int, wrong: float) -> None:
    rows = torch.ones(2, 1, 8)
    rows[1, 0, 3] = wrong
    for table in TABLES:
        cache = cache_of(bits, 1, 1, 16, 8)
        table.write_kv(rows, rows, cache, torch.arange(2))
        found = cache.gather(torch.zeros(1, 1, dtype=torch.int64), torch.float32)[1][0, 0]
        assert torch.isfinite(found[0]).all()
        assert not torch.isfinite(found[1]).any()


@pytest.mark.parametrize(
    ("bits", "dim", "bytes_of_a_token"),
    [(8, 64, 68 + 68), (4, 64, 52 + 36), (4, 128, 100 + 68), (4, 100, 50 + 25 + 4 + 54), (4, 2, 6 + 5)],
)
def test_a_block_is_as_large_as_the_budget_counts(bits: int, dim: int, bytes_of_a_token: int) -> None:
    assert block_bytes(bits, 64, dim) == 64 * bytes_of_a_token
    facts = facts_from_config({**CONFIG, "head_dim": dim})
    counted = sizes.block_bytes(facts, 64, "bfloat16", "int8" if bits == 8 else "int4")
    assert counted == facts.num_layers * facts.num_kv_heads * 64 * bytes_of_a_token
