"""Where the processor multiplies pairs of bfloat16, every product has the order of sums that `csrc/pairs.h` states."""

import pytest
import torch

from plimsoll.runtime.kernels.native import native_kernels, native_library
from plimsoll.runtime.kernels.quantized import QuantizedMatrix
from tests.kernels.test_tiles import column_by_column

CHUNK = 256
"""Columns of weights of 4 and 8 bits that are summed before their scale is applied."""


def in_pairs() -> bool:
    return bool(native_library().pairs_work())


def to_odd(exact: torch.Tensor) -> torch.Tensor:
    """float64 -> float32, rounded to odd: what float32 does not hold becomes the neighbour whose last bit is 1."""
    near = exact.float()
    bits = near.view(torch.int32)
    below = torch.where(near.double().abs() > exact.abs(), bits - 1, bits)
    return torch.where(near.double() == exact, bits, below | 1).view(torch.float32)


def summed_at_once(x: torch.Tensor, w: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """start [T, N] + x [T, K] w [N, K]^T as BFDOT adds: both products of a pair, rounded to odd, and so their sum."""
    total = start.float()
    for k in range(0, x.shape[1], 2):
        both = to_odd(x[:, k : k + 2].double() @ w[:, k : k + 2].double().T)
        total = to_odd(total.double() + both.double())
    return total


def summed(x: torch.Tensor, w: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """start [T, N] + x [T, K] w [N, K]^T: for each pair of columns the odd one and then the even one, each rounded.

    float64 holds every product, and its sum with what came before, of the numbers used here.
    """
    if native_library().bfdot_works():
        return summed_at_once(x, w, start)
    total = start.float()
    for k in range(0, x.shape[1], 2):
        for column in (k + 1, k):
            if column < x.shape[1]:
                total = (total.double() + x[:, column, None].double() * w[None, :, column].double()).float()
    return total


def moderate(*shape: int) -> torch.Tensor:
    """Numbers of bfloat16 from 1/8 to 16, of either sign: sums round, and float64 holds what they round."""
    numbers = (2.0 ** torch.randint(-3, 4, shape)) * (1 + torch.randint(0, 128, shape) / 128)
    return numbers * (torch.randint(0, 2, shape) * 2 - 1)


@pytest.mark.parametrize("columns", [2, 63, 264, 801])
def test_bfloat16_weights_are_summed_pair_by_pair(columns: int) -> None:
    if not in_pairs():
        pytest.skip("this processor does not multiply all rows in pairs")
    torch.manual_seed(columns)
    x, w, bias = moderate(30, columns), moderate(70, columns), moderate(70)
    ops = native_kernels("cpu", torch.bfloat16)
    packed, wanted = ops.pack(w.bfloat16()), summed(x, w, bias.expand(30, 70))
    for rows in (1, 2, 3, 4, 5, 12, 13, 25, 30):
        assert torch.equal(ops.linear(x[:rows], packed, bias), wanted[:rows])
        assert torch.equal(ops.linear(x[-rows:], packed, bias), wanted[-rows:])


@pytest.mark.parametrize(("bits", "columns", "groups"), [(4, 320, 1), (4, 128, 2), (8, 321, 1), (8, 66, 2)])
def test_codes_are_summed_pair_by_pair_in_chunks_of_a_group(bits: int, columns: int, groups: int) -> None:
    """Scales are powers of 2, and the zero point of 4 bits is what lies as 0, so that neither rounds anything."""
    if not in_pairs():
        pytest.skip("this processor does not multiply all rows in pairs")
    torch.manual_seed(columns)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (70, columns)).to(torch.uint8 if bits == 4 else torch.int8)
    scales = 2.0 ** torch.randint(-2, 3, (70, groups))
    zeros = torch.full((70, groups), 8, dtype=torch.uint8) if bits == 4 else None
    ops, x, group = native_kernels("cpu", torch.bfloat16), moderate(30, columns), columns // groups
    packed = ops.pack_quantized(QuantizedMatrix(bits, codes, scales.half(), zeros))
    wanted, numbers = torch.zeros(30, 70), codes.float() - (8 if bits == 4 else 0)
    for begin in range(0, columns, group):
        for start in range(begin, begin + group, CHUNK):
            end = min(start + CHUNK, begin + group)
            dots = summed(x[:, start:end], numbers[:, start:end], torch.zeros(30, 70))
            wanted = (wanted.double() + dots.double() * scales[:, begin // group].double()).float()
    for rows in (1, 2, 3, 4, 5, 12, 13, 25, 30):
        assert torch.equal(ops.linear(x[:rows], packed, None), wanted[:rows])
        assert torch.equal(ops.linear(x[-rows:], packed, None), wanted[-rows:])


def test_a_sum_takes_the_odd_column_of_a_pair_first() -> None:
    """1 is lost beside 2**24: it is kept where 2**24 is subtracted before, and lost where 2**24 is added once more."""
    ops, big = native_kernels("cpu", torch.bfloat16), float(1 << 24)
    x = torch.zeros(2, 64)
    x[0, :4] = torch.tensor([0, big, 1, -big])
    x[1, :8] = torch.tensor([0, big, 1, -big, 0, big, 0, -big])
    packed = ops.pack(torch.ones(3, 64).bfloat16())
    # BFDOT makes 2**24 + 1 odd: 2**24 + 2. With AVX2 one column follows the other, and 1 is lost in both. On other
    # processors even columns have a sum of their own, so that nothing is lost.
    second = 2.0 if native_library().bfdot_works() else 0.0 if in_pairs() else 1.0
    wanted = torch.tensor([0.0, 0.0] if column_by_column() else [1.0, second])[:, None].expand(2, 3)
    assert torch.equal(ops.linear(x, packed, None), wanted)
    assert torch.equal(ops.linear(x.repeat(4, 1), packed, None), wanted.repeat(4, 1))


def test_rows_of_a_last_band_that_has_one_or_two_keep_their_bits() -> None:
    """Many bands of few columns leave the last one almost empty."""
    torch.manual_seed(0)
    ops = native_kernels("cpu", torch.bfloat16)
    codes, scales = torch.randint(-128, 128, (32, 32)).char(), (torch.rand(32, 1) / 10).half()
    for weight in (
        ops.pack(torch.randn(32, 32).bfloat16()),
        ops.pack_quantized(QuantizedMatrix(8, codes, scales)),
        ops.pack_quantized(QuantizedMatrix(4, (codes.int() % 16).byte(), scales, torch.full((32, 1), 7).byte())),
    ):
        x = torch.randn(6625, 32)
        assert torch.equal(ops.linear(x, weight, None)[-2:].clone(), ops.linear(x[-2:], weight, None))
