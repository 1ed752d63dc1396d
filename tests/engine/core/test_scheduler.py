"""The scheduler alone: its promises on any trace of arrivals, lengths and aborts. No model, no clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.block_manager import BlockManager
from plimsoll.runtime.engine.core.layer_work import LayerWork
from plimsoll.runtime.engine.core.pace import Pace
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.scheduler import QueueFullError, Scheduler
from plimsoll.runtime.engine.core.sequence import Sequence
from tests.support.prompt_passes import DrawnPace, LayeredMemory, book


def make_scheduler(num_blocks=8, block_size=4, caching=True, **bounds) -> Scheduler:
    defaults = {"max_batched_tokens": 16, "max_running": 4, "max_queued_requests": 100, "max_queued_tokens": 10**6}
    return Scheduler(BlockManager(num_blocks, block_size, caching), **(defaults | bounds))


def make_sequence(name, prompt, max_tokens=4, **params) -> Sequence:
    tokens = prompt if isinstance(prompt, list) else [int(name) * 1000 + i for i in range(prompt)]
    return Sequence(str(name), tokens, SamplingParams(**params), max_tokens=max_tokens, arrival=float(name))


def run(scheduler: Scheduler, *, token: int = 7) -> list[tuple[str, int]]:
    """One step with a model that always says `token`: what was scheduled, by name and number of tokens."""
    chosen = scheduler.schedule()
    assert sum(item.num_new_tokens for item in chosen) <= scheduler.max_batched_tokens
    assert len({item.seq.request_id for item in chosen}) == len(chosen)
    for item in chosen:
        assert item.num_new_tokens > 0
        assert item.seq.num_computed + item.num_new_tokens <= len(item.seq.block_table) * scheduler.blocks.block_size
    book(scheduler, chosen, token)
    return [(item.seq.request_id, item.num_new_tokens) for item in chosen]


def test_prompts_are_cut_to_the_budget_and_decodes_go_first():
    scheduler = make_scheduler(num_blocks=20)
    scheduler.add(make_sequence(0, 10))
    assert run(scheduler) == [("0", 10)]
    scheduler.add(make_sequence(1, 20))
    scheduler.add(make_sequence(2, 3))
    assert run(scheduler) == [("0", 1), ("1", 15)]
    assert run(scheduler) == [("0", 1), ("1", 5), ("2", 3)]
    assert run(scheduler) == [("0", 1), ("1", 1), ("2", 1)]


def paced(layers: int = 4) -> Pace:
    return Pace(LayerWork((None,) * layers, 1e9, reading=0.0))


def step(scheduler: Scheduler, alone: float, token: float = 0.001, layers: int = 4) -> list[tuple[str, int]]:
    """One that takes `alone` seconds, and `token` for each prompt token in all layers."""
    chosen = run(scheduler)
    part = scheduler.part
    apart = token * part.item.num_new_tokens * (part.stop - part.first) / layers if part else 0.0
    joined = token * sum(count for _, count in (chosen[:-1] if part and part.whole else chosen) if count > 1)
    scheduler.took(alone + joined + apart, apart)
    return chosen


def test_paced_prompts_get_all_of_a_step_alone_and_some_layers_beside_decodes():
    scheduler = make_scheduler(num_blocks=600, max_batched_tokens=400, pace=paced())
    scheduler.add(make_sequence(0, 64, max_tokens=500))
    assert step(scheduler, 0.0) == [("0", 64)]
    scheduler.add(make_sequence(1, 1600))
    assert step(scheduler, 0.0501) == [("0", 1)], "what a step takes without a prompt is seen first"
    assert scheduler.part is None
    assert step(scheduler, 0.05) == [("0", 1)]
    part = scheduler.part
    assert (part.item.num_new_tokens, part.first, part.stop, part.whole) == (16, 0, 1, False)
    assert step(scheduler, 0.05) == [("0", 1), ("1", 16)], "the rest fits into 30 ms"
    assert (scheduler.part.first, scheduler.part.stop, scheduler.part.whole) == (1, 4, True)
    cut = []
    for _ in range(4):
        found = step(scheduler, 0.0501)
        cut.append((scheduler.part.item.num_new_tokens, scheduler.part.first, scheduler.part.stop))
    assert cut == [(120, 0, 1), (120, 1, 2), (120, 2, 3), (120, 3, 4)], "0.6 times 50 ms at 0.25 ms a row and layer"
    assert found == [("0", 1), ("1", 120)]


def test_a_prompt_that_fits_into_the_time_joins_the_decodes():
    scheduler = make_scheduler(num_blocks=300, max_batched_tokens=400, pace=paced())
    scheduler.add(make_sequence(0, 64, max_tokens=500))
    step(scheduler, 0.0)
    scheduler.add(make_sequence(1, 100, max_tokens=1))
    for _ in range(12):
        step(scheduler, 0.05)
    scheduler.add(make_sequence(2, 25))
    scheduler.add(make_sequence(3, 20))
    assert step(scheduler, 0.05) == [("0", 1), ("2", 25)], "20 more would take 45 ms"
    assert scheduler.part is None
    scheduler.pace._alone[2] = 0.05
    assert step(scheduler, 0.05) == [("0", 1), ("2", 1), ("3", 20)]


def test_prompts_that_have_a_slot_count_as_waiting():
    scheduler = make_scheduler(max_running=3)
    for name in range(6):
        scheduler.add(make_sequence(name, 8))
    assert scheduler._num_prompts(1) == 2


def test_a_pass_ends_at_once_where_no_stream_is_left():
    scheduler = make_scheduler(num_blocks=600, max_batched_tokens=400, pace=paced())
    scheduler.add(make_sequence(0, 64, max_tokens=500))
    step(scheduler, 0.0)
    scheduler.add(make_sequence(1, 300))
    step(scheduler, 0.05)
    step(scheduler, 0.05)
    assert not scheduler.part.whole
    scheduler.finish(scheduler.running[0])
    scheduler.add(make_sequence(2, 25))
    assert step(scheduler, 0.0) == [("2", 25), ("1", 16)]
    assert (scheduler.part.first, scheduler.part.stop) == (1, 4)
    assert step(scheduler, 0.0) == [("2", 1)]


def test_blocks_of_a_pass_are_shared_once_it_is_whole():
    prompt = list(range(100, 140))
    scheduler = make_scheduler(num_blocks=60, max_batched_tokens=64, pace=paced())
    scheduler.add(make_sequence(0, 8, max_tokens=500))
    step(scheduler, 0.0)
    scheduler.add(make_sequence(1, prompt))
    step(scheduler, 0.05)
    step(scheduler, 0.05)
    going = scheduler.running[1]
    hashes = going.hashes(4, 4)
    assert scheduler.blocks.find_prefix(hashes) == []
    assert step(scheduler, 0.05)[-1] == ("1", 16)
    assert scheduler.blocks.find_prefix(hashes) == going.block_table[:4]


@pytest.mark.parametrize("ends", ["abort", "preemption"])
def test_a_pass_of_a_sequence_that_is_taken_out_is_dropped_and_leaves_nothing(ends):
    scheduler = make_scheduler(num_blocks=9, max_batched_tokens=64, pace=paced())
    scheduler.add(make_sequence(0, 4, max_tokens=20))
    step(scheduler, 0.0)
    scheduler.add(make_sequence(1, 24))
    for _ in range(2):
        step(scheduler, 0.05)
    assert not scheduler.part.whole
    dropped = scheduler.running[1]
    if ends == "abort":
        scheduler.finish(dropped)
    else:
        scheduler._preempt(dropped)
    scheduler.check_integrity()
    assert scheduler.blocks.find_prefix(dropped.hashes(1, 4)) == []
    assert dropped.num_computed == 0
    assert step(scheduler, 0.05)[0] == ("0", 1)
    assert scheduler.part is None or scheduler.part.first == 0


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    requests=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=2, max_size=10),
    block_size=st.sampled_from([1, 2, 4, 16]),
    spare=st.integers(0, 8),
    budget=st.integers(1, 60),
    max_running=st.integers(1, 6),
    caching=st.booleans(),
    layers=st.integers(1, 5),
    drawn=st.booleans(),
)
def test_with_passes_of_any_cut_each_row_finds_what_comes_before_it_and_every_request_is_done(
    data, requests, block_size, spare, budget, max_running, caching, layers, drawn
):
    """Prompts share prefixes, come again, hang up at any moment, and are preempted in the middle of a pass."""
    num_blocks = -(-sum(map(max, zip(*requests, strict=True))) // block_size) + spare
    pace = DrawnPace(layers, lambda low, high: data.draw(st.integers(low, high))) if drawn else paced(layers)
    scheduler = make_scheduler(
        num_blocks, block_size, caching, max_batched_tokens=budget, max_running=max_running, pace=pace
    )
    shared = [data.draw(st.integers(0, 1)) for _ in range(40)]
    sequences = []
    for name, (prompt, answer) in enumerate(requests):
        kept = data.draw(st.integers(0, prompt))
        tokens = shared[:kept] + [100 + name] * (prompt - kept)
        if sequences and data.draw(st.booleans()):
            tokens = data.draw(st.sampled_from(sequences)).token_ids
        sequences.append(make_sequence(name, list(tokens), answer))
    arrivals, memory, aborted = list(sequences), LayeredMemory(layers), set()
    while arrivals or scheduler.running or scheduler.waiting:
        for _ in range(min(len(arrivals), data.draw(st.integers(0 if list(scheduler) else 1, 3)))):
            scheduler.add(arrivals.pop(0))
        if data.draw(st.integers(0, 9)) == 0:
            victim = data.draw(st.sampled_from(list(scheduler)))
            scheduler.finish(victim)
            aborted.add(victim.request_id)
            scheduler.check_integrity()
        if not list(scheduler):
            continue
        chosen = memory.step(scheduler, data.draw(st.integers(0, 1)))
        assert chosen or scheduler.part, "a step of nothing"
        apart = data.draw(st.floats(0, 1)) if scheduler.part else 0.0
        scheduler.took(apart + data.draw(st.floats(0, 1)), apart)
    assert all(seq.request_id in aborted or len(seq.output_token_ids) == seq.max_tokens for seq in sequences)
    assert scheduler.blocks.num_available == scheduler.blocks.num_blocks


def test_the_head_of_the_queue_is_never_overtaken():
    scheduler = make_scheduler(num_blocks=8)
    scheduler.add(make_sequence(0, 16, max_tokens=3))
    run(scheduler)
    scheduler.add(make_sequence(1, 20))
    scheduler.add(make_sequence(2, 1))
    assert run(scheduler) == [("0", 1)], "2 would fit and must wait behind 1"
    assert run(scheduler) == [("0", 1)]
    assert run(scheduler) == [("1", 16)]


def test_a_full_cache_preempts_the_newest_and_resumes_it_first():
    scheduler = make_scheduler(num_blocks=6)
    for name in range(2):
        scheduler.add(make_sequence(name, 8, max_tokens=10))
    scheduler.add(make_sequence(2, 8, max_tokens=10))
    assert run(scheduler) == [("0", 8), ("1", 8)]
    while not scheduler.preemptions:
        run(scheduler)
    assert [seq.request_id for seq in scheduler.running] == ["0"]
    assert [seq.request_id for seq in scheduler.waiting] == ["1", "2"]
    resumed = scheduler.waiting[0]
    known = list(resumed.token_ids)
    assert len(known) > 8
    while resumed in scheduler.waiting:
        run(scheduler)
    assert resumed.token_ids[: len(known)] == known


def test_a_prompt_shares_the_blocks_of_an_equal_one_even_in_the_same_step():
    prompt = list(range(11))
    scheduler = make_scheduler(num_blocks=8, max_batched_tokens=32)
    for name in range(3):
        scheduler.add(make_sequence(name, prompt))
    assert run(scheduler) == [("0", 11), ("1", 3), ("2", 3)], "two full blocks are shared"
    assert (scheduler.prefix_queries, scheduler.prefix_hits) == (33, 16)
    assert [seq.num_cached for seq in scheduler.running] == [0, 8, 8]
    assert scheduler.running[0].block_table[:2] == scheduler.running[2].block_table[:2]


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token():
    scheduler = make_scheduler()
    for name in range(2):
        scheduler.add(make_sequence(name, list(range(8)), max_tokens=1))
        last = run(scheduler)
    assert last == [("1", 4)]


def test_prompt_logprobs_are_not_taken_from_the_cache():
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, list(range(9)), max_tokens=1))
    run(scheduler)
    scheduler.add(make_sequence(1, list(range(9)), max_tokens=1, prompt_logprobs=0))
    assert run(scheduler) == [("1", 9)]


def test_without_prefix_caching_nothing_is_shared_or_kept():
    scheduler = make_scheduler(caching=False)
    for name in range(2):
        scheduler.add(make_sequence(name, list(range(8)), max_tokens=1))
    assert run(scheduler) == [("0", 8), ("1", 8)]
    assert scheduler.blocks.num_free == 8


def test_the_queue_is_bounded_in_requests_beyond_the_free_slots():
    scheduler = make_scheduler(max_running=2, max_queued_requests=3)
    for name in range(5):
        scheduler.add(make_sequence(name, 1))
    with pytest.raises(QueueFullError, match="5 requests are waiting"):
        scheduler.add(make_sequence(5, 1))
    run(scheduler)
    with pytest.raises(QueueFullError):
        scheduler.add(make_sequence(5, 1))


def test_the_queue_is_bounded_in_tokens_but_takes_one_request_of_any_size():
    scheduler = make_scheduler(max_queued_tokens=10)
    scheduler.add(make_sequence(0, 20))
    with pytest.raises(QueueFullError, match="20 prompt tokens"):
        scheduler.add(make_sequence(1, 1))


def test_a_lower_number_is_admitted_first_and_equal_ones_by_arrival():
    scheduler = make_scheduler(num_blocks=20, max_running=1)
    for name, priority in enumerate((0, 5, -1, 5, -1)):
        scheduler.add(make_sequence(name, 4, max_tokens=1, priority=priority))
    order = [name for _ in range(5) for name, _ in run(scheduler)]
    assert order == ["2", "4", "0", "1", "3"]


def test_a_request_that_waits_takes_no_place_of_one_that_runs():
    scheduler = make_scheduler(num_blocks=8)
    scheduler.add(make_sequence(0, 20, max_tokens=4, priority=9))
    run(scheduler)
    scheduler.add(make_sequence(1, 20, priority=-9))
    assert run(scheduler)[0][0] == "0"
    assert not scheduler.preemptions


def test_a_full_cache_preempts_the_highest_number():
    scheduler = make_scheduler(num_blocks=6)
    scheduler.add(make_sequence(0, 8, max_tokens=10, priority=1))
    run(scheduler)
    scheduler.add(make_sequence(1, 8, max_tokens=10, priority=-1))
    while not scheduler.preemptions:
        run(scheduler)
    assert [seq.request_id for seq in scheduler.running] == ["1"]
    assert [seq.request_id for seq in scheduler.waiting] == ["0"]
    while scheduler.running or scheduler.waiting:
        run(scheduler)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(-2, 2)), min_size=1, max_size=10),
    spare=st.integers(0, 6),
    budget=st.integers(1, 40),
    max_running=st.integers(1, 6),
)
def test_with_any_priorities_every_request_is_done_and_the_first_of_those_that_run_advances(
    data, requests, spare, budget, max_running
):
    num_blocks = max(-(-(prompt + answer) // 4) for prompt, answer, _ in requests) + spare
    scheduler = make_scheduler(num_blocks, 4, max_batched_tokens=budget, max_running=max_running)
    sequences = [
        make_sequence(name, prompt, answer, priority=priority)
        for name, (prompt, answer, priority) in enumerate(requests)
    ]
    arrivals = list(sequences)
    while arrivals or scheduler.running or scheduler.waiting:
        for _ in range(min(len(arrivals), data.draw(st.integers(0 if list(scheduler) else 1, 3)))):
            scheduler.add(arrivals.pop(0))
        first = scheduler.running[0].request_id if scheduler.running else None
        ran = dict(run(scheduler))
        assert first is None or first in ran
    assert all(len(seq.output_token_ids) == seq.max_tokens for seq in sequences)


lengths = st.tuples(st.integers(1, 20), st.integers(1, 12))


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    requests=st.lists(lengths, min_size=1, max_size=10),
    block_size=st.sampled_from([1, 2, 4, 16]),
    spare=st.integers(0, 6),
    budget=st.integers(1, 40),
    max_running=st.integers(1, 6),
    caching=st.booleans(),
)
def test_any_trace_ends_with_every_request_done_and_every_block_back(
    data, requests, block_size, spare, budget, max_running, caching
):
    """Prompts share prefixes, the pool is hardly larger than the longest request, some hang up at any moment."""
    num_blocks = max(-(-(prompt + answer) // block_size) for prompt, answer in requests) + spare
    scheduler = make_scheduler(
        num_blocks, block_size, caching, max_batched_tokens=budget, max_running=max_running, max_queued_requests=100
    )
    shared = [data.draw(st.integers(0, 1)) for _ in range(20)]
    sequences = []
    for name, (prompt, answer) in enumerate(requests):
        kept = data.draw(st.integers(0, prompt))
        tokens = shared[:kept] + [100 + name] * (prompt - kept)
        sequences.append(make_sequence(name, tokens, answer))
    arrivals = list(sequences)
    aborted: set[str] = set()
    while arrivals or scheduler.running or scheduler.waiting:
        alive = list(scheduler)
        for _ in range(min(len(arrivals), data.draw(st.integers(0 if alive else 1, 3)))):
            scheduler.add(arrivals.pop(0))
        alive = list(scheduler)
        if data.draw(st.integers(0, 9)) == 0:
            victim = data.draw(st.sampled_from(alive))
            scheduler.finish(victim)
            aborted.add(victim.request_id)
            scheduler.check_integrity()
        alive = list(scheduler)
        order = [seq.arrival for seq in alive]
        assert order == sorted(order), "nobody overtakes"
        oldest = alive[0] if alive else None
        before = oldest.num_computed if oldest else 0
        chosen = run(scheduler, token=data.draw(st.integers(0, 1)))
        if oldest is not None:
            assert oldest.request_id in dict(chosen), "the oldest always advances"
            assert oldest.num_computed > before or len(oldest.output_token_ids) >= oldest.max_tokens
    for seq in sequences:
        assert seq.request_id in aborted or len(seq.output_token_ids) == seq.max_tokens
    blocks = scheduler.blocks
    assert blocks.num_available == blocks.num_blocks
    assert caching or blocks.num_free == blocks.num_blocks
