"""Where few guesses come true, a request is not guessed for, for a while."""

import pytest

from plimsoll.runtime.engine.core.payoff import LONGEST_PAUSE, MOST_PAYS, PAUSE, PAYS, Payoff, pays_with_draft


def tried(payoff: Payoff, tokens: int, kept: int = 0) -> list[bool]:
    """At which of so many tokens of an answer four were guessed, of which the first `kept` came."""
    found = []
    for _ in range(tokens):
        found.append(not payoff.paused)
        if found[-1]:
            payoff.judge(4, kept)
        payoff.append()
    return found


def pauses(found: list[bool]) -> list[int]:
    """Lengths of runs of tokens that were not guessed."""
    return [len(run) for run in "".join("x" if one else "." for one in found).split("x") if run]


def test_guesses_that_do_not_come_true_stop_for_a_while_and_are_tried_again() -> None:
    found = tried(Payoff(), 5 * PAUSE)
    first = found.index(False)
    assert 1 < first < 10, "one bad step is no reason"
    assert pauses(found)[:-1] == [PAUSE - 1] * (len(pauses(found)) - 1)


def test_each_pause_is_twice_as_long_as_the_one_before_up_to_the_longest() -> None:
    found = pauses(tried(Payoff(longest=LONGEST_PAUSE), 4 * LONGEST_PAUSE))
    assert found[:5] == [PAUSE - 1, 2 * PAUSE - 1, 4 * PAUSE - 1, LONGEST_PAUSE - 1, LONGEST_PAUSE - 1]


def test_guesses_that_come_true_again_make_pauses_short_again() -> None:
    payoff = Payoff(longest=LONGEST_PAUSE)
    tried(payoff, 4 * LONGEST_PAUSE)
    while payoff.paused:
        payoff.append()
    assert all(tried(payoff, 50, kept=4))
    assert pauses(tried(payoff, 3 * PAUSE))[0] == PAUSE - 1


@pytest.mark.parametrize("kept", [2, 3, 4])
def test_guesses_that_come_true_never_stop(kept: int) -> None:
    assert all(tried(Payoff(), 1000, kept))


def test_a_large_draft_must_guess_better_than_a_small_one() -> None:
    assert PAYS < pays_with_draft(1, 10) < pays_with_draft(1, 4) < pays_with_draft(1, 2) == MOST_PAYS
    assert all(tried(Payoff(pays_with_draft(1, 10)), 100, kept=2))
    assert not all(tried(Payoff(pays_with_draft(1, 3)), 100, kept=2))
    assert all(tried(Payoff(pays_with_draft(1, 1)), 100, kept=4)), "a perfect one is never switched off"
