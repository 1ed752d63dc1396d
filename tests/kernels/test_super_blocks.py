"""Weights whose scales are bytes that super-blocks multiply, and codes of 8 bits with minimums: every path of every
table against what they stand for, and rows against themselves."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.kernels.native import native_kernels, native_library
from plimsoll.runtime.kernels.quantized import SUPER, QuantizedMatrix, dequantize
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.kernels.test_quantized import check

BITS, GROUPS = st.sampled_from([4, 8]), st.sampled_from([16, 32, 64, 256])


def in_super_blocks(bits: Literal[4, 8], rows: int, group: int, blocks: int, minimums: bool) -> QuantizedMatrix:
    """Random codes, scales and minimums of every sign."""
    columns, groups = blocks * SUPER, (rows, blocks * SUPER // group)
    low, high, dtype = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    codes = torch.randint(low, high, (rows, columns)).to(dtype)
    scales, least = (torch.randint(-128, 128, groups).to(torch.int8) for _ in range(2))
    factors, others = ((torch.rand(rows, blocks) / 128 / columns**0.5).half() for _ in range(2))
    if not minimums:
        return QuantizedMatrix(bits, codes, scales, super_scales=factors)
    return QuantizedMatrix(bits, codes, scales, None, least, factors, others * 4)


def with_minimums(rows: int, group: int, groups: int) -> QuantizedMatrix:
    """Codes of 8 bits and minimums of float16, as Q5_1 is held."""
    codes, scales = torch.randint(0, 32, (rows, group * groups)).to(torch.int8), torch.rand(rows, groups) / 32
    return QuantizedMatrix(8, codes, scales.half(), None, (-16 * scales * torch.rand(rows, groups)).half())


def holds(matrix: QuantizedMatrix, rows: int, threads: int = 1) -> None:
    """Both tables multiply by, look up and give back what the codes stand for, in the bytes said; each row as alone."""
    (outputs, columns), before = matrix.codes.shape, torch.get_num_threads()
    native, plain = native_kernels("cpu", torch.bfloat16), torch_kernels("cpu", torch.float32)
    values, ids = dequantize(matrix, torch.float32), torch.arange(outputs).flip(0)
    panel = native_library().panel_width()
    weight, twin, x = native.pack_quantized(matrix), plain.pack_quantized(matrix), torch.randn(rows, columns)
    assert weight.nbytes * outputs == twin.nbytes * -(-outputs // panel) * panel
    for table, held in ((native, weight), (plain, twin)):
        assert torch.equal(table.embedding(ids, held), values[ids])
    assert torch.equal(weight.unpack_rows(native_library(), 0, outputs), values.bfloat16())
    assert torch.equal(plain.linear(x, twin, None), torch.nn.functional.linear(x, values))
    torch.set_num_threads(threads)
    try:
        found = native.linear(x, weight, None).clone()
    finally:
        torch.set_num_threads(before)
    check(found, x, matrix)
    for start, stop in {(0, 1), (rows // 2, rows // 2 + 1), (rows - 1, rows), (rows // 3, rows // 3 + 14)}:
        assert torch.equal(native.linear(x[start:stop], weight, None), found[start:stop])


@settings(deadline=None, max_examples=60)
@given(
    BITS, st.integers(1, 200), st.integers(1, 140), GROUPS, st.integers(1, 3), st.booleans(), st.sampled_from([1, 3])
)
def test_super_blocks_are_multiplied_by_what_they_stand_for_and_each_row_is_what_it_is_alone(
    bits: Literal[4, 8], rows: int, outputs: int, group: int, blocks: int, minimums: bool, threads: int
) -> None:
    torch.manual_seed(rows)
    holds(in_super_blocks(bits, outputs, group, blocks, minimums), rows, threads)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(1, 140), st.integers(1, 70), st.integers(1, 3), st.sampled_from([1, 3]))
def test_codes_of_8_bits_may_have_minimums(rows: int, outputs: int, group: int, groups: int, threads: int) -> None:
    torch.manual_seed(rows)
    holds(with_minimums(outputs, group, groups), rows, threads)


@pytest.mark.parametrize(("bits", "group", "minimums", "size"), [
    (4, 32, True, 148), (8, 32, True, 276), (8, 16, False, 274), (8, 16, True, 292),
])  # fmt: skip
def test_256_columns_take_so_many_bytes(bits: Literal[4, 8], group: int, minimums: bool, size: int) -> None:
    matrix = in_super_blocks(bits, 64, group, 2, minimums)
    for ops in (native_kernels("cpu", torch.bfloat16), torch_kernels("cpu", torch.float32)):
        assert ops.pack_quantized(matrix).nbytes == 64 * 2 * size


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_one_changed_bit_of_a_code_a_scale_or_a_minimum_shows(bits: Literal[4, 8], rows: int) -> None:
    """Whatever byte of a panel it lies in: a kernel that skips one, or reads it for another output, is found out."""
    torch.manual_seed(1)
    ops, matrix = native_kernels("cpu", torch.bfloat16), in_super_blocks(bits, 32, 32, 1, True)
    x = torch.randn(rows, SUPER)
    weight = ops.pack_quantized(matrix)
    whole = ops.linear(x, weight, None).clone()
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "codes": lambda part: part ^ 4, "scales": lambda part: part ^ 8, "minimums": lambda part: part ^ 8,
        "super_scales": lambda part: part * 1.5, "super_minimums": lambda part: part * 1.5,
    }  # fmt: skip
    for name, change in changes.items():
        for row, column in ((0, 0), (17, -1)):
            parts = {field: values.clone() for field, values in matrix.tensors()}
            parts[name][row, column] = change(parts[name][row, column])
            found = ops.linear(x, ops.pack_quantized(QuantizedMatrix(bits, **parts)), None)
            changed = (found != whole).any(0)
            assert changed[row], name
            assert int(changed.sum()) == 1
            check(found, x, QuantizedMatrix(bits, **parts))
            with pytest.raises(AssertionError):
                check(whole, x, QuantizedMatrix(bits, **parts))


FOUR = in_super_blocks(4, 3, 32, 2, True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"super_scales": None}, "int8"),
        ({"super_scales": None, "scales": torch.ones(3, 16).half(), "minimums": None}, "super-blocks have scales"),
        ({"super_minimums": None}, "minimums in each group or in none"),
        ({"minimums": None}, "minimums in each group or in none"),
        ({"minimums": torch.ones(3, 16).half()}, "not torch.int8 as scales"),
        ({"zeros": torch.zeros(3, 16, dtype=torch.uint8)}, "without zero points"),
        ({"super_scales": torch.ones(3, 1).half()}, "not one a block"),
        ({"super_minimums": torch.ones(3, 2)}, "float32"),
        ({"codes": FOUR.codes[:, :384], "scales": FOUR.scales[:, :12], "minimums": FOUR.scales[:, :12]}, "no super-bl"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed: dict[str, torch.Tensor | None], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuantizedMatrix(4, **{**dict(FOUR.tensors()), **changed})  # type: ignore[arg-type]
