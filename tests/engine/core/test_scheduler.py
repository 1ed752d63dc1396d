"""The scheduler alone: its promises on any trace of arrivals, lengths and aborts. No model, no clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.block_manager import BlockManager
from plimsoll.runtime.engine.core.pace import LEAST
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.scheduler import QueueFullError, Scheduler
from plimsoll.runtime.engine.core.sequence import Sequence


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
    for item in chosen:
        seq = item.seq
        seq.num_computed += item.num_new_tokens
        if not seq.num_pending:
            seq.append(token)
            if len(seq.output_token_ids) >= seq.max_tokens:
                scheduler.finish(seq)
    scheduler.check_integrity()
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


def test_paced_prompts_get_all_of_a_step_alone_and_a_part_of_it_beside_decodes():
    scheduler = make_scheduler(num_blocks=300, max_batched_tokens=64, paced=True)

    def step(alone: float) -> list[tuple[str, int]]:
        """One that takes `alone` seconds and 1 ms for each prompt token."""
        chosen = run(scheduler)
        scheduler.took(alone + 0.001 * sum(count for _, count in chosen if count > 1))
        return chosen

    scheduler.add(make_sequence(0, 64, max_tokens=500))
    assert step(0.0) == [("0", 64)]
    scheduler.add(make_sequence(1, 900))
    assert step(0.05) == [("0", 1)], "what a step takes without a prompt is seen first"
    found = [step(0.05) for _ in range(12)]
    assert found[0] == [("0", 1), ("1", LEAST)]
    assert found[-1] in ([("0", 1), ("1", 40)], [("0", 1), ("1", 39)]), "0.8 times 50 ms at 1 ms a token"


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
