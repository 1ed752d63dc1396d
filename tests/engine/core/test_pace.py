"""Prompts run beside streams at a pace that the streams hardly notice, and always go on."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.layer_work import READING, LayerWork
from plimsoll.runtime.engine.core.pace import REFRESH, TRIAL, Pace
from plimsoll.runtime.engine.core.prompt_pass import MOST_ROWS, PromptPass
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.sequence import Sequence

LIMIT = 2.0
"""Times what the streams take alone."""


def make_prompt(tokens: int, computed: int = 0) -> Sequence:
    seq = Sequence("prompt", [1] * tokens, SamplingParams(), max_tokens=1, arrival=0.0)
    seq.num_computed = computed
    return seq


def make_pace(layers: int = 30, even: float = 3000.0) -> Pace:
    return Pace(LayerWork((None,) * layers, even))


def compute(
    pace: Pace, seq: Sequence, streams: int, alone: float, unit: float, most: int = 2048, true: LayerWork | None = None
) -> list[float]:
    """Seconds of the steps until a prompt has one token left: the streams take `alone`, a unit of work `unit`.

    Args:
        true: the work there is, where it is not what the pace takes it for.
    """
    work = true or pace.work
    going: PromptPass | None = None
    taken = []
    while seq.num_pending > 1 or going:
        allowed = pace.allowed(streams)
        if going is None and allowed:
            going = pace.begin(seq, allowed, most)
        apart = 0.0
        if going is not None:
            part = pace.part(going, streams)
            assert part.stop > part.first, "a step in which a prompt does not go on"
            assert 0 < part.item.num_new_tokens <= most
            apart = unit * sum(work.of(layer, going.rows, going.context) for layer in range(part.first, part.stop))
            pace.took_apart(going, part.first, apart)
            if part.whole:
                seq.num_computed += going.rows
                going = None
        pace.took_joined(streams, 0.0, alone)
        taken.append(alone + apart)
    return taken


@settings(max_examples=40, deadline=None)
@given(
    streams=st.integers(1, 64),
    alone=st.floats(0.002, 0.2),
    row=st.floats(1e-4, 4e-3),
    before=st.floats(0.1, 10),
    even=st.floats(1000, 30000),
    assumed=st.floats(1000, 30000),
)
def test_a_step_beside_a_prompt_of_32k_takes_less_than_twice_what_the_streams_take_alone(
    streams: int, alone: float, row: float, before: float, even: float, assumed: float
) -> None:
    """Also where the machine was slower or faster before, and attention costs other than was assumed."""
    pace, unit = make_pace(even=assumed), row * alone
    pace.took_joined(streams, 0.0, alone * before)
    compute(pace, make_prompt(500), streams, alone * before, unit * before)
    pace.work = LayerWork(pace.work.windows, even)
    for _ in range(12):
        compute(pace, make_prompt(300), streams, alone, unit)
    compute(pace, make_prompt(31_700, 31_600), streams, alone, unit)
    taken = compute(pace, make_prompt(32_001, 31_700), streams, alone, unit)
    layer = alone + unit * pace.work.of(0, 1, 32_000)
    assert max(taken) <= max(LIMIT * alone, layer) * 1.0001, "one layer of one row is the least"
    # And it uses what it may: rows are whole, and so are layers.
    if len(taken) > 60 and layer < 1.1 * alone:
        assert sorted(taken)[len(taken) // 2] > 1.4 * alone


def test_a_pass_gives_up_rows_where_its_layers_take_far_too_long() -> None:
    """Learned of a short context, begun in a long one that attends at ten times the cost."""
    pace = make_pace(even=1e9)
    pace.took_joined(1, 0.0, 0.01)
    compute(pace, make_prompt(2000), 1, 0.01, 1e-5)
    seq = make_prompt(40_000, 32_000)
    going = pace.begin(seq, pace.allowed(1), 2048)
    began = going.rows
    found = []
    for _ in range(5):
        part = pace.part(going, 1)
        found.append(going.rows)
        pace.took_apart(going, part.first, 1e-4 * (going.rows + READING) * (part.stop - part.first))
    assert found[0] == began
    assert found[1:] == [55] * 4, "55 rows, and what is read once for them, take the 6 ms"


def test_a_lone_last_token_is_never_left_to_the_decodes() -> None:
    pace = make_pace()
    for tokens in range(2, 60):
        seq = make_prompt(tokens)
        for most in (2, 3, 2048):
            rows = pace.begin(seq, 0.01, most).rows
            assert 0 < rows <= min(most, tokens)
            assert tokens - rows != 1


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=400))
def test_a_prompt_goes_on_whatever_was_measured(steps: list[tuple[int, float, float]]) -> None:
    """Only the first step of a number of streams, and one in `REFRESH` that prompts joined, has no time for them."""
    pace, known, since = make_pace(), set(), 0
    for streams, alone, seconds in steps:
        allowed = pace.allowed(streams)
        if streams not in known or since == REFRESH:
            assert allowed == 0
        joined = bool(allowed and alone > 1)
        pace.took_joined(streams, 10.0 if joined else 0.0, alone + seconds)
        known.add(streams)
        since = since + 1 if joined else 0
        seq = make_prompt(5000)
        going = pace.begin(seq, allowed, 64)
        ends = 0
        while going.done < 30:
            part = pace.part(going, streams)
            pace.took_apart(going, part.first, seconds * (ends % 3))
            ends += 1
        assert ends <= 30


def test_a_step_without_streams_teaches_nothing() -> None:
    pace = make_pace()
    pace.took_joined(1, 0.0, 0.05)
    before = pace.allowed(1)
    for _ in range(50):
        pace.took_joined(0, 2048.0, 60.0)
    assert pace.allowed(1) == before


def test_while_nothing_was_measured_a_pass_has_few_rows_and_nothing_joins() -> None:
    pace = make_pace()
    assert pace.joining(1, 0) == math.inf
    going = pace.begin(make_prompt(500), 0.01, 2048)
    assert going.rows == TRIAL
    assert pace.part(going, 1).stop == 1
    assert pace.part(PromptPass(going.item), 0).stop == 30, "without streams all of it"


@pytest.mark.parametrize("reading", [0.0, 5.0, 40.0])
@pytest.mark.parametrize("tokens", [32_003, 32_010, 32_300])
def test_the_last_few_rows_of_a_long_prompt_make_no_step_long(reading: float, tokens: int) -> None:
    """Few rows take longer each: the keys and values before them are read for two rows as for many."""
    pace, alone, unit = make_pace(), 0.01, 1e-5
    true = LayerWork(pace.work.windows, pace.work.even, reading)
    pace.took_joined(1, 0.0, alone)
    pace.start(*((rows, unit * true.of(0, rows, rows / 2)) for rows in (2, 254)))
    assert abs(pace.work.reading - reading) < 1e-6
    taken = compute(pace, make_prompt(tokens, 32_000), 1, alone, unit, MOST_ROWS)
    assert max(taken) <= max(LIMIT * alone, alone + unit * true.of(0, 1, tokens)) * 1.0001


def test_a_first_prompt_has_the_rows_that_fit_where_a_layer_was_measured() -> None:
    pace = make_pace(even=1e9)
    pace.took_joined(1, 0.0, 0.01)
    # 10 us a row, and 100 us of reading.
    pace.start((2, 120e-6), (250, 2.6e-3))
    assert pace.begin(make_prompt(2000), pace.allowed(1), MOST_ROWS).rows == MOST_ROWS
    assert pace.begin(make_prompt(2000), 1e-3, MOST_ROWS).rows in (89, 90)
    assert abs(pace.joining(10, 0) - 30 * 100e-6) < 1e-9, "the streams read the weights"


@pytest.mark.parametrize(("few", "many"), [(1e-3, 1e-3), (2e-3, 1e-3), (0.0, 0.0)])
def test_a_layer_that_seems_to_take_as_long_for_few_rows_as_for_many_is_paced(few: float, many: float) -> None:
    """Where the measurement was disturbed, or too short for the clock."""
    pace = make_pace()
    pace.took_joined(1, 0.0, 0.01)
    pace.start((2, few), (254, many))
    assert 0 <= pace.work.reading <= MOST_ROWS
    true = LayerWork(pace.work.windows, pace.work.even)
    assert len(compute(pace, make_prompt(600), 1, 0.01, 1e-5, MOST_ROWS, true)) < 150


def test_a_hold_up_hardly_changes_what_a_step_may_take_and_a_cold_first_step_is_soon_forgotten() -> None:
    pace = make_pace()
    for seconds in (0.04, 0.01, 0.01, 0.01, 0.01):
        pace.took_joined(1, 0.0, seconds)
    assert pace.allowed(1) < 1.2 * 0.006
    for _ in range(30):
        pace.took_joined(1, 0.0, 0.01)
    pace.took_joined(1, 0.0, 1.0)
    assert pace.allowed(1) < 1.1 * 0.006
    for _ in range(30):
        pace.took_joined(1, 0.0, 0.02)
    assert pace.allowed(1) > 0.9 * 0.012, "longer texts are learned"


def test_a_layer_with_a_window_counts_no_more_than_its_window() -> None:
    work = LayerWork((None, 100, 100), 200.0, reading=0.0)
    assert [work.of(layer, 1, 1000) for layer in range(3)] == [6.0, 1.5, 1.5]
    assert work.joined(1, 1000) == 9.0
    assert work.most(1000) == 6.0
    pace = Pace(work)
    pace.took_joined(1, 0.0, 1.0)
    going = pace.begin(make_prompt(2000, 900), 0.8, 100)
    pace.part(going, 1)
    pace.took_apart(going, 0, 0.013 * work.of(0, going.rows, going.context))
    going = pace.begin(make_prompt(2000, 900), 0.8, 10)
    stops = []
    while going.done < 3:
        stops.append(pace.part(going, 1).stop)
    assert stops == [1, 3], "a layer that attends to all takes as long as several that do not"


def test_where_more_prompts_wait_than_streams_run_a_step_may_take_what_no_reader_notices() -> None:
    pace = make_pace()
    for streams, alone in ((2, 0.005), (3, 0.03)):
        pace.took_joined(streams, 0.0, alone)
    for prompts in (1, 2):
        assert abs(pace.allowed(2, prompts) - 0.003) < 1e-9
    assert abs(pace.allowed(2, 3) - 0.015) < 1e-9, "20 ms"
    assert abs(pace.allowed(3, 9) - 0.018) < 1e-9, "1.6 times 30 ms is more"
