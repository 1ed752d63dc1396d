"""Where each token begins in the text of a completion, in characters.

A token may hold part of a character, and some tokens show nowhere: an added beginning of text, say. A character that
spans tokens is where all of them begin. Bytes that make no character count as the U+FFFD that stand for them.
"""

import codecs
from collections.abc import Sequence

from plimsoll.checkpoint.tokenizer import Tokenizer


class Offsets:
    """Counts through a text whose bytes come token by token; `start` is where it begins."""

    def __init__(self, start: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.characters = start
        """Whole characters before the next byte."""

    @property
    def within(self) -> bool:
        """Whether the next byte may continue a character."""
        return bool(self._decoder.getstate()[0])

    def add(self, shown: bytes) -> int:
        """The place of the character that holds the first of `shown`; of the next one to come where it is empty."""
        if not shown:
            return self.characters
        before = self.characters
        first = len(self._decoder.decode(shown[:1]))
        # What was begun before stands for a character of its own unless this byte went on with it.
        broken = first - 1 if not self.within else first
        self.characters += first + len(self._decoder.decode(shown[1:]))
        return before + max(0, broken)


def prompt_offsets(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where each token of a prompt begins in `text`, which a client wrote or `decode` made of `ids`."""
    counted, found = Offsets(), []
    for token in ids:
        shown = tokenizer.token_bytes(token)
        if not counted.within:
            here = counted.characters
            if token in tokenizer.special_ids and not text.startswith(shown.decode("utf-8", "replace"), here):
                # Added around the text, and no part of it.
                shown = b""
            elif shown.startswith(b" ") and not text.startswith(" ", here):
                # Sentencepiece puts a space before the first word.
                shown = shown[1:]
        found.append(min(counted.add(shown), len(text)))
    return found
