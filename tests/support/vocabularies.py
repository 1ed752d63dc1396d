"""Vocabularies of any size without a tokenizer."""

import itertools

import numpy as np

from plimsoll.runtime.messages import Vocabulary

#: English by frequency, so that tokens share beginnings as those of a tokenizer do.
_LETTERS = np.frombuffer(b"etaoinshrdlcumwfgypbvkjxqz", np.uint8)


def made_up_vocabulary(size: int) -> Vocabulary:
    """All single bytes, then different words of 2 to 11 letters, half of them after a space: 7 bytes a token, about as
    many as tokenizers of real models have."""
    draw, count = np.random.default_rng(0), 2 * size
    chances = 1 / np.arange(1, len(_LETTERS) + 1)
    lengths = draw.integers(2, 11, count)
    letters = draw.choice(_LETTERS, int(lengths.sum()), p=chances / chances.sum()).tobytes()
    bounds = itertools.pairwise([0, *itertools.accumulate(lengths.tolist())])
    words = (b" " * (number % 2) + letters[start:end] for number, (start, end) in enumerate(bounds))
    tokens = list(dict.fromkeys(itertools.chain((bytes([byte]) for byte in range(256)), words)))[:size]
    if len(tokens) < size:
        raise ValueError(f"only {len(tokens)} words are different")
    return Vocabulary(tokens=b"".join(tokens), sizes=[len(token) for token in tokens], special_ids=[])
