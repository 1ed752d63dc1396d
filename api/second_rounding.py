"""Weights that are stored in codes of few bits: whether they stay as they are, and what another rounding costs."""

from plimsoll.api.blocks import block_bits, stored_blocks
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import CODE_BITS, Precision

#: Perplexity on the demo model as Q4_1, over that of the same blocks in bfloat16 (docs/performance.md).
_MEASURED = {"w4a16": "+21 %", "w8a16": "+0.2 %"}


def blocks_rounded(facts: ModelFacts, precision: Precision) -> str | None:
    """The type of the file's blocks where `precision` rounds them to other codes; None where it does not."""
    bits = CODE_BITS.get(precision)
    return None if bits is None or block_bits(facts) == bits else stored_blocks(facts)


def as_stored(facts: ModelFacts, precision: Precision) -> str | None:
    """What of the checkpoint's codes `precision` holds as they are stored, such as `Q4_1 blocks`; None where it holds
    other numbers."""
    bits, said = CODE_BITS.get(precision), facts.quantization
    if bits is None or bits != (block_bits(facts) if said is None else said.bits):
        return None
    return f"{stored_blocks(facts)} blocks" if said is None else f"{said.format} codes"


def rounded_again(facts: ModelFacts, precision: Precision) -> str | None:
    """What to know where `precision` rounds weights that are rounded already; None where it does not."""
    blocks = blocks_rounded(facts, precision)
    if blocks is None:
        return None
    return (
        f"{precision} rounds the file's {blocks} blocks a second time, without calibration: perplexity "
        f"{_MEASURED[precision]} on the demo model. auto and bfloat16 keep what the file holds; "
        f"for {CODE_BITS[precision]} bits, quantize the original floats with `plimsoll quantize`"
    )


def refused_under_auto(facts: ModelFacts, precision: Precision) -> str | None:
    """Why `auto` passes `precision` over; None where it may be chosen. 8 bits are finer than what most files hold."""
    blocks = blocks_rounded(facts, precision) if CODE_BITS.get(precision) == 4 else None
    if blocks is None:
        return None
    return f"would round the file's {blocks} blocks a second time; name {precision} to accept that"
