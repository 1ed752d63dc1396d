"""Weights that are stored in codes of few bits and would be rounded to other codes: what that costs."""

from plimsoll.api.model import DTYPE_BYTES, ModelFacts
from plimsoll.api.precision import CODE_BITS, Precision

#: Perplexity on the demo model as Q4_1, over that of the same blocks in bfloat16 (docs/performance.md).
_MEASURED = {"w4a16": "+21 %", "w8a16": "+0.2 %"}


def stored_blocks(facts: ModelFacts) -> str | None:
    """The type of blocks, such as `Q4_1`, that most of a GGUF's values lie in; None where weights are floats.

    A quantized folder (`facts.quantization`) is held as it is stored, and codes of other bits are refused.
    """
    if facts.quantization is not None:
        return None
    # A vector is never in codes, and an embedding that is does not change what the layers lose.
    coded = [(count, name) for name, count in facts.matrix_values.items() if name not in DTYPE_BYTES]
    return max(coded)[1] if coded else None


def rounded_again(facts: ModelFacts, precision: Precision) -> str | None:
    """What to know where `precision` rounds weights that are rounded already; None where it does not."""
    blocks = stored_blocks(facts) if precision in CODE_BITS else None
    if blocks is None:
        return None
    return (
        f"{precision} rounds the file's {blocks} blocks a second time, without calibration: perplexity "
        f"{_MEASURED[precision]} on the demo model. bfloat16 keeps what the file holds; "
        f"for {CODE_BITS[precision]} bits, quantize the original floats with `plimsoll quantize`"
    )


def refused_under_auto(facts: ModelFacts, precision: Precision) -> str | None:
    """Why `auto` passes `precision` over; None where it may be chosen. 8 bits are finer than what most files hold."""
    blocks = stored_blocks(facts) if CODE_BITS.get(precision) == 4 else None
    if blocks is None:
        return None
    return f"would round the file's {blocks} blocks a second time; name {precision} to accept that"
