"""The queue of deployments: none lost, none twice at a time."""

import itertools
import threading
import time
from collections import defaultdict
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plimsoll.operator.metrics import Metrics
from plimsoll.operator.workqueue import LAST_RETRY_SECONDS, RUSH_SECONDS, WorkQueue

KEYS = st.sampled_from([("ns", "a"), ("ns", "b"), ("other", "a")])


class Machine(RuleBasedStateMachine):
    """Whatever happens, what was asked for is looked at after it was asked for."""

    settle = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = WorkQueue(Metrics(), clock=lambda: self.now, settle=self.settle)
        self.queue.open()
        self.wanted: dict[tuple[str, str], set[float]] = defaultdict(set)
        self.working: set[tuple[str, str]] = set()
        self.looked_at: dict[tuple[str, str], float] = {}

    @rule(key=KEYS, after=st.sampled_from([0.0, 1.0, 60.0]))
    def add(self, key: tuple[str, str], after: float) -> None:
        self.queue.add(key, after)
        self.wanted[key].add(self.now + after)

    @rule()
    def take(self) -> None:
        key = self.queue.get(0.0)
        due = {k for k, times in self.wanted.items() if k not in self.working and min(times, default=inf) <= self.now}
        rested = {k for k in due if self.now >= self.looked_at.get(k, -inf) + self.settle}
        assert key is not None or not rested
        assert key is None or due
        if key is not None:
            assert key in due
            assert key not in self.working
            self.working.add(key)
            self.wanted[key].clear()

    @rule(key=KEYS, again=st.sampled_from([None, 5.0]))
    def done(self, key: tuple[str, str], again: float | None) -> None:
        if key in self.working:
            self.working.discard(key)
            self.looked_at[key] = self.now
            self.queue.done(key, again)
            if again is not None:
                self.wanted[key].add(self.now + again)

    @rule(key=KEYS)
    def failed(self, key: tuple[str, str]) -> None:
        if key in self.working:
            self.working.discard(key)
            self.looked_at[key] = self.now
            wait = self.queue.failed(key)
            # What was asked for meanwhile waits as well; what was asked for later stays.
            self.wanted[key] = {at for at in self.wanted[key] if at > self.now} | {self.now + wait}

    @rule(seconds=st.sampled_from([0.5, 10.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_slowest_worker_is_known(self) -> None:
        assert bool(self.working) or self.queue.longest_running() == 0


class Settling(Machine):
    """A key that rests is looked at all the same, once it has rested."""

    settle = 0.75


TestQueue = Machine.TestCase
TestSettlingQueue = Settling.TestCase


def test_while_new_keys_come_one_that_was_just_looked_at_rests() -> None:
    now = [0.0]
    queue = WorkQueue(Metrics(), clock=lambda: now[0], settle=0.5)
    queue.open()
    queue.add(("ns", "a"))
    assert queue.get(0.0) == ("ns", "a")
    queue.done(("ns", "a"))
    for _ in range(3):
        queue.add(("ns", "a"))
    assert queue.get(0.0) is None
    now[0] += 0.5
    assert queue.get(0.0) == ("ns", "a")
    queue.done(("ns", "a"))
    assert queue.get(0.0) is None, "once for all that happened meanwhile"
    now[0] += RUSH_SECONDS
    queue.add(("ns", "a"))
    assert queue.get(0.0) == ("ns", "a")
    queue.done(("ns", "a"))
    queue.add(("ns", "a"))
    assert queue.get(0.0) == ("ns", "a"), "nothing is new any more"


def test_while_new_keys_come_only_a_few_others_are_worked_on() -> None:
    now = [0.0]
    queue = WorkQueue(Metrics(), clock=lambda: now[0], others=2)
    queue.open()
    old = [("ns", f"old-{number}") for number in range(5)]
    for key in old:
        queue.add(key)
        assert queue.get(0.0) == key, "one that is new never waits"
    for key in old:
        queue.done(key, 0.0)
    assert queue.rush()
    assert [queue.get(0.0) for _ in range(3)] == [old[0], old[1], None]
    queue.add(("ns", "new"))
    assert queue.get(0.0) == ("ns", "new")
    assert queue.get(0.0) is None
    queue.done(old[0])
    assert queue.get(0.0) == old[2]
    now[0] += RUSH_SECONDS
    assert not queue.rush()
    assert [queue.get(0.0), queue.get(0.0)] == [old[3], old[4]]


def test_one_that_waits_for_the_rush_to_end_is_not_forgotten() -> None:
    queue = WorkQueue(Metrics(), others=1)
    queue.open()
    for key in (("ns", "a"), ("ns", "b")):
        queue.add(key)
        queue.get(0.0)
        queue.done(key, 0.0)
    assert queue.get(0.0) == ("ns", "a")
    began = time.monotonic()
    assert queue.get(30.0) == ("ns", "b"), "a worker that sleeps wakes when the rush is over"
    assert time.monotonic() - began < 30.0


def test_a_failing_key_comes_ever_later_and_a_success_forgives() -> None:
    queue = WorkQueue(Metrics(), clock=lambda: 0.0)
    waits = [queue.failed(("ns", "a")) for _ in range(30)]
    assert all(later > 1.1 * earlier for earlier, later in itertools.pairwise(waits[:9]))
    assert max(waits) <= 1.25 * LAST_RETRY_SECONDS
    queue.done(("ns", "a"))
    assert queue.failed(("ns", "a")) < 1


def test_what_happens_while_a_key_fails_does_not_make_it_hot() -> None:
    queue = WorkQueue(Metrics(), clock=lambda: 0.0)
    queue.open()
    queue.add(("ns", "a"))
    assert queue.get(0) == ("ns", "a")
    queue.add(("ns", "a"))
    queue.failed(("ns", "a"))
    assert queue.get(0) is None


def test_a_paused_queue_hands_out_nothing_and_loses_nothing() -> None:
    queue = WorkQueue(Metrics())
    queue.add(("ns", "a"))
    assert queue.get(0) is None
    queue.open()
    assert queue.get(0) == ("ns", "a")
    queue.pause()
    queue.add(("ns", "b"))
    assert queue.get(0) is None


@settings(deadline=None)
@given(st.lists(KEYS, max_size=30))
def test_many_threads_see_each_key_one_at_a_time(keys: list[tuple[str, str]]) -> None:
    queue = WorkQueue(Metrics())
    queue.open()
    at_it: set[tuple[str, str]] = set()
    seen: set[tuple[str, str]] = set()
    clashes: list[tuple[str, str]] = []

    def work() -> None:
        while (key := queue.get(0.0)) is not None:
            if key in at_it:
                clashes.append(key)
            at_it.add(key)
            seen.add(key)
            at_it.discard(key)
            queue.done(key)

    for key in keys:
        queue.add(key)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == set(keys)
    assert not clashes


def test_a_closed_queue_lets_waiting_workers_go() -> None:
    queue = WorkQueue(Metrics())
    queue.open()
    waiting = threading.Thread(target=lambda: queue.get(60.0))
    waiting.start()
    queue.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_what_nobody_has_looked_at_yet_goes_first() -> None:
    queue = WorkQueue(Metrics())
    queue.open()
    old, new = ("ns", "old"), ("ns", "new")
    queue.add(old)
    assert queue.get(0) == old
    queue.done(old)
    queue.add(old)
    queue.add(new)
    assert queue.get(0) == new
    assert queue.get(0) == old
    queue.done(old)
    queue.forget(old)
    queue.add(old)
    assert queue.get(0) == old
    assert queue.get(0) is None
