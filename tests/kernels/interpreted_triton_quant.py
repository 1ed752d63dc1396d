"""Triton's products of 4 and 8 bits against the plain table's, on the interpreter: no GPU is needed, nor used.

`test_triton_quant.py` runs these in a process of their own: triton decides on its import whether it interprets.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.kernels import triton_quant
from plimsoll.runtime.kernels.quantized import dequantize, pack_torch
from plimsoll.runtime.kernels.torch_ops import linear as plain_linear
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.kernels.test_quantized import SCALES, ZEROS, quantized
from tests.kernels.test_super_blocks import in_super_blocks, with_minimums

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def agree(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> None:
    """Within rounding of sums of this size in x's dtype, which the twin does once more for a bias."""
    found, wanted = triton_quant.linear(x, weight, bias), plain_linear(x, weight, bias)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    size = x.float().abs() @ dequantize(weight.rows(0, weight.shape[0]), torch.float32).abs().T
    error = (found.float() - wanted.float()).abs().max() / (size.max() + 1e-6)
    assert error < TOLERANCE[x.dtype], error


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 70), st.integers(1, 140), st.sampled_from([8, 32, 40, 64, 128]), st.integers(1, 5), SCALES,
    st.sampled_from([4, 8]), st.booleans(), ZEROS, st.sampled_from(list(TOLERANCE)),
)  # fmt: skip
def test_products_agree_with_the_plain_ones_over_odd_shapes(
    rows: int, outputs: int, group: int, groups: int, scales: torch.dtype, bits: Any, biased: bool, zeros: bool | None,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    weight = pack_torch(quantized(bits, outputs, group, groups, scales, zeros), "cpu")
    agree(torch.randn(rows, group * groups).to(dtype), weight, torch.randn(outputs).to(dtype) if biased else None)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 40), st.integers(1, 140), st.sampled_from([16, 32, 256]), st.integers(1, 2), st.sampled_from([4, 8]),
    st.booleans(), st.sampled_from(list(TOLERANCE)),
)  # fmt: skip
def test_super_blocks_agree(
    rows: int, outputs: int, group: int, blocks: int, bits: Any, minimums: bool, dtype: torch.dtype
) -> None:
    weight = pack_torch(in_super_blocks(bits, outputs, group, blocks, minimums), "cpu")
    agree(torch.randn(rows, blocks * 256).to(dtype), weight, None)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 40), st.sampled_from([16, 32]), st.integers(1, 4))
def test_codes_of_8_bits_with_minimums_agree(rows: int, group: int, groups: int) -> None:
    agree(torch.randn(rows, group * groups), pack_torch(with_minimums(70, group, groups), "cpu"), None)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 16, 17, 130])
def test_every_kind_of_launch_agrees(bits: Any, rows: int) -> None:
    group = 64 if bits == 4 else 1024
    weight = pack_torch(quantized(bits, 200, group, 1024 // group, torch.float16), "cpu")
    agree(torch.randn(rows, 1024), weight, torch.randn(200))
    assert (triton_quant.launch_for(rows, 200, 1024, group).splits > 1) == (rows <= 16)


def test_rows_of_a_wider_tensor_and_columns_that_do_not_lie_together_are_taken() -> None:
    weight = pack_torch(quantized(4, 33, 32, 3, torch.float16), "cpu")
    agree(torch.randn(5, 200)[:, 7:103], weight, None)
    agree(torch.randn(96, 5).T, weight, None)


def test_a_split_product_is_the_same_every_time_and_covers_all_columns() -> None:
    """Codes, scales and rows of ones: each output counts the columns."""
    for columns in (4128, 1024, 544):
        weight = pack_torch(quantized(4, 10, 32, columns // 32, torch.float16), "cpu")
        ones = torch.full_like(weight.codes, 0x99)
        counted = type(weight)(
            4, ones, torch.ones_like(weight.scales), torch.full_like(weight.scales, 8, dtype=torch.uint8)
        )
        assert triton_quant.launch_for(1, 10, columns, 32).splits > 1
        assert triton_quant.linear(torch.ones(1, columns), counted, None).tolist() == [[float(columns)] * 10]


def test_whole_weights_and_no_rows_go_the_plain_way_and_another_width_is_refused() -> None:
    ops, weight = triton_quant.triton_kernels("cpu", torch.float32), torch.randn(7, 32)
    x = torch.randn(3, 32)
    assert torch.equal(
        ops.linear(x, ops.pack(weight), None), torch_kernels("cpu", torch.float32).linear(x, weight, None)
    )
    packed = ops.pack_quantized(quantized(4, 7, 32, 1, torch.float16))
    assert ops.linear(x[:0], packed, None).shape == (0, 7)
    with pytest.raises(ValueError, match="31 columns"):
        ops.linear(x[:, :31], packed, None)


@given(st.integers(1, 5000), st.integers(1, 60000), st.integers(1, 300), st.sampled_from([8, 32, 64, 96, 128, 4096]))
def test_a_launch_has_blocks_that_tensor_cores_take_and_splits_that_have_work(
    rows: int, outputs: int, groups: int, group: int
) -> None:
    launch = triton_quant.launch_for(rows, outputs, group * groups, group)
    assert all(size >= 16 and size & (size - 1) == 0 for size in (launch.block_m, launch.block_n, launch.block_k))
    blocks = -(-group * groups // launch.block_k)
    assert 1 <= launch.splits <= max(1, blocks // 4)
    if group % 32 == 0:
        assert group % launch.block_k == 0
