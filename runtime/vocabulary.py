"""The vocabulary of a tokenizer, as an engine needs it for grammars."""

from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.messages import Vocabulary


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The bytes of all tokens. Takes half a second for 150,000 of them."""
    tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    return Vocabulary(
        tokens=b"".join(tokens), sizes=[len(token) for token in tokens], special_ids=sorted(tokenizer.special_ids)
    )
