"""Weights of 4 and 8 bits: every path of every table against what the codes stand for, and rows against themselves."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.kernels import native
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized import QuantizedMatrix, dequantize
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.support.libraries import Libraries

SCALES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
GROUPS = st.sampled_from([8, 32, 64, 96, 128, 136, 256])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def quantized(
    bits: Literal[4, 8], rows: int, group: int, groups: int, scales: torch.dtype, zeros: bool | None = True
) -> QuantizedMatrix:
    """With zero points, without, or (None, where scales are float16) with minimums in their place."""
    factors = (torch.rand(rows, groups) / 10 / (group * groups) ** 0.5).to(scales)
    if bits == 8:
        return QuantizedMatrix(8, torch.randint(-128, 128, (rows, group * groups), dtype=torch.int8), factors)
    points = torch.randint(0, 16, (rows, groups), dtype=torch.uint8) if zeros else None
    least = (-8 * factors * torch.rand(rows, groups)).half() if zeros is None and scales is torch.float16 else None
    return QuantizedMatrix(4, torch.randint(0, 16, (rows, group * groups), dtype=torch.uint8), factors, points, least)


ZEROS = st.sampled_from([True, False, None])


def check(found: torch.Tensor, x: torch.Tensor, matrix: QuantizedMatrix, bias: torch.Tensor | None = None) -> None:
    """Within float32's rounding of sums of this size, of rows rounded to bfloat16."""
    x, weight = x.bfloat16(), dequantize(matrix, torch.float32).double()
    wanted = x.double() @ weight.T
    size = (x.double().abs() @ weight.abs().T).max() + 1e-30
    if bias is not None:
        wanted, size = wanted + bias, size + bias.abs().max()
    assert float((found.double() - wanted).abs().max() / size) < 2e-6


@pytest.mark.parametrize("bits", [4, 8])
def test_beside_weights_of_float32_rows_are_not_rounded(bits: Literal[4, 8], monkeypatch: pytest.MonkeyPatch) -> None:
    ops, held = native_kernels("cpu", torch.float32), quantized(bits, 70, 64, 3, torch.float16)
    monkeypatch.setattr("plimsoll.runtime.kernels.native_quantized.EXACT_BYTES", 3 * 4 * (70 + 192) * 7)
    x, bias, packed = torch.randn(40, 192), torch.randn(70), ops.pack_quantized(held)
    found, weight = ops.linear(x, packed, bias), dequantize(held, torch.float32).double()
    assert (
        float((found - (x.double() @ weight.T + bias)).abs().max() / (x.double().abs() @ weight.abs().T).max()) < 1e-6
    )
    assert torch.equal(torch.cat([ops.linear(row, packed, bias) for row in x.split(1)]), found)


