"""Which linears share a scale of their input channels, and what the scale is folded into, as data per architecture.

A grouping multiplies column k of its targets by s[k] and divides what makes their input, the source, by the same: the
function stays, and the large channels get finer steps. Norms of the form x * (offset + w) are folded on offset + w.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plimsoll.api.model import ModelFacts
from plimsoll.quantjob.layer import LINEARS, LayerWeights


@dataclass(frozen=True)
class Grouping:
    """Roles of one decoder layer.

    Attributes:
        source: the norm or linear whose output channels the scale divides.
        targets: the linears whose input channels it multiplies.
        heads: the source's channels are key-value heads, each feeding the query heads that share it.
        offset: of a norm whose stored weight w means offset + w.
    """

    source: str
    targets: tuple[str, ...]
    heads: bool = False
    offset: float = 0.0


#: Every decoder with RMS norms and a gated MLP. Per-head norms of queries and keys lie behind q and k: nothing
#: is folded into or through them.
GATED = (
    Grouping("attention_norm", ("q", "k", "v")),
    Grouping("v", ("o",), heads=True),
    Grouping("mlp_norm", ("gate", "up")),
    Grouping("up", ("down",)),
)

GROUPINGS: Mapping[str, tuple[Grouping, ...]] = {
    "LlamaForCausalLM": GATED,
    "MistralForCausalLM": GATED,
    "Qwen2ForCausalLM": GATED,
    "Qwen3ForCausalLM": GATED,
    "InternLM2ForCausalLM": GATED,
}


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
    norm = weights[grouping.source] + grouping.offset
    folded = ((norm / scale - grouping.offset).to(stored).to(torch.float32)) + grouping.offset
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
        source.copy_((source + grouping.offset) / scale - grouping.offset)
