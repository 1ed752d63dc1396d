"""A pod's status page to the snapshot's value. Pure; what is odd in a page becomes a default."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from plimsoll.api.shard import MOST_RANKS
from plimsoll.operator.shape import mapping, number, whole
from plimsoll.operator.snapshot import Page

PHASES = ("downloading", "loading", "warming", "ready", "draining")
#: What is read of how a pod computes, and the most characters of it.
_WORDS: Mapping[str, int] = {"kernels": 64, "digest": 80, "reason": 512}
#: What is read of each step of a status page.
_OF_A_STEP: Mapping[str, Callable[[Any], float]] = {"bytes": whole, "total": whole, "seconds": number, "eta": number}


def page_of(data: Any, now: float, before: Page | None) -> Page | None:
    """A pod's status page; None when it is none."""
    if not isinstance(data, dict) or data.get("phase") not in PHASES:
        return None
    steps = mapping(data.get("startup"))
    startup = {name: _step(step) for name, step in steps.items() if isinstance(step, dict)}
    loads = steps.get("ranks")
    ranks = data.get("ranks")
    read = Page(
        moved_at=now,
        phase=data["phase"],
        startup=startup,
        rank_loads=tuple(map(_rank_load, loads[:MOST_RANKS])) if isinstance(loads, list) else (),
        observed=_amounts(data.get("observed")),
        ranks=tuple(map(_amounts, ranks[:MOST_RANKS])) if isinstance(ranks, list) else (),
        serving=_serving(data.get("serving")),
        waiting_for=_pod_names(data.get("waitingFor")),
        running=max(0, whole(data.get("running"))),
        waiting=max(0, whole(data.get("waiting"))),
        cache_usage=min(1.0, number(data.get("cacheUsage"))),
    )
    if before is not None and _progress(read) == _progress(before):
        return replace(read, moved_at=before.moved_at)
    return read


def _serving(data: Any) -> dict[str, Any]:
    """Words are bounded: they go into a status."""
    found, said = mapping(data), mapping(data).get("deterministic")
    if not isinstance(said, bool):
        return {}
    words = {key: value[:most] for key, most in _WORDS.items() if isinstance(value := found.get(key), str) and value}
    return {"deterministic": said, **words}


def _pod_names(value: Any) -> tuple[str, ...]:
    found = value[:MOST_RANKS] if isinstance(value, list) else []
    return tuple(one for one in found if isinstance(one, str) and 0 < len(one) <= 63)


def _step(step: Any) -> dict[str, Any]:
    found = mapping(step)
    return {key: value for key, read in _OF_A_STEP.items() if key in found and (value := read(found[key])) >= 0}


def _rank_load(data: Any) -> dict[str, Any]:
    return _step(data) | {key: value for key, value in _amounts(data).items() if key == "rank"}


def _amounts(data: Any) -> dict[str, int]:
    return {key: amount for key, value in mapping(data).items() if (amount := whole(value, -1)) >= 0}


def _progress(read: Page) -> tuple[Any, ...]:
    steps = [(name, step.get("bytes")) for name, step in sorted(read.startup.items())]
    return read.phase, *steps
