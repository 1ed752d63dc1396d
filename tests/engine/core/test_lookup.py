"""Guesses by prompt lookup."""

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.lookup import NGRAMS, REACH, Lookup


def test_what_followed_the_last_time_is_guessed() -> None:
    assert Lookup(3, [1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 9, 1, 2, 3]).guess(8) == (6, 7, 9)
    assert Lookup(8, [1, 2, 3, 4, 5, 1, 2, 3]).guess(2) == (4, 5)


def test_a_longer_run_is_looked_for_first() -> None:
    assert Lookup(1, [1, 2, 3, 4, 8, 2, 3, 5, 1, 2, 3]).guess(1) == (4,)
    assert Lookup(1, [8, 2, 3, 5, 1, 2, 3]).guess(1) == (5,), "of two tokens where three never stood there"


def test_a_run_that_repeats_is_guessed_on_beyond_the_end() -> None:
    assert Lookup(7, [9, 1, 2, 1, 2, 1, 2]).guess(7) == (1, 2, 1, 2, 1, 2, 1)
    assert Lookup(3, [5, 5, 5, 5]).guess(3) == (5, 5, 5)


def test_nothing_is_guessed_of_what_never_stood_there() -> None:
    for tokens in ([], [1], [1, 2], [1, 2, 3, 4, 5, 6], [1, 2, 1]):
        assert Lookup(4, tokens).guess(4) == ()
    assert Lookup(4, [1, 1, 1, 1]).guess(0) == ()


def test_bytes_that_agree_across_tokens_are_no_run() -> None:
    # As bytes, 0x01000000 0x02000000 0x00000000 holds 1 and 2 at another place, too.
    assert Lookup(1, [0x01000000, 0x02000000, 0x03000000, 7, 0x010000, 0x020000, 0x030000]).guess(1) == ()
    shifted = [0x00010000, 0x00020000, 0x00030000, 7]
    assert Lookup(1, [1, 2, 3, 9, *shifted, 1, 2, 3]).guess(1) == (9,)


def test_a_text_is_looked_through_only_so_far() -> None:
    far = [1, 2, 3, 4, *range(10, 10 + REACH), 1, 2, 3]
    assert Lookup(1, far).guess(1) == ()


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_any_guess_follows_a_run_that_ends_the_text(tokens: list[int], most: int) -> None:
    found = Lookup(most, tokens).guess(most)
    runs = [length for length in NGRAMS if len(tokens) > length]
    stood = [
        place
        for length in runs
        for place in range(len(tokens) - length)
        if tokens[place : place + length] == tokens[-length:]
    ]
    assert bool(found) == bool(stood)
    if found:
        assert len(found) == most
        endless = tokens + list(found)
        assert any(
            endless[place + length : place + length + most] == list(found)
            for length in runs
            for place in range(len(tokens) - length)
            if tokens[place : place + length] == tokens[-length:]
        )
