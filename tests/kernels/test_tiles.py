"""Rows in tiles, in vectors and in pairs: one order of sums on a processor, so the same bits for any number of rows."""

from collections.abc import Callable

import pytest
import torch

from plimsoll.runtime.kernels.native import native_kernels, native_library
from plimsoll.runtime.kernels.quantized import QuantizedMatrix

ROWS = (1, 2, 3, 4, 7, 16, 33, 100, 512)
OUTPUTS, COLUMNS = 70, 264

Product = Callable[[torch.Tensor], torch.Tensor]


def products() -> dict[str, Product]:
    """Every product of the native table by bfloat16 rows, over columns that end within a block."""
    torch.manual_seed(0)
    ops, bias = native_kernels("cpu", torch.bfloat16), torch.randn(OUTPUTS)
    fours, eights = torch.randint(0, 16, (OUTPUTS, COLUMNS)).byte(), torch.randint(-128, 128, (OUTPUTS, COLUMNS)).char()
    scales = (torch.rand(OUTPUTS, 3) / 10).half()
    supers = torch.randint(-128, 128, (OUTPUTS, 16)).char(), scales[:, :1] / 100
    weights = {
        "bfloat16": ops.pack(torch.randn(OUTPUTS, COLUMNS).bfloat16()),
        "odd": ops.pack(torch.randn(OUTPUTS, COLUMNS + 1).bfloat16()),
        "zero points": ops.pack_quantized(QuantizedMatrix(4, fours, scales, torch.full((OUTPUTS, 3), 7).byte())),
        "minimums": ops.pack_quantized(QuantizedMatrix(4, fours, scales, None, -scales)),
        "8 bits": ops.pack_quantized(QuantizedMatrix(8, eights, scales)),
        "8 bits a row": ops.pack_quantized(QuantizedMatrix(8, eights, scales[:, :1].contiguous())),
        "super-blocks": ops.pack_quantized(QuantizedMatrix(8, eights[:, :256], supers[0], super_scales=supers[1])),
        "super-blocks with minimums": ops.pack_quantized(
            QuantizedMatrix(4, fours[:, :256], supers[0], None, supers[0].flip(1), supers[1], supers[1])
        ),
    }

    def product(name: str) -> Product:
        return lambda x: ops.linear(x if name == "odd" else x[:, : weights[name].columns], weights[name], bias).clone()

    return {name: product(name) for name in weights}


@pytest.mark.parametrize("name", products())
def test_a_row_has_the_bits_that_it_has_alone(name: str) -> None:
    product, x = products()[name], torch.randn(max(ROWS), COLUMNS + 1)
    # Values that tiles take for 0, that overflow, and that are no numbers, each in rows of their own.
    x[5], x[6, ::2], x[9, 3], x[11, 7] = x[5] * 1e-38, 1e-39, float("inf"), float("nan")
    x[13] *= 1e36
    alone = torch.cat([product(row[None]) for row in x])
    for rows in ROWS:
        torch.testing.assert_close(product(x[:rows]), alone[:rows], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(product(x[-rows:]), alone[-rows:], rtol=0, atol=0, equal_nan=True)


def column_by_column() -> bool:
    """Whether registers are so few that an output is one sum over its columns."""
    return native_kernels("cpu", torch.bfloat16).name in ("native-avx2", "native-avx", "native-generic")


def test_a_sum_is_that_of_even_and_of_odd_columns_of_each_block() -> None:
    """Whole numbers that float32 cannot all hold: another order would give another one of them."""
    if native_library().pairs_work():
        pytest.skip("this processor multiplies in pairs, whose order test_pairs.py holds")
    ops, big = native_kernels("cpu", torch.bfloat16), float(1 << 24)
    x = torch.zeros(8, 64)
    # Column 2 is lost in 2**24; columns 3 and 5 are not, as odd columns have a sum of their own; nor are 32 and 34.
    # Where one column follows the other each of them is lost.
    x[:, [0, 2, 3, 5, 32, 34]] = torch.tensor([big, 1, 1, 1, 1, 1])
    packed = ops.pack(torch.ones(3, 64).bfloat16())
    for rows in (1, 8):
        assert torch.equal(
            ops.linear(x[:rows], packed, None), torch.full((rows, 3), big if column_by_column() else big + 4)
        )
