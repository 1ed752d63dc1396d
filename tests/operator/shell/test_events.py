"""Events are told soon, in order, or not at all."""

import threading
import time
from typing import Any

from plimsoll.operator import kinds
from plimsoll.operator.actions import Event
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.events import LATEST_SECONDS, Events, Poster
from plimsoll.operator.snapshot import Deployment


def deployment(name: str) -> Deployment:
    return Deployment("ns", name, f"uid-{name}", 1, {})


def told(api: Any) -> list[str]:
    """Messages of the events that the API server has, in the order they came."""
    return [one["message"] for one in api.under(kinds.EVENT.path("ns"))]


def until(what: Any) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_what_waited_too_long_is_dropped_and_what_is_news_is_told_at_once(api: Any, cluster: Cluster) -> None:
    # The clock goes on by a second with each request, as if the API server took so long for it.
    poster = Poster(Events(cluster), threads=1, clock=lambda: float(len(api.requests)))
    for number in range(100):
        poster.emit(deployment("a"), Event("Normal", "Busy", f"message {number}"))
    for pulse in poster.pulses:
        pulse.start()
    until(lambda: len(told(api)) + poster.dropped == 100)
    assert told(api) == [f"message {number}" for number in range(int(LATEST_SECONDS) + 1)]
    poster.emit(deployment("a"), Event("Warning", "Failed", "the news"))
    until(lambda: told(api)[-1] == "the news")


def test_a_slow_answer_for_one_deployment_holds_up_few_others(api: Any, cluster: Cluster) -> None:
    events, first = Events(cluster), threading.Event()

    def slow(deployment: Deployment, event: Event) -> None:
        if deployment.name == "stuck":
            assert first.wait(20)
        Events.emit(events, deployment, event)

    events.emit = slow  # type: ignore[method-assign]
    poster = Poster(events, threads=4)
    for pulse in poster.pulses:
        pulse.start()
    poster.emit(deployment("stuck"), Event("Normal", "Busy", "late"))
    for number in range(40):
        for which in ("one", "two"):
            poster.emit(deployment(f"d{number}"), Event("Normal", which, f"{number} {which}"))
    until(lambda: len(told(api)) >= 40)
    first.set()
    until(lambda: len(told(api)) == 81)
    found = told(api)
    assert all(found.index(f"{n} one") < found.index(f"{n} two") for n in range(40)), "in order, each deployment's"
    assert poster.dropped == 0
