"""Attention over a cache of bfloat16 where the processor multiplies pairs, or tiles: the order of sums and the rounding
that `csrc/attention_pairs.c` states, to the bit. `test_amx.py` runs this in tiles."""

from typing import Literal

import pytest
import torch

from plimsoll.runtime.kernels.native import native_kernels, native_library
from plimsoll.runtime.kernels.torch_ops import torch_kernels
from tests.kernels.test_native import paged
from tests.kernels.test_pairs import summed

LOG2_E = torch.tensor(1.44269504088896341)
#: Of 2^x on [-1/2, 1/2], the highest power first.
POWERS = torch.tensor([9.582836385263582e-3, 5.590641339066969e-2, 0.24024098822058854, 0.6931241947999938, 1.0])


@pytest.fixture(autouse=True)
def _pairs() -> None:
    if not native_library().attention_in_pairs(1, 64):
        pytest.skip("this processor does not multiply pairs of bfloat16")
    torch.manual_seed(0)


def fused(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return (a.double() * b.double() + c.double()).float()


def in_tiles(x: torch.Tensor, w: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """start [T, N] + x [T, K] w [N, K]^T as `csrc/dots.h` sums: of 32 columns even and odd ones, then both."""
    total = start
    for begin in range(0, x.shape[1], 32):
        halves = [torch.zeros_like(start), torch.zeros_like(start)]
        for k in range(begin, min(begin + 32, x.shape[1])):
            halves[k % 2] = fused(x[:, k, None], w[None, :, k], halves[k % 2])
        total = total + (halves[0] + halves[1])
    return total


def power_of_2(x: torch.Tensor) -> torch.Tensor:
    x = x.clamp(min=-160)
    part, p = x - x.round(), POWERS[0].expand(x.shape)
    for factor in POWERS[1:]:
        p = fused(p, part, factor)
    return (p.double() * 2.0 ** x.round().double()).float()


def attended(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, size: int) -> torch.Tensor:
    """What one query [D] gets of keys and values [S, D] of bfloat16, `size` a block; it sees all of them."""
    q, factor = q.bfloat16().float(), torch.tensor(scale) * LOG2_E
    product = in_tiles if native_library().attention_in_tiles(1, 64) else summed
    top, mass, mixed = torch.tensor(-1e30), torch.zeros(16), torch.zeros(values.shape[1])
    for at in range(0, len(keys), size):
        end = min(at + size, len(keys))
        scores = product(q[None], keys[at:end], torch.zeros(1, end - at))[0]
        highest = (scores * factor).max()
        if highest > top:
            shrink = power_of_2(top - highest)
            mass, mixed, top = mass * shrink, mixed * shrink, highest
        weights = torch.zeros(-(-(end - at) // 32) * 32)
        weights[: end - at] = power_of_2(fused(scores, factor, -top)).bfloat16().float()
        for pair in weights.view(-1, 16, 2):
            for column in (1, 0):
                mass = mass + pair[:, column]
        width = values.shape[1]
        if product is in_tiles:
            mixed = in_tiles(weights[None, : end - at], values[at:end].T, mixed[None])[0]
        else:
            mixed = mixed + summed(weights[None, : end - at], values[at:end].T, torch.zeros(1, width))[0]
    total = torch.tensor(0.0)
    for lane in mass:
        total = total + lane
    return mixed / total


@pytest.mark.parametrize(("dim", "size"), [(8, 16), (20, 16), (64, 64), (80, 32)])
def test_queries_are_rounded_and_pairs_are_summed_in_one_order(dim: int, size: int) -> None:
    ops, contexts, scale = native_kernels("cpu", torch.bfloat16), [1, 31, 150], dim**-0.5
    keys, values = ([torch.randn(context, 2, dim) for context in contexts] for _ in range(2))
    step = paged(ops, keys, values, [1, 2, 5], size, torch.bfloat16)
    q = torch.randn(8, 6, dim)
    found = ops.attention(q, step.cache, step.batch, scale, None).view(8, 6, dim)
    for b, row, context in ((0, 0, 1), (1, 1, 30), (1, 2, 31), (2, 3, 146), (2, 7, 150)):
        for head in (0, 2, 5):
            own = [x[b][:context, head // 3].bfloat16().float() for x in (keys, values)]
            assert torch.equal(found[row, head], attended(q[row, head], *own, scale, size))


def test_weights_of_a_row_add_up_to_one() -> None:
    """Of equal values the answer is that value, although each weight is rounded."""
    ops, keys = native_kernels("cpu", torch.bfloat16), [torch.randn(300, 1, 64)]
    step = paged(ops, keys, [torch.full((300, 1, 64), 0.75)], [40], 64, torch.bfloat16)
    found = ops.attention(torch.randn(40, 3, 64), step.cache, step.batch, 0.125, None)
    torch.testing.assert_close(found, torch.full_like(found, 0.75), rtol=1e-6, atol=0)


def test_a_number_that_is_none_stays_in_its_row() -> None:
    ops, keys = native_kernels("cpu", torch.bfloat16), [torch.randn(70, 1, 16)]
    step, q = paged(ops, keys, keys, [30], 16, torch.bfloat16), torch.randn(30, 2, 16)
    clean = ops.attention(q, step.cache, step.batch, 0.25, None)
    q[7, 1, 3] = float("nan")
    found = ops.attention(q, step.cache, step.batch, 0.25, None).view(30, 2, 16)
    assert found[7, 1].isnan().all()
    found[7, 1] = clean.view(30, 2, 16)[7, 1]
    assert torch.equal(found.view(30, 32), clean)


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("held", [torch.bfloat16, 8, 4])
@pytest.mark.parametrize("dim", [64, 96, 48])
def test_a_row_among_many_of_whole_blocks_is_what_it_is_alone(
    dim: int, held: torch.dtype | Literal[4, 8], window: int | None
) -> None:
    """Many rows share pairs that are made once, and see whole blocks of keys or hide some; one row does neither."""
    ops, keys, values = native_kernels("cpu", torch.bfloat16), torch.randn(200, 2, dim), torch.randn(200, 2, dim) + 2
    q = torch.randn(200, 6, dim)
    whole = paged(ops, [keys], [values], [200], 64, held)
    found = ops.attention(q, whole.cache, whole.batch, 0.125, window).clone()
    for row in (0, 40, 62, 63, 64, 127, 150, 199):
        alone = paged(ops, [keys[: row + 1]], [values[: row + 1]], [1], 64, held)
        assert torch.equal(ops.attention(q[row : row + 1], alone.cache, alone.batch, 0.125, window)[0], found[row])


@pytest.mark.parametrize("held", [8, 4])
def test_scores_are_those_of_every_bit_of_a_key(held: Literal[8, 4]) -> None:
    """Beside plain torch over the same codes. Keys are large enough that a wrong bit shows in the weights."""
    ops, plain = native_kernels("cpu", torch.bfloat16), torch_kernels("cpu", torch.float32)
    keys, values, q = [torch.randn(150, 2, 64)], [torch.randn(150, 2, 64)], torch.randn(40, 6, 64)
    found, wanted = (
        table.attention(q, step.cache, step.batch, 0.125, None).view(40, 6, 64)
        for table in (ops, plain)
        for step in [paged(table, keys, values, [40], 64, held)]
    )
    assert float((found - wanted).abs().max()) < 0.03
