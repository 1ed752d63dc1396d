"""Fold the scale of a grouping (`api/families`) into what makes its targets' input.

Norms of the form x * (offset + w) are folded on offset + w.
"""

import torch
from torch import Tensor

from plimsoll.api.families.family import Grouping
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import LINEARS
from plimsoll.api.model import ModelFacts
from plimsoll.quantjob.layer import LayerWeights


def groupings_of(facts: ModelFacts) -> tuple[Grouping, ...]:
    """What the model's family says; empty where rounding to nearest is all there is."""
    return find_family(facts.architecture).groupings


def spread(grouping: Grouping, scale: Tensor, facts: ModelFacts) -> Tensor:
    """A scale of the source's channels as one of the targets' columns."""
    if not grouping.heads:
        return scale
    share = facts.num_heads // facts.num_kv_heads
    return scale.view(facts.num_kv_heads, 1, -1).expand(-1, share, -1).reshape(-1)


def gather(grouping: Grouping, columns: Tensor, facts: ModelFacts) -> Tensor:
    """The mean over the columns that each of the source's channels feeds."""
    if not grouping.heads:
        return columns
    return columns.view(facts.num_kv_heads, -1, facts.head_dim).mean(1).reshape(-1)


def foldable(grouping: Grouping, scale: Tensor, weights: LayerWeights, stored: torch.dtype) -> Tensor:
    """The scale nearest to `scale` that folds without error into a norm kept in `stored`; 1 where the norm is 0.

    A linear source takes any scale, since its own rows are rounded after.
    """
    if grouping.source in LINEARS:
        return scale
    offset = weights.spec.norm.offset
    norm = weights[grouping.source] + offset
    folded = ((norm / scale - offset).to(stored).to(torch.float32)) + offset
    exact = norm / folded
    return torch.where(torch.isfinite(exact) & (exact > 0), exact, torch.ones_like(exact))


def fold(grouping: Grouping, scale: Tensor, weights: LayerWeights) -> None:
    """Divide the source by `scale` (of its channels), in place. The targets are the caller's, and so are the codes of a
    linear that is not held."""
    source = weights.get(grouping.source)
    if grouping.source in LINEARS:
        if source is not None:
            source /= scale[:, None]
        if (bias := weights.get(f"{grouping.source}_bias")) is not None:
            bias /= scale
    else:
        assert source is not None
        offset = weights.spec.norm.offset
        source.copy_((source + offset) / scale - offset)
