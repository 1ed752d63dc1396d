"""Collectives through torch.distributed: to the bit those of shared memory, and they end with the group."""

import ctypes
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from plimsoll.api.collectives import PIECE_BYTES
from plimsoll.runtime.kernels.device_group import DeviceGroup
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.native_group import SharedGroup
from plimsoll.runtime.kernels.torch_group import TorchGroup, gloo
from tests.kernels.test_group import together as through_memory

SIZE = 3


def together(work: Callable[[TorchGroup], Any], ended: Callable[[], str | None] = lambda: None) -> list[Any]:
    """What `work` gives on each rank, each in a thread and on a loopback address of its own."""
    store, found = dist.HashStore(), [None] * SIZE

    def rank(number: int) -> None:
        try:
            made = gloo(store, number, SIZE, f"127.0.0.{number + 1}")
            found[number] = work(TorchGroup(made, number, SIZE, ended))
        except Exception as error:
            found[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(SIZE)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    return found


def part(rank: int, rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rank * 1000 + rows))


def test_sums_are_those_of_shared_memory_to_the_bit_and_do_not_depend_on_the_batch() -> None:
    wide = PIECE_BYTES // 4 // 3 + 5  # Four rows are more than a piece.

    def work(group: TorchGroup | SharedGroup) -> tuple[torch.Tensor, torch.Tensor]:
        return group.sum(part(group.rank, 4, wide)), group.sum(part(group.rank, 4, wide)[2:3].clone())

    ours, theirs = together(work), through_memory(SIZE, work)
    for whole, row in ours:
        assert torch.equal(whole, theirs[0][0])
        assert torch.equal(row[0], whole[2])


def test_the_largest_and_what_is_gathered_are_those_of_shared_memory() -> None:
    widths = [5, 3, 4]

    def work(group: TorchGroup | SharedGroup) -> tuple[torch.Tensor, torch.Tensor | None]:
        most = part(group.rank, 1, 7)[0].clone()
        most[3] = float("nan") if group.rank == 1 else 1.0
        rows = part(group.rank, PIECE_BYTES // 4 // 5 + 7, widths[group.rank])
        return group.largest(most), group.gather(rows, widths)

    ours, theirs = together(work), through_memory(SIZE, work)
    for mine, known in zip(ours, theirs, strict=True):
        assert torch.equal(mine[0].nan_to_num(9.0), known[0].nan_to_num(9.0))
    assert torch.equal(ours[0][1], theirs[0][1])
    assert ours[1][1] is ours[2][1] is None


def test_c_code_adds_through_the_address_that_it_is_given() -> None:
    add = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)

    def work(group: TorchGroup) -> torch.Tensor:
        found = group.adder
        assert found is not None
        data = part(group.rank, 2, 8)
        assert add(found[0])(found[1], data.data_ptr(), data.numel()) == 0
        return data

    expected = part(0, 2, 8) + part(1, 2, 8) + part(2, 2, 8)
    assert all(torch.equal(one, expected) for one in together(work))


def test_gloo_listens_on_the_address_of_its_machine_alone() -> None:
    def listening() -> set[str]:
        mine = psutil.Process().net_connections("tcp")
        return {one.laddr.ip for one in mine if one.status == psutil.CONN_LISTEN}

    before = listening()
    assert all(found - before <= {"127.0.0.1", "127.0.0.2", "127.0.0.3"} for found in together(lambda _: listening()))


class Overtaken:
    """A work whose first wait is too short, and which has ended before anyone asks whether it has."""

    def __init__(self, work: dist.Work) -> None:
        self._work, self.waits = work, 0

    def wait(self, timeout: timedelta) -> None:
        self.waits += 1
        try:
            self._work.wait(timedelta(microseconds=1) if self.waits == 1 else timeout)
        finally:
            while not self._work.is_completed():
                time.sleep(0.001)
        if self.waits == 1:
            raise RuntimeError("Operation timed out!")

    def is_completed(self) -> bool:
        return self._work.is_completed()


def test_a_collective_that_ends_just_after_a_look_has_not_failed() -> None:
    def work(group: TorchGroup) -> float:
        begun: list[Overtaken] = []
        own = group._wait

        def late(begin: Callable[[], dist.Work]) -> None:
            own(lambda: begun.append(Overtaken(begin())) or begun[-1])  # type: ignore[func-returns-value,arg-type,return-value]

        group._wait = late  # type: ignore[method-assign]
        found = float(group.sum(torch.ones(4))[0])
        assert [one.waits for one in begun] == [2]
        return found

    assert together(work) == [3.0, 3.0, 3.0]


def test_a_rank_that_waits_hears_of_the_groups_end() -> None:
    ended, heard = threading.Event(), threading.Event()

    def work(group: TorchGroup) -> str:
        if group.rank:
            heard.wait(60)
            make_up(group)
            return "left out"
        threading.Timer(0.1, ended.set).start()
        with pytest.raises(GroupError, match="pod x is gone"):
            group.sum(torch.ones(4))
        heard.set()
        return "heard"

    assert together(work, lambda: "pod x is gone" if ended.is_set() else None) == ["heard", "left out", "left out"]


def test_a_group_of_devices_adds_through_its_backend_and_announces_through_shared_memory() -> None:
    """On CPUs, where gloo stands in the place of NCCL: all else of the class is the same."""

    def work(shared: SharedGroup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bytes]:
        group = DeviceGroup(shared, torch.device("cpu"))
        if group.rank == 0:
            group.send(b"step")
        heard = b"step" if group.rank == 0 else group.receive()
        rows = part(group.rank, 3, 5)
        return group.sum(rows.clone()), group.largest(rows[0].clone()), group.gather(rows, [5] * SIZE), heard

    parts = [part(rank, 3, 5) for rank in range(SIZE)]
    for rank, (total, most, gathered, heard) in enumerate(through_memory(SIZE, work)):
        assert torch.equal(total, parts[0] + parts[1] + parts[2])
        assert torch.equal(most, torch.stack([one[0] for one in parts]).amax(0))
        assert heard == b"step"
        assert gathered is None if rank else torch.equal(gathered, torch.cat(parts, 1))  # type: ignore[arg-type]


def test_a_group_of_devices_ends_with_the_memory_that_it_shares() -> None:
    heard = threading.Event()

    def work(shared: SharedGroup) -> None:
        group = DeviceGroup(shared, torch.device("cpu"))
        if group.rank == 0:
            threading.Timer(0.1, shared.end).start()
        with pytest.raises(GroupError, match="has ended"):
            group.receive() if group.rank else group.sum(torch.ones(4))
        if group.rank:
            heard.wait(60)
            make_up(group)
        heard.set()

    through_memory(SIZE, work)


def make_up(group: TorchGroup) -> None:
    """Joins the sum that rank 0 has given up: a gloo that is collected waits for it, and keeps Python's lock."""
    TorchGroup(group._work, group.rank, SIZE, lambda: None).sum(torch.ones(4))
