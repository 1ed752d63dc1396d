"""Prompts run beside streams at a pace that the streams hardly notice, and always go on."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.layer_work import LayerWork
from plimsoll.runtime.engine.core.pace import REFRESH, TRIAL, Pace
from plimsoll.runtime.engine.core.prompt_pass import PromptPass
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


def compute(pace: Pace, seq: Sequence, streams: int, alone: float, unit: float, most: int = 2048) -> list[float]:
    """Seconds of the steps until a prompt has one token left: the streams take `alone`, a unit of work `unit`."""
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
            work = sum(pace.work.of(layer, going.context) for layer in range(part.first, part.stop))
            apart = unit * work * going.rows
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
    layer = alone + unit * pace.work.of(0, 32_000)
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
        pace.took_apart(going, part.first, 1e-4 * going.rows * (part.stop - part.first))
    assert found[0] == began
    assert found[1:] == [60] * 4, "60 rows take the 6 ms"


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


def test_a_layer_with_a_window_counts_no_more_than_its_window() -> None:
    work = LayerWork((None, 100, 100), 200.0)
    assert [work.of(layer, 1000) for layer in range(3)] == [6.0, 1.5, 1.5]
    assert work.total(1000) == 9.0
    assert work.most(1000) == 6.0
    pace = Pace(work)
    pace.took_joined(1, 0.0, 1.0)
    going = pace.begin(make_prompt(2000, 900), 0.8, 100)
    pace.part(going, 1)
    pace.took_apart(going, 0, 0.013 * going.rows * work.of(0, going.context))
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