def test_a_weight_is_its_code_less_the_zero_point_times_the_scale() -> None:
    codes = torch.tensor([[0, 15, 3, 8, 1, 2, 4, 7] * 2, [9] * 16], dtype=torch.uint8)
    scales = torch.tensor([[0.5, 2.0], [1.0, -3.0]], dtype=torch.float16)
    zeros = torch.tensor([[0, 15], [8, 9]], dtype=torch.uint8)
    weight = dequantize(QuantizedMatrix(4, codes, scales, zeros), torch.float32)
    assert weight[0].tolist() == [0, 7.5, 1.5, 4, 0.5, 1, 2, 3.5, -30, 0, -24, -14, -28, -26, -22, -16]
    assert weight[1].tolist() == [1.0] * 8 + [0.0] * 8
    assert dequantize(QuantizedMatrix(4, codes, scales), torch.float32)[0, :2].tolist() == [-4.0, 3.5]
    least = QuantizedMatrix(4, codes, scales, None, torch.tensor([[-1.0, 0.5], [0.0, 7.0]], dtype=torch.float16))
    assert dequantize(least, torch.float32)[0, [0, 1, 8, 9]].tolist() == [-1.0, 6.5, 0.5, 30.5]
    signed = QuantizedMatrix(8, torch.tensor([[-128, 127, 0]], dtype=torch.int8), torch.tensor([[0.25]]))
    assert dequantize(signed, torch.bfloat16).tolist() == [[-32.0, 31.75, 0.0]]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 9), st.integers(1, 70), GROUPS, st.integers(1, 3), SCALES, ZEROS,
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_the_plain_table_multiplies_by_what_the_codes_stand_for(
    rows: int, outputs: int, group: int, groups: int, scales: torch.dtype, zeros: bool | None, dtype: torch.dtype
) -> None:
    ops, x = torch_kernels("cpu", dtype), torch.randn(rows, group * groups).to(dtype)
    wide = 2 if scales is torch.float32 else 1 if zeros is None and scales is torch.float16 else 0
    for matrix, size in (
        (quantized(4, outputs, group, groups, scales, zeros), outputs * groups * (group // 2 + 3 + wide)),
        (quantized(8, outputs, group, groups, scales), outputs * groups * (group + 4)),
    ):
        weight = ops.pack_quantized(matrix)
        wanted = torch.nn.functional.linear(x, dequantize(matrix, dtype))
        assert torch.equal(ops.linear(x, weight, None), wanted)
        assert weight.nbytes == size


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 200), st.integers(1, 70), st.integers(1, 3), st.sampled_from([1, 2]))
def test_rows_of_an_embedding_are_what_its_codes_stand_for(
    rows: int, vocabulary: int, group: int, groups: int, threads: int
) -> None:
    ids = torch.randint(0, vocabulary, (rows,))
    torch.set_num_threads(threads)
    for matrix in (
        quantized(8, vocabulary, group, groups, torch.float16),
        quantized(4, vocabulary, 8 * group, groups, torch.bfloat16),
        quantized(4, vocabulary, 8 * group, groups, torch.float16, zeros=None),
    ):
        wanted = dequantize(matrix, torch.float32)[ids]
        for ops in (torch_kernels("cpu", torch.float32), native_kernels("cpu", torch.bfloat16)):
            assert torch.equal(ops.embedding(ids, ops.pack_quantized(matrix)), wanted)


def test_the_plain_table_takes_no_more_memory_than_a_run_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, matrix = torch_kernels("cpu", torch.float32), quantized(4, 61, 32, 2, torch.float16)
    x, weight = torch.randn(3, 64), ops.pack_quantized(matrix)
    whole, made = ops.linear(x, weight, None), []

    def watched(run: QuantizedMatrix, dtype: torch.dtype) -> torch.Tensor:
        made.append(run.codes.numel())
        return dequantize(run, dtype)

    monkeypatch.setattr("plimsoll.runtime.kernels.torch_ops.dequantize", watched)
    monkeypatch.setattr("plimsoll.runtime.kernels.torch_ops.UPCAST_ELEMENTS", 4096)
    assert torch.equal(ops.linear(x, weight, None), whole)
    assert len(made) == 4
    assert max(made) <= 1024


@settings(deadline=None, max_examples=120)
@given(
    st.integers(1, 300), st.integers(1, 200), GROUPS, st.integers(1, 4), SCALES, ZEROS, st.booleans(),
    st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_native_4_bits_agree_and_each_row_is_what_it_is_alone(
    rows: int,
    outputs: int,
    group: int,
    groups: int,
    scales: torch.dtype,
    zeros: bool | None,
    biased: bool,
    threads: int,
) -> None:
    matrix = quantized(4, outputs, group, groups, scales, zeros)
    _holds(matrix, torch.randn(rows, group * groups), torch.randn(outputs) if biased else None, threads)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 300), st.integers(1, 200), st.integers(1, 400), st.integers(1, 2), SCALES, st.booleans(),
    st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_native_8_bits_agree_and_each_row_is_what_it_is_alone(
    rows: int, outputs: int, group: int, groups: int, scales: torch.dtype, biased: bool, threads: int
) -> None:
    matrix = quantized(8, outputs, group, groups, scales)
    _holds(matrix, torch.randn(rows, group * groups), torch.randn(outputs) if biased else None, threads)


def _holds(matrix: QuantizedMatrix, x: torch.Tensor, bias: torch.Tensor | None, threads: int) -> None:
    ops, rows = native_kernels("cpu", torch.bfloat16), len(x)
    weight = ops.pack_quantized(matrix)
    torch.set_num_threads(threads)
    found = ops.linear(x, weight, bias).clone()
    check(found, x, matrix, bias)
    torch.set_num_threads(1)
    for start, stop in {(0, 1), (rows // 2, rows // 2 + 1), (rows - 1, rows), (rows // 3, rows // 3 + 14)}:
        assert torch.equal(ops.linear(x[start:stop], weight, bias), found[start:stop])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 12, 13, 40])
