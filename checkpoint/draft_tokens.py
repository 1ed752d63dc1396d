"""Whether a draft model has the tokens of the model that it guesses for: a guess is a token's id."""

from plimsoll.api.draft import FIELD
from plimsoll.api.errors import SpecError
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer


def refuse_other_tokens(tokenizer: Tokenizer, draft: Checkpoint, field: str = FIELD) -> None:
    """Compares the draft's vocabulary with that of the model's `tokenizer`. One of them may go on where the other ends.

    Args:
        field: what the user calls the draft.

    Raises:
        SpecError: an id is another token of the draft.
        CheckpointError: the draft has no tokenizer that can be read.
    """
    theirs = load_tokenizer(draft)
    ids = range(min(tokenizer.vocab_size, theirs.vocab_size))
    both = zip(tokenizer.convert_ids_to_tokens(ids), theirs.convert_ids_to_tokens(ids), strict=True)
    for index, (ours, other) in enumerate(both):
        if ours != other:
            raise SpecError(
                f"has other tokens than the model: {index} is {other!r} of its {theirs.vocab_size}, and {ours!r} of "
                f"the model's {tokenizer.vocab_size}", field=field, value=str(draft.path),
                fix="Use a smaller model of the same family",
            )  # fmt: skip
