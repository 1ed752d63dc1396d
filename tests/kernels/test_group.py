"""Collectives through shared memory: threads of this process stand for ranks, each with a view of its own."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.collectives import MESSAGE_BYTES, SLOT_BYTES, segment_bytes
from plimsoll.runtime.kernels import native_group
from plimsoll.runtime.kernels.native_group import GroupError, SharedGroup, make_segment


def together(size: int, work: Callable[[SharedGroup], Any]) -> list[Any]:
    """What `work` returns on each rank."""
    descriptor = make_segment(size)
    try:
        assert os.fstat(descriptor).st_size == segment_bytes(size)
        groups = [SharedGroup(descriptor, rank, size, spins=0) for rank in range(size)]
        with ThreadPoolExecutor(size) as pool:
            return [future.result(60) for future in [pool.submit(work, group) for group in groups]]
    finally:
        os.close(descriptor)


@settings(max_examples=20)
@given(st.integers(2, 5), st.lists(st.integers(1, 3 * SLOT_BYTES // 4), min_size=1, max_size=4), st.integers(0, 99))
def test_sums_have_the_same_bits_everywhere_and_the_order_of_the_ranks(size: int, counts: list[int], seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    parts = [[torch.randn(count, generator=made) for count in counts] for _ in range(size)]
    sums = together(size, lambda group: [group.sum(part.clone()) for part in parts[group.rank]])
    for index in range(len(counts)):
        wanted = parts[0][index].clone()
        for rank in range(1, size):
            wanted += parts[rank][index]
        assert all(torch.equal(one[index], wanted) for one in sums)


def test_a_row_sums_to_the_same_bits_in_any_batch() -> None:
    rows = [torch.randn(64, 96, generator=torch.Generator().manual_seed(rank)) for rank in range(3)]
    whole = together(3, lambda group: group.sum(rows[group.rank].clone()))[0]
    alone = together(3, lambda group: group.sum(rows[group.rank][7:8].clone()))[0]
    assert torch.equal(whole[7:8], alone)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 400_000), min_size=2, max_size=4), st.integers(1, 5))
def test_rank_0_gathers_the_columns_of_all(widths: list[int], rows: int) -> None:
    parts = [torch.arange(rows * width).float().view(rows, width) + rank for rank, width in enumerate(widths)]
    gathered, *others = together(len(widths), lambda group: group.gather(parts[group.rank], widths))
    assert torch.equal(gathered, torch.cat(parts, dim=1))
    assert others == [None] * len(others)


def test_collectives_of_all_kinds_follow_each_other() -> None:
    def work(group: SharedGroup) -> list[float]:
        found = []
        for turn in range(200):
            if group.rank == 0:
                group.send(str(turn).encode() * (1 + turn % 3))
            else:
                assert group.receive() == str(turn).encode() * (1 + turn % 3)
            found.append(float(group.sum(torch.full((turn % 7 + 1,), float(group.rank)))[0]))
            found.append(float(group.largest(torch.full((3,), float(-group.rank)))[0]))
            group.gather(torch.zeros(turn % 5 + 1, 4), [4] * group.size)
        return found

    assert together(3, work) == [[3.0, 0.0] * 200] * 3


@pytest.mark.parametrize("size", [0, 1, MESSAGE_BYTES - 1, MESSAGE_BYTES, 2 * MESSAGE_BYTES, 3 * MESSAGE_BYTES + 5])
def test_messages_of_any_length_arrive_whole(size: int) -> None:
    message = os.urandom(size)

    def work(group: SharedGroup) -> bytes | None:
        return group.send(message) if group.rank == 0 else group.receive()  # type: ignore[func-returns-value]

    assert together(3, work) == [None, message, message]


def test_a_group_that_ends_wakes_every_rank() -> None:
    def work(group: SharedGroup) -> str:
        if group.rank == 2:
            time.sleep(0.1)
            group.end()
            return "ended"
        with pytest.raises(GroupError, match="has ended"):
            group.sum(torch.zeros(4)) if group.rank == 0 else group.receive()
        return "woken"

    assert together(3, work) == ["woken", "woken", "ended"]


def test_a_rank_that_does_not_come_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_group, "COLLECTIVE_SECONDS", 0.2)

    def work(group: SharedGroup) -> None:
        if group.rank == 0:
            with pytest.raises(GroupError, match=r"rank 0 waited 0\.2 s"):
                group.sum(torch.zeros(4))

    together(2, work)


def test_signs_of_life_are_seen_by_others() -> None:
    descriptor = make_segment(2)
    one, two = SharedGroup(descriptor, 0, 2), SharedGroup(descriptor, 1, 2)
    os.close(descriptor)
    thread = threading.Thread(target=lambda: [two.beat() for _ in range(5)])
    thread.start()
    thread.join()
    assert (one.beats(0), one.beats(1)) == (0, 5)
