"""Grids, ranges, Gram matrices and compensated codes: each against the plain sum it stands for."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from plimsoll.api.errors import CheckpointError
from plimsoll.quantjob import gram as gram_module
from plimsoll.quantjob.clip import narrowed
from plimsoll.quantjob.coding import Coder, nearest
from plimsoll.quantjob.compensate import DAMPING, believed, compensated, order_of
from plimsoll.quantjob.gram import Gram
from plimsoll.quantjob.rounding import LEAST_SCALE, MOST_SCALE, Rounding, fit
from plimsoll.quantjob.search import best, candidates
from plimsoll.quantjob.workers import Workers
from plimsoll.runtime.models.rounding import round_to_nearest

WORKERS = Workers(2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(inputs: Tensor, group: int = 32) -> Gram:
    gram = Gram(inputs.shape[-1], group)
    gram.add(list(inputs), WORKERS)
    return gram


@given(
    st.integers(0, 2**31), st.sampled_from([1e-9, 1e-4, 1.0, 300.0]), st.sampled_from([-5.0, 0.0, 0.7, 5.0]),
    st.sampled_from([Rounding(4, 32), Rounding(4, 64), Rounding(8)]),
)  # fmt: skip
def test_every_value_is_within_half_a_step_of_its_code_and_scales_are_float16(
    seed: int, size: float, offset: float, rounding: Rounding
) -> None:
    weight = size * (random(5, 128, seed=seed) + offset)
    grid = fit(weight, rounding)
    codes = grid.codes(weight)
    assert torch.equal(grid.scales, grid.scales.half().float())
    assert int(codes.min()) >= (0 if rounding.bits == 4 else -127)
    assert int(codes.max()) <= (15 if rounding.bits == 4 else 127)
    apart = (grid.values(codes) - weight).abs().view(5, grid.scales.shape[1], -1)
    # A rounded scale and a rounded zero point may cost the outermost values another half a step; where float16 has
    # only multiples of its least number, a scale is off by half of that, as often as the code counts it.
    assert bool((apart <= grid.scales.unsqueeze(-1) * 1.1 + LEAST_SCALE * 80).all())


@given(
    st.integers(0, 2**31), st.sampled_from([1e-9, 3e-7, 1e-3, 1.0, 7e4]), st.sampled_from([-5.0, -1.0, 0.0, 0.7, 5.0]),
    st.sampled_from([(4, 32), (4, 64), (4, 128), (8, 128)]), st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_what_is_rounded_at_load_is_what_a_job_of_method_rtn_or_int8_writes(
    seed: int, size: float, offset: float, shape: tuple[Literal[4, 8], int], dtype: torch.dtype
) -> None:
    bits, group = shape
    weight = (size * (random(6, 128, seed=seed) + offset)).to(dtype).float()
    weight[0] = 0
    weight[1, ::3] = 0
    weight[2] = weight[2, 0]
    served = round_to_nearest(weight.clone(), bits, group, "w")
    grid = fit(weight, Rounding(bits, 0 if bits == 8 else group))
    assert torch.equal(served.scales, grid.scales.half())
    assert torch.equal(served.codes, grid.codes(weight).to(served.codes.dtype))
    if grid.zeros is None:
        assert served.zeros is None
    else:
        assert served.zeros is not None
        assert torch.equal(served.zeros, grid.zeros.to(torch.uint8))


def test_weights_beyond_a_scale_of_float16_have_an_infinite_grid_and_are_refused_at_load() -> None:
    for bad in (1e8, float("nan"), float("inf")):
        weight = torch.ones(2, 64)
        weight[1, 5] = bad
        # The walk refuses such a grid by its layer and role, which only it knows.
        assert not bool((fit(weight, Rounding(4, 32)).scales <= MOST_SCALE).all())
        assert not bool((fit(weight, Rounding(8)).scales <= MOST_SCALE).all())
        with pytest.raises(CheckpointError, match="w: holds values that are not finite, or too large"):
            round_to_nearest(weight, 4, 32, "w")
        with pytest.raises(CheckpointError, match="w: holds values that are not finite, or too large"):
            round_to_nearest(weight, 8, 64, "w")


def test_groups_of_zeros_and_of_one_value_stay_finite() -> None:
    weight = torch.zeros(3, 64)
    weight[1] = 3.0
    weight[2] = -0.25
    for rounding in (Rounding(4, 32), Rounding(8)):
        torch.testing.assert_close(fit(weight, rounding).nearest(weight), weight, rtol=2e-3, atol=1e-6)


def test_a_gram_matrix_gives_the_error_of_the_outputs(monkeypatch: object) -> None:
    inputs, change = random(3, 50, 96), random(7, 96, seed=1)
    wanted = float((inputs.flatten(0, 1) @ change.T).square().sum())
    torch.testing.assert_close(float(seen(inputs).loss(change)), wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(seen(inputs).mean_magnitude, inputs.abs().mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_a_wide_gram_matrix_is_cut_at_groups_and_its_bits_depend_on_no_batch() -> None:
    wide = 2 * gram_module.WIDEST + 64
    inputs = random(4, 3, wide)
    whole, halves = Gram(wide, 64), Gram(wide, 64)
    whole.add(list(inputs), WORKERS)
    for start in (0, 2):
        halves.add(list(inputs[start : start + 2]), Workers(1))
    assert [block.start % 64 for block in whole.blocks] == [0, 0, 0]
    assert all(torch.equal(a.gram, b.gram) for a, b in zip(whole.blocks, halves.blocks, strict=True))
    parts = whole.of_groups(64)
    columns = inputs.flatten(0, 1)[:, 64 * 40 : 64 * 41]
    torch.testing.assert_close(parts[40], columns.T @ columns, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**31))
def test_narrower_ranges_are_never_worse_on_what_was_seen(seed: int) -> None:
    weight, inputs = random(6, 64, seed=seed), random(2, 40, 64, seed=seed + 1) * random(64, seed=seed + 2).exp()
    weight[:, 3] *= 6
    moments = seen(inputs).of_groups(32)

    def loss(values: Tensor) -> float:
        change = (values - weight).view(6, 2, 32)
        return float(torch.einsum("rgk,gkl,rgl->", change, moments, change))

    narrow = loss(narrowed(weight, 32, moments).nearest(weight))
    assert narrow <= loss(fit(weight, Rounding(4, 32)).nearest(weight)) * (1 + 1e-4)


def test_compensated_codes_cost_less_than_the_nearest_ones() -> None:
    mixing = random(64, 64, seed=3)
    gram, weight = seen(random(8, 100, 64) @ mixing), random(16, 64, seed=4)
    grid = fit(weight, Rounding(4, 32))
    order = order_of(gram.blocks[0].gram, torch.ones(64), 10**6)
    assert order is not None
    codes = compensated(weight, grid, order)
    assert torch.equal(codes, codes.round())
    assert 0 <= int(codes.min()) <= int(codes.max()) <= 15
    assert float(gram.loss(grid.values(codes) - weight)) < 0.7 * float(gram.loss(grid.nearest(weight) - weight))


def test_the_order_of_columns_has_the_factor_of_what_their_inputs_have_in_common() -> None:
    gram, scale = seen(random(8, 100, 96) @ random(96, 96, seed=1)).blocks[0].gram, random(96, seed=2).exp()
    order = order_of(gram, scale, 5000)
    assert order is not None
    moments = (gram / torch.outer(scale, scale)).double()
    assert order.columns.tolist() == moments.diagonal().argsort(descending=True).tolist()
    damped = moments * believed(5000)
    damped.diagonal().copy_(moments.diagonal() + DAMPING * moments.diagonal().mean())
    inverse = torch.linalg.inv(damped[order.columns][:, order.columns])
    assert torch.equal(order.factor, order.factor.triu())
    torch.testing.assert_close((order.factor.T @ order.factor).double(), inverse, rtol=1e-3, atol=1e-6)
    assert order_of(torch.full((4, 4), float("nan")), torch.ones(4), 5000) is None


def test_inputs_that_are_all_zero_are_coded_as_the_nearest() -> None:
    gram, weight = seen(torch.zeros(1, 4, 64)), random(8, 64)
    (run,) = Coder(gram, torch.ones(64), 32, clip=False, compensate=True)([weight], WORKERS)
    assert torch.equal(run.coded.values(), nearest(weight, Rounding(4, 32), WORKERS).values())
    assert run.loss == run.nearest_loss == 0


def test_a_search_stays_with_the_identity_where_nothing_finite_is_better() -> None:
    found = candidates(random(16).abs(), random(16, seed=1).abs())
    for losses in ([1.0] * len(found), [float("nan")] * len(found), [1.0, *[float("inf")] * (len(found) - 1)]):
        assert best(found, losses) is found[0]
    assert all(bool(torch.isfinite(candidate.scale).all()) for candidate in candidates(torch.zeros(8), torch.zeros(8)))
