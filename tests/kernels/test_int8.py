"""Rows of 8 bits against codes: what they stand for, one row's bits for any number of rows, and on every processor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.kernels import build
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized import PIECE, QuantizedMatrix, dequantize, quantized_rows
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.kernels.test_super_blocks import in_super_blocks, with_minimums
from tests.support.libraries import V4_WITHOUT_PRODUCTS, Libraries


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def native() -> Kernels:
    return native_kernels("cpu", torch.bfloat16, int8=True)


def matrix(
    bits: Literal[4, 8], outputs: int, group: int, groups: int, scales: torch.dtype, minimums: bool
) -> QuantizedMatrix:
    factors = (torch.rand(outputs, groups) / 10).to(scales)
    if bits == 8:
        return QuantizedMatrix(8, torch.randint(-128, 128, (outputs, group * groups)).to(torch.int8), factors)
    codes, zeros = (torch.randint(0, 16, (outputs, size)).to(torch.uint8) for size in (group * groups, groups))
    if minimums:
        return QuantizedMatrix(4, codes, factors.half(), None, (-8 * factors).half())
    return QuantizedMatrix(4, codes, factors, zeros)


def holds(found: torch.Tensor, x: torch.Tensor, held: QuantizedMatrix, bias: torch.Tensor | None) -> None:
    """Within float32's rounding of sums, of rows as the plain table quantizes them."""
    rows, weight = quantized_rows(x, held.group_size).double(), dequantize(held, torch.float32).double()
    wanted, size = rows @ weight.T, rows.abs() @ (weight.abs() + weight.abs().amax()).T
    if bias is not None:
        wanted, size = wanted + bias, size + bias.abs()
    assert float(((found.double() - wanted).abs() / (size + 1e-30)).max()) < 2e-6


