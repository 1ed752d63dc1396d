"""Models whose layers the native table computes in one call each, and with how little memory."""

from collections.abc import Iterable

from plimsoll.api.activations import rows_of
from plimsoll.api.device import TableFacts
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import ActivationPrecision, Codes, Precision

FEW_ROWS = 128
"""Below it a step's layers are one call: what starting operations costs matters, and its working space does not. From
it on, layers of codes whose rows are quantized to 8 bits are one call each, which take less working space."""
PIECE = 32
"""Columns that share a scale of a row of 8 bits."""


def covers(facts: ModelFacts) -> bool:
    """Whether `csrc/layers.c` and `wide_layers.c` compute layers as this model has them; others run op by op."""
    first = facts.layers[0]
    return first.rope is not None and all(
        spec.norm.kind == facts.final_norm.kind == "rms"
        and spec.norm.eps == facts.final_norm.eps
        and spec.placement == "before"
        and spec.qk_norm in (None, "head")
        and spec.attention_softcap is None
        and spec.rope == first.rope
        and first.rope.share == 1.0
        and spec.scale == first.scale
        and (spec.block, spec.activation, spec.gated) == ("mlp", "silu", True)
        and spec.residual_multiplier == 1.0
        for spec, _ in facts.kinds
    )


def runs_wide(
    facts: ModelFacts, precision: Precision, table: TableFacts, wish: ActivationPrecision, held: Iterable[Codes | None]
) -> bool:
    """Whether a step of many rows of one rank that holds the whole model runs through `csrc/wide_layers.c`. What MLPs
    make of their rows is in memory a piece at a time then.

    Args:
        wish: for rows of activations.
        held: how each linear weight is held; None is whole.
    """
    return (
        table.activation_rows is not None
        and rows_of(wish, precision, table) == "int8"
        and covers(facts)
        and facts.hidden_size % table.row_tile == 0
        and all(codes is not None and codes.group % PIECE == 0 for codes in held)
    )
