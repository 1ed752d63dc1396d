"""The host tier behind the block pool: what is kept, what gives way, and copies in an order that holds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.block_manager import ROOT, BlockManager, chain_hash
from plimsoll.runtime.engine.core.copy_times import CopyTimes, copying_pays
from plimsoll.runtime.engine.core.host_blocks import Copy, HostBlocks
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.engine.core.scheduler import Scheduler
from plimsoll.runtime.engine.core.sequence import Sequence

A, B, C, D = (chain_hash(ROOT, [token]) for token in range(4))


def fetch(host: HostBlocks, **blocks: int) -> None:
    known = {{"a": A, "b": B, "c": C}[name]: block for name, block in blocks.items()}
    host.pin(known)
    host.load(known)


def test_the_least_recently_saved_gives_way() -> None:
    host = HostBlocks(2)
    for block, digest in enumerate((A, B)):
        host.save(block, digest)
    host.save(7, A)
    host.save(2, C)
    assert A in host
    assert B not in host
    assert host.take_copies() == [Copy(0, 0, True), Copy(1, 1, True), Copy(2, 1, True)], "A is not copied twice"
    assert host.take_copies() == []
    assert (host.num_used, host.saved) == (2, 3)
    host.check_integrity()


def test_what_was_copied_back_is_kept_while_there_is_room_and_gives_way_first() -> None:
    host = HostBlocks(3)
    for block, digest in enumerate((A, B, C)):
        host.save(block, digest)
    host.take_copies()
    fetch(host, b=8, c=9)
    assert host.take_copies() == [Copy(8, 1, False), Copy(9, 2, False)]
    host.save(3, D)
    assert C not in host, "the end of a prefix goes before its beginning"
    assert B in host
    assert A in host
    assert host.loaded == 2


def test_nothing_is_saved_over_a_block_that_is_about_to_be_read() -> None:
    host = HostBlocks(1)
    host.save(0, A)
    host.pin([A])
    host.save(1, B)
    with pytest.raises(AssertionError, match="pinned"):
        host.check_integrity()
    host.load({A: 1})
    assert host.take_copies() == [Copy(0, 0, True), Copy(1, 0, False)]
    assert B not in host
    host.check_integrity()


def test_what_cannot_be_trusted_is_forgotten() -> None:
    host = HostBlocks(3)
    for block, digest in enumerate((A, B, C)):
        host.save(block, digest)
    host.drop([B, D])
    assert B not in host
    assert host.num_used == 2
    host.clear()
    assert host.num_used == 0
    host.check_integrity()


def test_where_computing_again_is_quicker_nothing_is_copied() -> None:
    host, times = HostBlocks(2), CopyTimes(0.001, 16)
    host.times = times
    host.save(0, A)
    times.tokens_a_second = 1e6
    host.save(1, B)
    assert A not in host
    times.tokens_a_second = 0.0
    assert A in host
    assert B not in host


def test_copying_pays_where_it_takes_less_time_than_computing() -> None:
    # 64 tokens at 1,000 a second take 64 ms; a block goes out and back.
    assert copying_pays(0.0319, 1000, 64)
    assert not copying_pays(0.0321, 1000, 64)
    assert copying_pays(1e9, 0, 64), "nothing was measured yet"


def test_the_speed_of_prompts_is_that_of_steps_with_a_block_of_tokens_or_more() -> None:
    times = CopyTimes(0.032, 64)
    times.observe(63, 1e-6)
    assert times.copying_pays
    assert times.tokens_a_second == 0
    times.observe(2048, 1.0)
    assert times.tokens_a_second == 2048
    assert not times.copying_pays
    for _ in range(40):
        times.observe(64, 0.128)
    assert times.copying_pays


@pytest.mark.parametrize("damage", ["lost", "twice"])
def test_damaged_books_are_noticed(damage: str) -> None:
    host = HostBlocks(3)
    host.save(0, A)
    if damage == "lost":
        host._free.pop()
    else:
        host._free.append(host._free[0])
    with pytest.raises(AssertionError):
        BlockManager(2, 16, host=host).check_integrity([])


class Memory:
    """Both tiers as a runner has them: what a cell holds is all tokens up to its own."""

    def __init__(self, blocks: int, slots: int, size: int) -> None:
        self.size = size
        self.tiers: dict[bool, list[list[object]]] = {
            True: [[None] * size for _ in range(blocks)], False: [[None] * size for _ in range(slots)]
        }  # fmt: skip

    def step(self, scheduler: Scheduler, token: int) -> list[Sequence]:
        """One step; each sequence must find all that the books say was computed. Returns who ran."""
        chosen = scheduler.schedule()
        for copy in scheduler.take_copies():
            here, there = self.tiers[True][copy.block], self.tiers[False][copy.slot]
            (there if copy.out else here)[:] = here if copy.out else there
        for item in chosen:
            seq = item.seq
            for at in range(seq.num_computed, seq.num_computed + item.num_new_tokens):
                self.tiers[True][seq.block_table[at // self.size]][at % self.size] = tuple(seq.token_ids[: at + 1])
        for item in chosen:
            seq = item.seq
            seq.num_computed += item.num_new_tokens
            for at in range(seq.num_computed):
                cell = self.tiers[True][seq.block_table[at // self.size]][at % self.size]
                assert cell == tuple(seq.token_ids[: at + 1]), f"token {at} of {seq.request_id}"
            if not seq.num_pending:
                seq.append(token)
                if len(seq.output_token_ids) >= seq.max_tokens:
                    scheduler.finish(seq)
        scheduler.check_integrity()
        return [item.seq for item in chosen]


def make(num_blocks: int, slots: int, size: int, **bounds: int) -> tuple[Scheduler, Memory]:
    defaults = {"max_batched_tokens": 16, "max_running": 4, "max_queued_requests": 100, "max_queued_tokens": 10**6}
    pool = BlockManager(num_blocks, size, host=HostBlocks(slots))
    return Scheduler(pool, **(defaults | bounds)), Memory(num_blocks, slots, size)


def sequence(name: int, tokens: list[int], answer: int) -> Sequence:
    return Sequence(str(name), tokens, SamplingParams(), max_tokens=answer, arrival=float(name))


def drain(scheduler: Scheduler, memory: Memory) -> int:
    """Steps until all is done; how many tokens ran."""
    ran = 0
    while scheduler.running or scheduler.waiting:
        before = {seq: seq.num_computed for seq in scheduler.running}
        ran += sum(seq.num_computed - before.get(seq, 0) for seq in memory.step(scheduler, 7))
    return ran


def test_a_prefix_that_had_to_give_way_is_found_again() -> None:
    scheduler, memory = make(4, 8, 4)
    prompt = list(range(13))
    for name, tokens in enumerate((prompt, [50] * 13, prompt)):
        scheduler.add(sequence(name, tokens, 1))
        again = scheduler.waiting[0]
        drain(scheduler, memory)
    assert again.num_cached == 12
    assert (scheduler.prefix_hits, scheduler.host_hits) == (12, 12)
    assert scheduler.blocks.host is not None
    assert scheduler.blocks.host.loaded == 3


def test_a_preempted_sequence_goes_on_where_it_was_down_to_the_token() -> None:
    scheduler, memory = make(6, 8, 4)
    for name in range(2):
        scheduler.add(sequence(name, [10 * name + at for at in range(8 - name)], 10))
    resumed: list[int] = []
    while scheduler.running or scheduler.waiting:
        waiting = [(seq, seq.num_swapped) for seq in scheduler.waiting if seq.num_swapped]
        ran = memory.step(scheduler, 7)
        for seq, swapped in waiting:
            if seq in ran:
                # One decode: all but its token came from the tiers.
                resumed.append(seq.num_computed - swapped)
    assert scheduler.preemptions
    assert resumed == [1] * len(resumed) != []


def test_a_sequence_that_ends_while_it_is_swapped_out_leaves_nothing_of_its_own_behind() -> None:
    scheduler, memory = make(6, 8, 4)
    for name in range(2):
        scheduler.add(sequence(name, [10 * name + at for at in range(8 - 2 * name)], 12))
    host = scheduler.blocks.host
    assert host is not None
    while not scheduler.preemptions:
        memory.step(scheduler, 7)
    (swapped,) = scheduler.waiting
    tail = swapped.tail_hash(4)
    assert tail is not None
    assert tail in host
    scheduler.finish(swapped)
    assert tail not in host
    drain(scheduler, memory)


def test_a_step_that_failed_leaves_nothing_that_it_was_to_copy() -> None:
    scheduler, memory = make(4, 8, 4)
    prompt = list(range(13))
    for name, tokens in enumerate((prompt, [50] * 13)):
        scheduler.add(sequence(name, tokens, 1))
        drain(scheduler, memory)
    scheduler.add(sequence(2, prompt, 1))
    (item,) = scheduler.schedule()
    scheduler.distrust_copies(scheduler.take_copies())
    scheduler.finish(item.seq)
    hashes = item.seq.hashes(3, 4)
    assert scheduler.blocks.find_prefix(hashes) == []
    scheduler.check_integrity()


def test_what_turned_out_to_be_no_number_is_found_in_neither_tier() -> None:
    scheduler, memory = make(4, 8, 4)
    prompt = list(range(13))
    for name, tokens in enumerate((prompt, [50] * 13, prompt)):
        scheduler.add(sequence(name, tokens, 2))
        while scheduler.waiting or (name < 2 and scheduler.running):
            memory.step(scheduler, 7)
    (seq,) = scheduler.running
    scheduler.distrust(seq, 0)
    scheduler.finish(seq)
    assert scheduler.blocks.find_prefix(seq.hashes(3, 4)) == []


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=12),
    size=st.sampled_from([1, 2, 4]),
    spare=st.integers(0, 5),
    slots=st.integers(1, 12),
    budget=st.integers(1, 40),
    max_running=st.integers(1, 6),
)
def test_whatever_is_swapped_and_shared_everyone_finds_what_was_computed(
    data: st.DataObject, requests: list[tuple[int, int]], size: int, spare: int, slots: int, budget: int,
    max_running: int,
) -> None:  # fmt: skip
    """Prompts share beginnings, both tiers are small, some hang up, and now and then computing is the quicker way."""
    blocks = max(-(-(prompt + answer) // size) for prompt, answer in requests) + spare
    scheduler, memory = make(blocks, slots, size, max_batched_tokens=budget, max_running=max_running)
    host, times = scheduler.blocks.host, CopyTimes(1.0, size)
    assert host is not None
    host.times = times
    shared = [data.draw(st.integers(0, 1)) for _ in range(20)]
    arrivals = []
    for name, (prompt, answer) in enumerate(requests):
        kept = data.draw(st.integers(0, prompt))
        arrivals.append(sequence(name, shared[:kept] + [100 + name % 3] * (prompt - kept), answer))
    while arrivals or scheduler.running or scheduler.waiting:
        for _ in range(min(len(arrivals), data.draw(st.integers(0 if list(scheduler) else 1, 3)))):
            scheduler.add(arrivals.pop(0))
        if data.draw(st.integers(0, 9)) == 0:
            scheduler.finish(data.draw(st.sampled_from(list(scheduler))))
            scheduler.check_integrity()
        times.tokens_a_second = data.draw(st.sampled_from([0.0] * 9 + [1e9]))
        memory.step(scheduler, data.draw(st.integers(0, 1)))
    assert scheduler.blocks.num_available == blocks
