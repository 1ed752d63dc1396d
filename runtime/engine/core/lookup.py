"""Guesses at what comes next, by prompt lookup: what followed the last time that these tokens stood there.

Saxena, "Prompt Lookup Decoding" (2023). Guesses cost a step little and change no answer: the engine runs them with the
token that it knows, samples after each, and keeps those that it would have chosen itself.
"""

from array import array
from collections.abc import Sequence

#: Lengths of the run of tokens that is looked for, the longest first: a longer run guesses better.
NGRAMS = (3, 2)
#: How many of the last tokens are searched.
REACH = 8192


class Lookup:
    """The text of one request, and guesses at what follows it.

    Args:
        most: guesses in a step.
        tokens: those of the prompt.
    """

    def __init__(self, most: int, tokens: Sequence[int]) -> None:
        self._most = most
        self._text = array("i", tokens)

    def append(self, token: int) -> None:
        """Goes on by a token."""
        self._text.append(token)

    def guess(self, most: int) -> tuple[int, ...]:
        """Tokens that may come next, at most `most`; none where nothing like the end of the text came before."""
        most = min(most, self._most)
        text = self._text
        if most < 1 or len(text) <= NGRAMS[-1]:
            return ()
        recent = text[-REACH:]
        size, data = text.itemsize, recent.tobytes()
        for length in NGRAMS:
            place = _last(data, data[-length * size :], size)
            if place is not None:
                return _from(recent, place + length, most)
        return ()


def _from(text: "array[int]", place: int, most: int) -> tuple[int, ...]:
    """`most` tokens from `place` on. What goes beyond the end goes on as it began: a run that repeats has no end."""
    found: list[int] = []
    for index in range(place, place + most):
        found.append(text[index] if index < len(text) else found[index - len(text)])
    return tuple(found)


def _last(data: bytes, run: bytes, size: int) -> int | None:
    """Index of the token at which `run` began before the end of `data`, the last time; None where it never did."""
    end = len(data) - size
    while (place := data.rfind(run, 0, end)) >= 0:
        if place % size == 0:
            return place // size
        # Bytes that agree across tokens.
        end = place + len(run) - 1
    return None
