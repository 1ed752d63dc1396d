"""Which sequences a draft guesses for, and what it runs before."""

from plimsoll.api.guesses import DRAFT_ROWS, GUESSING_ROWS
from plimsoll.runtime.engine.core.guesser import Guesser, Guessing
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.core.sequence import Sequence

SIZE = 64
DRAFTED = Guessing(tokens=4, draft_length=4096, pays=0.5)


def stream(name: int, prompt: int = 10, *, share: float = 1.0, guessed: bool = True) -> Sequence:
    """A sequence in decode, with room in its last block."""
    payoff = DRAFTED.payoff() if guessed else None
    seq = Sequence(str(name), [5] * prompt, SamplingParams(), max_tokens=1000, arrival=0.0, payoff=payoff)
    if payoff is not None:
        payoff.share = share
    seq.append(6)
    seq.num_computed = prompt
    blocks = -(-seq.num_tokens // SIZE)
    seq.block_table = list(range(100 * name, 100 * name + blocks))
    return seq


def planned(streams: list[Sequence], guessing: Guessing = DRAFTED, budget: int = 1000) -> list[tuple[int, int]]:
    """(tokens that the draft runs, guesses that it makes) of each."""
    chosen = [Scheduled(seq, 1) for seq in streams]
    Guesser(guessing, SIZE, 64).add(chosen, budget)
    return [(item.drafted, item.wanted) for item in chosen]


def test_streams_get_equally_many_guesses() -> None:
    assert planned([stream(0)]) == [(11, 4)]
    assert planned([stream(0), stream(1)]) == [(11, 3), (11, 3)]
    assert planned([stream(name) for name in range(4)]) == [(11, 1)] * 4
    assert planned([stream(0), stream(1)], budget=2) == [(11, 1), (11, 1)]


def test_the_draft_stays_out_where_too_few_streams_gain_by_it() -> None:
    assert planned([stream(name) for name in range(GUESSING_ROWS)]) == [(0, 0)] * GUESSING_ROWS
    five = [stream(name) for name in range(5)]
    assert planned(five) == [(11, 1)] * 3 + [(0, 0)] * 2
    others = [stream(name, guessed=False) for name in range(1, 3)]
    assert planned([stream(0), *others]) == [(0, 0)] * 3
    assert planned([stream(0), others[0]]) == [(11, 4), (0, 0)]
    assert planned([stream(0), stream(1, share=0.1), others[0]]) == [(0, 0)] * 3


def test_a_text_that_the_draft_has_missed_is_run_in_parts() -> None:
    long = stream(0, DRAFT_ROWS + 20)
    assert planned([long]) == [(DRAFT_ROWS, 0)]
    long.num_drafted = DRAFT_ROWS
    assert planned([long]) == [(21, 4)]
    assert planned([stream(0, DRAFT_ROWS - 10), stream(1, 50)]) == [(DRAFT_ROWS - 9, 3), (9, 0)]


def test_nothing_is_guessed_beyond_the_block_or_the_positions_of_the_draft() -> None:
    assert planned([stream(0, SIZE - 3)]) == [(SIZE - 2, 2)]
    assert planned([stream(0, SIZE - 1)]) == [(0, 0)]
    short = Guessing(tokens=4, draft_length=12)
    assert planned([stream(0, 9)], short) == [(10, 3)], "the last guess is not run"
    assert planned([stream(0, 12)], short) == [(0, 0)]


def test_a_sequence_begins_with_what_the_draft_has_run_of_its_prefix() -> None:
    guesser, first, second = Guesser(DRAFTED, 4, 64), stream(0), stream(1)
    first.block_table, second.block_table = [7, 8, 9], [7, 8, 3]
    first.num_drafted = 12
    guesser.settle(first)
    assert first.num_drafted == 10, "no more than what came"
    guesser.take_prefix(second)
    assert second.num_drafted == 8
    guesser.forget([8])
    guesser.take_prefix(second)
    assert second.num_drafted == 4