@pytest.mark.parametrize("scale", [6e-8, 3e-5, 65504.0, -2.5])
def test_scales_at_the_ends_of_float16_and_zero_points_at_both_ends_are_exact(rows: int, scale: float) -> None:
    """Small whole numbers times a power of two, or few enough bits: nothing is rounded, so nothing may differ."""
    codes = torch.randint(0, 16, (70, 128), dtype=torch.uint8)
    zeros = torch.tensor([[0, 15]] * 35 + [[15, 0]] * 35, dtype=torch.uint8)
    matrix = QuantizedMatrix(4, codes, torch.full((70, 2), scale, dtype=torch.float16), zeros)
    x = torch.randint(-2, 3, (rows, 128)).float()
    wanted = torch.nn.functional.linear(x.double(), dequantize(matrix, torch.float32).double())
    ops = native_kernels("cpu", torch.bfloat16)
    assert torch.equal(ops.linear(x, ops.pack_quantized(matrix), None).double(), wanted)


def test_rows_that_leave_the_native_table_meet_the_weights_rounded_to_bfloat16() -> None:
    wide, bias = native_kernels("cpu", torch.bfloat16, wide_rows=5), torch.randn(70)
    matrices = (
        quantized(4, 70, 32, 3, torch.float16), quantized(4, 70, 64, 2, torch.bfloat16, zeros=False),
        quantized(4, 70, 32, 2, torch.float32), quantized(4, 70, 32, 2, torch.float16, zeros=None),
        quantized(8, 70, 100, 1, torch.float16),
    )  # fmt: skip
    for matrix in matrices:
        x = torch.randn(9, matrix.codes.shape[1])
        product = torch.nn.functional.linear(x.bfloat16(), dequantize(matrix, torch.bfloat16))
        weight = wide.pack_quantized(matrix)
        assert torch.equal(wide.linear(x, weight, bias), product.float() + bias)
        check(wide.linear(x[:4], weight, bias), x[:4], matrix, bias)


