"""What a draft model adds to a budget: weights, its part of every block of the cache, workspace. Pure arithmetic.

A draft's weights are held as its checkpoint stores them, or as the model's are; its keys and values as the model's.
"""

from dataclasses import dataclass

from plimsoll.api.blocks import block_bits
from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import SpecError
from plimsoll.api.guesses import DRAFT_ROWS, GUESSING_ROWS
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import CODE_BITS, HeldCache, Precision
from plimsoll.api.quantization import PRECISION_OF_BITS
from plimsoll.api.rope import default_length
from plimsoll.api.sizes import block_bytes, weight_bytes, workspace_terms

FIELD = "spec.serving.draft"


@dataclass(frozen=True)
class DraftBudget:
    """Bytes of a draft on the line of rank 0, which runs all of it."""

    precision: Precision
    weights: int
    held: int
    """Working memory that stays: cosines and sines."""
    passing: int
    """Working memory that comes and goes while it guesses."""
    block: int
    """Its part of a block of the cache."""
    length: int
    """Positions that it can take, those of the model at most."""


def draft_budget(
    facts: ModelFacts, device: DeviceFacts, precision: Precision, cache: HeldCache, block_size: int, longest: int
) -> DraftBudget:
    """What a draft with these `facts` takes beside a model that is held in `precision`.

    Args:
        cache: how keys and values of both are held.
        longest: positions of the model.

    Raises:
        SpecError: a part of it has no precision that can hold it.
    """
    held, weights = _held(facts, precision, device)
    length = min(longest, default_length(facts, facts.rope))
    terms = workspace_terms(facts, held, device, DRAFT_ROWS, GUESSING_ROWS, length)
    # Each pass makes logits of the kernels' own type, and the same in float32.
    logits = 2 * GUESSING_ROWS * facts.vocab_size * 4
    return DraftBudget(
        held, weights, terms["positions"], terms["activations"] + logits, block_bytes(facts, block_size, held, cache),
        length,
    )  # fmt: skip


def draft_workspace(draft: DraftBudget, logits: int, device: DeviceFacts) -> int:
    """Bytes that a draft's steps take beside the workspace of the model.

    Args:
        logits: of the model's workspace on that rank. A draft guesses before the model's step, when there are none: on
            a CPU its own working memory lies where they come later. On a GPU, where that is not measured, it is beside.
    """
    shared = logits if device.kind == "cpu" else 0
    return draft.held + max(0, draft.passing - shared)


def _held(facts: ModelFacts, precision: Precision, device: DeviceFacts) -> tuple[Precision, int]:
    """(how the draft is held, bytes of its weights). One table of kernels runs both: where the model's weights are
    whole numbers of another type than bfloat16, the draft's are of that type too."""
    wished: list[Precision] = [precision]
    if precision in (*CODE_BITS, "bfloat16"):
        bits = block_bits(facts) if facts.quantization is None else facts.quantization.bits
        wished = [*([] if bits is None else [PRECISION_OF_BITS[bits]]), precision, "bfloat16"]
    refused: SpecError | None = None
    for one in wished:
        try:
            return one, weight_bytes(facts, one, device)
        except SpecError as error:
            refused = refused or error
    assert refused is not None
    raise SpecError(f"cannot be held: {refused.message}", field=FIELD, fix=refused.fix) from refused
