"""Conditions as metav1 has them: what is true, why, since when, for which generation of the spec."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Truth = Literal["True", "False", "Unknown"]
#: The API server takes 32,768 characters; a reader needs fewer.
MOST_MESSAGE = 2000
#: Of status.message, which is a column.
MOST_COLUMN = 300


@dataclass(frozen=True)
class Condition:
    """A condition of a status, without its times."""

    type: str
    status: Truth
    reason: str
    """CamelCase, one word for a program."""
    message: str = ""
    """For a human, with what to do."""


def written(
    conditions: Iterable[Condition], before: Sequence[Mapping[str, Any]], generation: int, now: float
) -> list[dict[str, Any]]:
    """Conditions as they stand in status; lastTransitionTime moves only when the status of one changes."""
    old = {condition.get("type"): condition for condition in before}
    found = []
    for condition in conditions:
        was = old.get(condition.type, {})
        since = was.get("lastTransitionTime") if was.get("status") == condition.status else None
        found.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message[:MOST_MESSAGE],
                "observedGeneration": generation,
                "lastTransitionTime": since or timestamp(now),
            }
        )
    return found


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of that type in a status; empty where there is none."""
    return next((one for one in status.get("conditions", ()) if one["type"] == kind), {})


def column(message: str) -> str:
    """A message in one line: kubectl cuts a column at the first line break, and the ways out stand after one."""
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())[:MOST_COLUMN]


def timestamp(now: float) -> str:
    """Seconds since the epoch as Kubernetes writes them."""
    return datetime.datetime.fromtimestamp(int(now), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
