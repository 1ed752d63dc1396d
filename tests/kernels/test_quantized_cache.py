"""A cache of codes: what is written is read back within half a step, on both tables to the same codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized_cache import (
    LEAST_SCALE,
    QuantizedCache,
    dequantize,
    head_bytes,
    quantize,
    spread,
)
from plimsoll.runtime.kernels.torch_ops import torch_kernels

TABLES = (native_kernels("cpu", torch.bfloat16), torch_kernels("cpu", torch.float32))


def cache_of(bits: int, blocks: int, heads: int, block_size: int, dim: int) -> QuantizedCache:
    keys, values = (torch.zeros(blocks, heads, head_bytes(bits, block_size, dim), dtype=torch.uint8) for _ in range(2))
    return QuantizedCache(keys, values, bits, block_size, dim)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([8, 4]), st.integers(1, 66), st.floats(-50, 50), st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 90.0]))
def test_numbers_come_back_within_half_a_step(bits: int, half: int, middle: float, width: float) -> None:
    x = torch.randn(5, 3, 2 * half, generator=torch.Generator().manual_seed(half)) * width + middle
    codes, scales, minimums = quantize(x, bits)
    found = dequantize(codes, scales, minimums, bits, torch.float32)
    # A rounded minimum moves all numbers by at most its last place, and a rounded scale the largest by a part of it;
    # below 2^-14 a scale's last place is 2^-24.
    slack = x.abs().amax(-1, keepdim=True) * 2**-10 + 2.0 ** (bits - 24)
    if bits == 4:
        # Half a step of what was spread: together as large after it.
        found, x = spread(found), spread(x)
        slack = slack + x.abs().amax(-1, keepdim=True) * 2**-10
    assert ((found - x).abs() <= scales.float().unsqueeze(-1) / 2 + slack).all()
    assert (scales.float() >= LEAST_SCALE).all()


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([8, 4]),
    st.integers(1, 70),
    st.sampled_from([2, 16, 20, 64]),
    st.sampled_from([1e-6, 0.02, 3.0, 9e4]),
)
def test_both_tables_write_the_same_codes(bits: int, rows: int, dim: int, spread: float) -> None:
    keys, values = torch.randn(2, rows, 2, dim, generator=torch.Generator().manual_seed(rows)) * spread
    values[0] = 0.25
    slots = torch.randperm(80)[:rows]
    caches = [cache_of(bits, 5, 2, 16, dim) for _ in TABLES]
    for table, cache in zip(TABLES, caches, strict=True):
        table.write_kv(keys, values, cache, slots)
    # Values lie alike on both; keys are checked by what attention makes of them.
    assert torch.equal(caches[0].values, caches[1].values)
    assert caches[0].keys.count_nonzero() > 0


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


@pytest.mark.parametrize(("bits", "bytes_of_a_head"), [(8, 64 * 68), (4, 64 * 36)])
def test_a_block_is_as_large_as_the_budget_counts(bits: int, bytes_of_a_head: int) -> None:
    assert head_bytes(bits, 64, 64) == bytes_of_a_head