def test_memory_is_that_of_codes_scales_and_zero_points_in_whole_panels() -> None:
    ops = native_kernels("cpu", torch.bfloat16)
    panel = native.native_library().panel_width()
    for rows in (1, panel, panel + 1, 3 * panel):
        padded = -(-rows // panel) * panel
        sizes = {torch.float16: 3, torch.bfloat16: 3, torch.float32: 5}
        with_minimums = quantized(4, rows, 64, 5, torch.float16, zeros=None)
        assert ops.pack_quantized(with_minimums).nbytes == padded * (160 + 5 * 4)
        for scales, size in sizes.items():
            assert ops.pack_quantized(quantized(4, rows, 64, 5, scales)).nbytes == padded * (160 + 5 * size)
        assert ops.pack_quantized(quantized(8, rows, 320, 1, torch.float16)).nbytes == padded * (320 + 4)


def test_no_rows_are_no_rows() -> None:
    for ops in (native_kernels("cpu", torch.bfloat16), torch_kernels("cpu", torch.float32)):
        weight = ops.pack_quantized(quantized(4, 7, 32, 2, torch.float16))
        assert ops.linear(torch.zeros(0, 64), weight, None).shape == (0, 7)


CODES, FACTORS = torch.zeros(6, 64, dtype=torch.uint8), torch.ones(6, 2, dtype=torch.float16)


@pytest.mark.parametrize(
    ("bits", "codes", "scales", "zeros", "words"),
    [
        (3, CODES, FACTORS, None, "4 or 8 bits"),
        (4, CODES.to(torch.int8), FACTORS, None, "int8"),
        (8, CODES, FACTORS, None, "uint8"),
        (4, CODES[0], FACTORS, None, r"uint8 \[N, K\]"),
        (4, CODES, FACTORS[:5], None, "scales"),
        (4, CODES, FACTORS.double(), None, "float64"),
        (4, CODES, FACTORS[:, :0], None, "0 groups"),
        (4, CODES[:0], FACTORS[:0], None, "0 rows"),
        (4, CODES, torch.ones(6, 3), None, "do not divide into 3 groups"),
        (4, CODES, torch.ones(6, 16), None, "multiple of 8 columns, not 4"),
        (4, CODES, FACTORS, torch.zeros(6, 1, dtype=torch.uint8), "zero points"),
        (4, CODES, FACTORS, torch.zeros(6, 2, dtype=torch.int8), "zero points"),
        (8, CODES.to(torch.int8), FACTORS, torch.zeros(6, 2, dtype=torch.uint8), "symmetric"),
    ],
)
def test_sizes_and_types_that_do_not_fit_are_refused(
    bits: int, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        QuantizedMatrix(bits, codes, scales, zeros)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["native", "torch"])
def test_codes_that_would_spill_into_their_neighbours_and_rows_of_another_width_are_refused(name: str) -> None:
    ops = native_kernels("cpu", torch.bfloat16) if name == "native" else torch_kernels("cpu", torch.float32)
    with pytest.raises(ValueError, match="code is 0 to 15, found 16"):
        ops.pack_quantized(QuantizedMatrix(4, CODES + 16, FACTORS))
    with pytest.raises(ValueError, match="zero point is 0 to 15, found 200"):
        ops.pack_quantized(QuantizedMatrix(4, CODES, FACTORS, torch.full((6, 2), 200, dtype=torch.uint8)))
    with pytest.raises((ValueError, RuntimeError)):
        ops.linear(torch.zeros(2, 63), ops.pack_quantized(QuantizedMatrix(4, CODES, FACTORS)), None)


OTHER_BUILD = """
import torch
from plimsoll.runtime.kernels.native import native_kernels, native_library
from plimsoll.runtime.kernels.quantized import QuantizedMatrix, dequantize
torch.manual_seed(0)
ops = native_kernels("cpu", torch.bfloat16)
def agrees(matrix):
    weight, plain = ops.pack_quantized(matrix), dequantize(matrix, torch.float32)
    for rows in (1, 2, 3, 5, 14, 31):
        x = torch.randn(rows, plain.shape[1]).bfloat16().float()
        found = ops.linear(x, weight, None)
        error = (found - x @ plain.T).abs().max() / (x.abs() @ plain.abs().T).max()
        assert error < 2e-6, (matrix.bits, matrix.group_size, matrix.scales.dtype, rows, error)
        assert torch.equal(ops.linear(x[-1:], weight, None)[0], found[-1])
    assert torch.equal(weight.unpack_rows(native_library(), 0, 45), plain.bfloat16())
for bits, group in ((4, 32), (4, 136), (8, 72)):
    for scales in (torch.float16, torch.bfloat16, torch.float32):
        low, high, dtype = ((0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8))
        codes = torch.randint(low, high, (45, 2 * group), dtype=dtype)
        zeros = torch.randint(0, 16, (45, 2), dtype=torch.uint8) if bits == 4 else None
        agrees(QuantizedMatrix(bits, codes, (torch.rand(45, 2) * 1e-4).to(scales), zeros))
for bits, low, high, dtype in ((4, 0, 16, torch.uint8), (8, -128, 128, torch.int8)):
    codes, scales = torch.randint(low, high, (45, 512)).to(dtype), torch.randint(-128, 128, (45, 32)).char()
    factors = (torch.rand(45, 2) * 1e-4).half()
    agrees(QuantizedMatrix(bits, codes, scales, super_scales=factors))
    agrees(QuantizedMatrix(bits, codes, scales, None, scales.flip(1), factors, factors * 3))
print("agrees")
"""


def test_a_build_for_any_processor_agrees(libraries: Libraries) -> None:
    """Vectors of the compiler's alone, which other machines run, and half precision by hand."""
    if os.uname().machine != "x86_64":
        pytest.skip("the flags are those of x86-64")
    assert_agrees(libraries.built("-march=x86-64", "-O1", "-Wno-psabi"))


def assert_agrees(library: Path) -> None:
    """Quantized products of this library are those of torch."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BUILD],
        env={**os.environ, "PLIMSOLL_KERNELS_LIBRARY": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "agrees\n", done.stderr