SCALES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([(4, 8), (4, 32), (4, 64), (4, 96), (4, 136), (4, 640), (8, 0)]), st.integers(1, 700),
    st.integers(1, 60), st.integers(1, 140), st.integers(1, 4), SCALES, st.booleans(), st.booleans(),
    st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_a_product_is_that_of_quantized_rows_and_a_row_is_what_it_is_alone(
    kind: tuple[Literal[4, 8], int], odd: int, rows: int, outputs: int, groups: int, scales: torch.dtype,
    minimums: bool, biased: bool, threads: int,
) -> None:  # fmt: skip
    bits, group = kind[0], kind[1] or odd
    held = matrix(bits, outputs, group, groups, scales, minimums)
    ops, x, bias = native(), torch.randn(rows, group * groups), torch.randn(outputs) if biased else None
    packed = ops.pack_quantized(held)
    torch.set_num_threads(threads)
    found = ops.linear(x, packed, bias).clone()
    holds(found, x, held, bias)
    torch.set_num_threads(1)
    for start, stop in {(0, 1), (rows // 2, rows // 2 + 1), (rows // 3, rows // 3 + 3), (rows - 13, rows)}:
        part = slice(max(0, start), stop)
        assert torch.equal(ops.linear(x[part], packed, bias), found[part])


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([4, 8]), st.integers(1, 60), st.integers(1, 140), st.sampled_from([16, 32, 64, 256]),
    st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_super_blocks_and_minimums_of_8_bits_are_multiplied_too(
    bits: Literal[4, 8], rows: int, outputs: int, group: int, blocks: int, minimums: bool
) -> None:
    for held in (in_super_blocks(bits, outputs, group, blocks, minimums), with_minimums(outputs, group + 1, blocks)):
        ops, x = native(), torch.randn(rows, held.codes.shape[1])
        packed = ops.pack_quantized(held)
        found = ops.linear(x, packed, None).clone()
        holds(found, x, held, None)
        assert torch.equal(ops.linear(x[-1:], packed, None), found[-1:])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_one_changed_code_scale_or_column_shows(bits: Literal[4, 8], rows: int) -> None:
    """Whatever its place in a panel or a word: a kernel that skips one, or reads it for another, is found out."""
    ops, held, x = native(), matrix(bits, 40, 40, 2, torch.float16, False), 1 + torch.rand(rows, 80)
    whole = ops.linear(x, ops.pack_quantized(held), None).clone()
    for at in range(0, 80):
        codes, output = held.codes.clone(), 39 - at // 2
        codes[output, at] ^= 4
        changed = QuantizedMatrix(bits, codes, held.scales, held.zeros)
        found = ops.linear(x, ops.pack_quantized(changed), None)
        assert (found != whole).any(0).nonzero().flatten().tolist() == [output]
        holds(found, x, changed, None)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(-20, 20))
def test_rows_are_the_nearest_of_255_numbers_in_each_piece(group: int, rows: int, power: int) -> None:
    x = torch.randn(rows, 2 * group) * 2.0**power
    found = quantized_rows(x, group)
    for begin in (0, group):
        for start in range(begin, begin + group, PIECE):
            piece = slice(start, min(start + PIECE, begin + group))
            step = x[:, piece].abs().amax(1, keepdim=True) / 127
            assert bool(((found[:, piece] - x[:, piece]).abs() <= step * 0.50001).all())
            assert bool((found[:, piece].abs() <= step * 127.0001).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_the_plain_table_multiplies_quantized_rows(bits: Literal[4, 8]) -> None:
    held, x, bias = matrix(bits, 30, 64, 3, torch.float16, False), torch.randn(5, 192), torch.randn(30)
    ops = torch_kernels("cpu", torch.float32, int8=True)
    wanted = torch.nn.functional.linear(quantized_rows(x, 64), dequantize(held, torch.float32), bias)
    torch.testing.assert_close(ops.linear(x, ops.pack_quantized(held), bias), wanted)
    floats = torch.randn(7, 192)
    assert torch.equal(ops.linear(x, ops.pack(floats), None), torch.nn.functional.linear(x, floats))


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_not_finite_or_zero_stays_in_its_row(bits: Literal[4, 8]) -> None:
    held = matrix(bits, 70, 72, 2, torch.float16, False)
    ops, x = native(), torch.randn(30, 144)
    packed, clean = ops.pack_quantized(held), torch.tensor([row not in (3, 4, 5, 6, 7, 8) for row in range(30)])
    before = ops.linear(x, packed, None).clone()
    x[3, 5], x[4, 140], x[5, 71], x[6], x[7], x[8] = torch.nan, torch.inf, -torch.inf, 0, x[7] * 1e-38, x[8] * 1e33
    found = ops.linear(x, packed, None)
    assert torch.equal(found[clean], before[clean])
    assert bool(found[3:6].isnan().all())
    assert bool((found[6:8] == 0).all())
    holds(found[8:9] / 1e33, x[8:9] / 1e33, held, None)
    for row in range(3, 9):
        torch.testing.assert_close(
            ops.linear(x[row : row + 1], packed, None)[0], found[row], rtol=0, atol=0, equal_nan=True
        )
    assert bool(quantized_rows(x, 72)[3].isnan().sum() == PIECE)


def test_rows_that_no_scratch_holds_at_once_keep_their_bits() -> None:
    held, ops = matrix(8, 33, 1024, 1, torch.float16, False), native()
    x, packed = torch.randn(6007, 1024), ops.pack_quantized(held)
    found = ops.linear(x, packed, None).clone()
    for rows in (slice(0, 2), slice(2990, 3020), slice(6000, 6007)):
        assert torch.equal(ops.linear(x[rows], packed, None), found[rows])


BITS = """
import hashlib, sys, torch
from plimsoll.runtime.kernels.native import native_kernels
from plimsoll.runtime.kernels.quantized import QuantizedMatrix
torch.manual_seed(0)
ops, digest = native_kernels("cpu", torch.bfloat16, int8=True), hashlib.sha256()
for bits, group in ((4, 8), (4, 32), (4, 136), (8, 77), (8, 600), (8, 3)):
    low, high, dtype = ((0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8))
    codes = torch.randint(low, high, (45, 3 * group)).to(dtype)
    scales = (torch.rand(45, 3) / 7).half()
    zeros = torch.randint(0, 16, (45, 3)).to(torch.uint8) if bits == 4 else None
    kinds = [QuantizedMatrix(bits, codes, scales, zeros), QuantizedMatrix(bits, codes, scales.float() / 3, zeros)]
    if bits == 4 or group == 77:
        kinds.append(QuantizedMatrix(bits, codes, scales, None, (-scales).half()))
    for one in kinds:
        weight, bias = ops.pack_quantized(one), torch.randn(45)
        for rows in (1, 2, 3, 4, 5, 11, 14, 31):
            x = torch.randn(rows, 3 * group) * 2.0 ** torch.randint(-30, 30, (rows, 3 * group))
            x[0, 1], x[-1] = float("inf"), x[-1] * 1e-36
            made = ops.linear(x, weight, bias)
            digest.update(made.nan_to_num(7.5).numpy().tobytes())
print(ops.name, digest.hexdigest())
"""


@pytest.fixture(scope="module")
def own_bits() -> str:
    return bits_of(build.library()).split()[-1]


def bits_of(library: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BITS],
        env={**os.environ, "PLIMSOLL_KERNELS_LIBRARY": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ("-march=x86-64", "-O1", "-Wno-psabi"),
        ("-march=x86-64-v3",),
        ("-march=x86-64-v3", "-DHAVE_VNNI=0"),
        V4_WITHOUT_PRODUCTS,
    ],
    ids=lambda flags: " ".join(flags),
)
def test_every_build_gives_the_same_bits(flags: tuple[str, ...], own_bits: str, libraries: Libraries) -> None:
    """With four products at once and without, in vectors of 4, 8 and 16 lanes."""
    if os.uname().machine != "x86_64":
        pytest.skip("the flags are those of x86-64")
    wanted = next((level for level in ("v3", "v4") if f"-march=x86-64-{level}" in flags), None)
    if wanted and f"x86-64-{wanted}" not in [variant.name for variant in build.fitting()]:
        pytest.skip("this processor does not run it")
    assert bits_of(libraries.built(*flags)).split()[-1] == own_bits


def test_the_name_says_that_rows_have_8_bits() -> None:
    assert "-int8" in native().name
    assert "int8" not in native_kernels("cpu", torch.bfloat16).name
    assert torch_kernels("cpu", torch.float32, int8=True).name == "torch-int8"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_of_a_piece_add_up_beside_the_largest_of_a_row(bits: Literal[4, 8], sign: int) -> None:
    """Where products are added in 16 bits a sum comes nearest to overflowing."""
    codes = torch.full((33, 64), 15, dtype=torch.uint8) if bits == 4 else torch.full((33, 64), -128, dtype=torch.int8)
    held = QuantizedMatrix(bits, codes, torch.ones(33, 1))
    ops = native()
    for rows in (1, 5, 13):
        found = ops.linear(torch.full((rows, 64), float(sign)), ops.pack_quantized(held), None)
        wanted = sign * dequantize(held, torch.float32).sum(1)
        torch.testing.assert_close(found, wanted.expand(rows, 33), rtol=1e-6, atol=0)
