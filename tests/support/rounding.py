"""Products that round their rows to bfloat16: what answers to expect of them, and how closely."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from plimsoll.runtime.kernels.table import Kernels


def rounds_rows(kernels: Kernels) -> bool:
    """Whether products with weights narrower than float32 round their rows."""
    return kernels.name.startswith("native")


def rounded(kernels: Kernels) -> Kernels:
    """The table, with rows of all products rounded if those with codes are: float weights then answer as codes do."""
    if not rounds_rows(kernels):
        return kernels

    def linear(x: Tensor, weight: object, bias: Tensor | None) -> Tensor:
        return kernels.linear(x.bfloat16().float(), weight, bias)

    return dataclasses.replace(kernels, linear=linear, layers=None)


def assert_close(found: Sequence[Tensor], wanted: Sequence[Tensor], rounds: bool) -> None:
    """Log-probabilities [positions, vocabulary] of each prompt agree within 1e-4.

    `rounds`: where sums run in another order, a few values go to the other neighbour. So some positions differ, by
    little, and the rest agree as closely as ever.
    """
    apart = torch.cat([(ours - theirs).abs().amax(1) for ours, theirs in zip(found, wanted, strict=True)])
    assert float((apart > 1e-4).float().mean()) <= (0.8 if rounds else 0), apart
    assert float(apart.max()) <= 0.15, apart
