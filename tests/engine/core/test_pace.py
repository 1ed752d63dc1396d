"""Prompts join running streams at a pace that the streams hardly notice, and always go on."""

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.pace import LEAST, REFRESH, SLOWDOWN, SMOOTH, Pace


def turn(pace: Pace, streams: int, alone: float, token: float, steps: int) -> list[tuple[int, float]]:
    """(prompt tokens, seconds) of steps that take `alone` seconds for the streams and `token` for each prompt token."""
    taken = []
    for _ in range(steps):
        tokens = pace.allowed(streams)
        seconds = alone + token * tokens
        pace.took(streams, tokens, seconds)
        taken.append((tokens, seconds))
    return taken


@given(
    streams=st.integers(1, 64),
    alone=st.floats(0.002, 0.2),
    token=st.floats(0.00001, 0.01),
    before=st.floats(0.1, 10),
)
def test_a_step_with_a_prompt_takes_less_than_twice_what_it_takes_without(
    streams: int, alone: float, token: float, before: float
) -> None:
    """Also where it was learned on a machine that was slower or faster then."""
    pace = Pace()
    turn(pace, streams, alone * before, token * before, 100)
    settled = turn(pace, streams, alone, token, 1000)[800:]
    limit = max(SLOWDOWN * alone, SMOOTH, alone + LEAST * token)
    assert all(seconds <= 1.02 * limit for _, seconds in settled)
    # And it uses what it may: tokens are whole, and no step has more than twice those of the last.
    most = max(seconds for _, seconds in settled)
    assert most >= 0.95 * (limit - token) or max(tokens for tokens, _ in settled) == LEAST


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=400))
def test_a_prompt_goes_on_whatever_was_measured(steps: list[tuple[int, float, float]]) -> None:
    """Only the first step of a number of streams, and one in `REFRESH`, has none; no other has under `LEAST`."""
    pace, known, since = Pace(), set(), 0
    for streams, alone, token in steps:
        allowed = pace.allowed(streams)
        if streams not in known or since == REFRESH:
            assert allowed == 0
        else:
            assert allowed >= LEAST
        pace.took(streams, allowed, alone + token * allowed)
        known.add(streams)
        since = since + 1 if allowed else 0


def test_a_step_without_streams_teaches_nothing() -> None:
    pace = Pace()
    turn(pace, 1, 0.05, 0.001, 200)
    before = pace.allowed(1)
    for _ in range(50):
        pace.took(0, 2048, 60.0)
    assert pace.allowed(1) == before
