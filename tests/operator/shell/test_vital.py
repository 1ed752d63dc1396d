"""What only a restart mends is said on /healthz, each shown by bringing it about; what a restart would not, is not."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plimsoll.operator import kinds
from plimsoll.operator.main import NO_KIND, Operator
from plimsoll.operator.settings import Settings
from tests.operator.shell.test_main import kubeconfig

OURS = "/apis/plimsoll.dev/v1alpha1"


@pytest.fixture
def wired(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """All parts of the process, none of them started, its caches filled a moment ago."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api.url)))
    found = Operator(Settings(health_port=0, workers=2))
    found._filled = True
    found._always = [kinds.DEPLOYMENT, kinds.POD]
    found.watches.kinds = (kinds.DEPLOYMENT, kinds.POD)
    found.watches.opened = dict.fromkeys(("ModelDeployment", "Pod"), time.monotonic())
    found.cluster.answered_at = time.monotonic()
    return found


def ends(*_: Any, **__: Any) -> Any:
    """What no handler of exceptions keeps from ending a thread."""
    raise SystemExit


THREADS: dict[str, Callable[[Operator], tuple[object, str]]] = {
    "start": lambda one: (one, "_await_kinds"),
    "worker-1": lambda one: (one.queue, "get"),
    "events-2": lambda one: (one.poster._waiting[2], "get"),
    "watches": lambda one: (one.watches, "_once"),
    "verify": lambda one: (one.rounds._stop, "wait"),
    "sweep": lambda one: (one.sweeper._stop, "wait"),
    "lease": lambda one: (one.lease, "step"),
    "departures": lambda one: (one.departures, "_next"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", THREADS)
def test_each_thread_that_ends_is_noticed(wired: Operator, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner, what = THREADS[name](wired)
    monkeypatch.setattr(owner, what, ends)
    pulse = next(one for one in wired._pulses() if one.name == name)
    assert wired.alive() == []
    pulse.start()
    pulse.join(10)
    assert wired.alive() == [f"the thread {name} has ended"]
    wired._ending.set()
    assert wired.alive() == []


def test_there_is_a_pulse_for_every_thread_that_the_process_starts(wired: Operator) -> None:
    expected = {"start", "watches", "verify", "sweep", "lease", "departures", *(f"worker-{n}" for n in range(2)),
                *(f"events-{n}" for n in range(4))}  # fmt: skip
    assert {pulse.name for pulse in wired._pulses()} == expected


@pytest.mark.parametrize("name", ["watches", "verify", "sweep", "lease", "departures"])
def test_a_thread_that_goes_round_no_more_is_noticed(wired: Operator, name: str) -> None:
    pulse = next(one for one in wired._pulses() if one.name == name)
    pulse._thread.is_alive = lambda: True  # type: ignore[method-assign]
    pulse._started = True
    pulse.beat()
    assert wired.alive() == []
    pulse._clock = lambda: time.monotonic() + 3600
    assert wired.alive() == [f"the thread {name} has been stuck for 3600 s"]


def test_a_reader_of_status_pages_that_ends_is_noticed(wired: Operator) -> None:
    async def reading() -> None:
        wired._reading = asyncio.ensure_future(asyncio.sleep(0))
        await wired._reading

    asyncio.run(reading())
    assert wired.alive() == ["status pages are read no more"]


def test_a_watch_that_never_begins_is_noticed_unless_it_is_denied(wired: Operator) -> None:
    wired.watches.opened.pop("Pod")
    wired.watches._miss()
    assert wired.alive() == []
    wired.watches._missing_since["Pod"] -= 200
    assert wired.alive() == ["the watch of Pod has not begun for 200 s"]
    # Every attempt to begin it anew forgets what was open, and not since when it has been missing.
    wired.watches._miss()
    assert wired.alive() == ["the watch of Pod has not begun for 200 s"]
    wired.watches.denied.add("Pod")
    assert wired.alive() == []


def test_a_lease_without_an_answer_is_noticed_and_one_that_is_refused_is_not(wired: Operator, api: Any) -> None:
    now = [100.0]
    wired.lease._clock = lambda: now[0]
    for fault, noticed in (("cut", True), ((403, {}), False)):
        for _ in range(4):
            api.faults = [fault]
            wired.lease.step()
            now[0] += 50
        wired.cluster.answered_at = time.monotonic()
        assert [words.rsplit(" ", 2)[0] for words in wired.alive()] == ["the lease has had no answer for"] * noticed


def test_a_leader_that_cannot_begin_tries_again(wired: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    gained: list[int] = []

    def begins() -> None:
        gained.append(1)
        if len(gained) == 1:
            raise ValueError("once")

    monkeypatch.setattr(wired.lease, "_gained", begins)
    assert "once" in wired.lease.step()
    assert wired.lease.step() == ""
    assert (len(gained), wired.lease._leading) == (2, True)


def test_our_kind_that_goes_and_comes_back_is_watched_again(
    wired: Operator, api: Any, make: Callable[..., dict[str, Any]]
) -> None:
    wired.cache.seen(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, "a", spec={}))
    wired._look_again()
    assert kinds.DEPLOYMENT in wired.watches.kinds, "one look may be at an API server that has just started"
    wired._look_again()
    assert wired.watches.kinds == (kinds.POD,)
    assert (wired.cache.every(), wired.ready(), wired.alive()) == ([], [f"waiting for {NO_KIND}"], [])
    api.objects[OURS] = {"resources": [{"name": "modeldeployments"}, {"name": "quantizationjobs"}]}
    wired._look_again()
    assert set(wired.watches.kinds) == {kinds.POD, kinds.DEPLOYMENT, kinds.QUANTIZATION}
    assert wired.ready() == ["waiting for the watches"]
    wired.watches.opened["QuantizationJob"] = time.monotonic()
    assert wired.ready() == []
    assert wired.cache.seen(kinds.DEPLOYMENT, None, make(kinds.DEPLOYMENT, "a", spec={}))
