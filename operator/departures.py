"""What a watch calls deleted, looked at before it is believed.

Watches select our objects by a label. An object that loses the label leaves the watch exactly as a deleted one does,
though it is there and its pods serve. It is ours by its controller and its other labels: it gets the label back.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from plimsoll.operator import kinds, names, parse
from plimsoll.operator.cluster import (
    Cluster,
    ClusterError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    NotLeaderError,
)
from plimsoll.operator.kinds import BY_NAME, Kind
from plimsoll.operator.pulse import Pulse
from plimsoll.operator.shape import text
from plimsoll.operator.watch_cache import Cache

log = structlog.get_logger("plimsoll.operator.departures")

Raw = Mapping[str, Any]
#: Labels of ours that are put back together.
_MARKS = (names.MANAGED_BY, names.DEPLOYMENT, names.JOB, names.SOURCE, names.COMPONENT, names.REVISION, names.OF_GROUP)
#: Another look after an error, and the least and the most between two repairs of one object.
RETRY_SECONDS, MOST_SECONDS = 2.0, 60.0
#: Until an operator that does not lead looks again whether the leader has put a label back.
FOLLOWER_SECONDS = 5.0
#: One look takes less, retries of the client included.
STUCK_SECONDS = 300.0


class Departures:
    """Asks the API server about each object that left its watch without being deleted before its owner.

    Until the answer is there, the cache keeps the object: without it, a look would make it again.
    """

    def __init__(self, cluster: Cluster, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._cache, self._clock = cluster, cache, clock
        self._change = threading.Condition()
        self._waiting: dict[tuple[str, str, str, str], tuple[float, Kind, Raw]] = {}
        self._repaired: dict[str, tuple[float, int]] = {}
        """When each object was last repaired, and how often in a row, by uid."""
        self._stopped = False
        self.pulse = Pulse("departures", self._run, STUCK_SECONDS)

    def stop(self) -> None:
        with self._change:
            self._stopped = True
            self._change.notify()

    def heard(self, kind: Kind, event: str | None, raw: Raw) -> None:
        """One event of a watch, or one object of its list."""
        if event == "DELETED" and self._doubtful(kind, raw):
            self.doubt(kind, raw)
        else:
            self._cache.seen(kind, event, raw)

    def _doubtful(self, kind: Kind, raw: Raw) -> bool:
        """Whether the object may be there still. A slice is another controller's, which sees to its labels."""
        about, tags = parse.meta(raw), parse.labels(raw)
        if kind.selector is None or kind is kinds.ENDPOINT_SLICE or about.get("deletionTimestamp"):
            return False
        owners = ((kinds.DEPLOYMENT, names.DEPLOYMENT), (kinds.QUANTIZATION, names.JOB))
        named = [(owner, tags[mark]) for owner, mark in owners if mark in tags]
        return not named or any(self._cache.uid(owner, text(about.get("namespace")), name) for owner, name in named)

    def stray(self, kind: Kind, raw: Raw) -> None:
        """An object with other labels of ours that no watch tells of: looked at if its controller is one we know."""
        about, owner = parse.meta(raw), parse.controller(raw)
        if owner:
            which = BY_NAME.get(str(owner.get("kind")))
            known = which and self._cache.uid(which, text(about.get("namespace")), text(owner.get("name")))
            if known != owner.get("uid"):
                return
        elif names.SOURCE not in parse.labels(raw) and about.get("name") != names.INSPECT_POLICY:
            return
        self.doubt(kind, raw)

    def doubt(self, kind: Kind, raw: Raw, after: float = 0.0) -> None:
        """Looks at `raw`, as it was when it was last seen, in `after` seconds."""
        about = parse.meta(raw)
        with self._change:
            key = (kind.name, text(about.get("namespace")), text(about.get("name")), text(about.get("uid")))
            self._waiting.setdefault(key, (self._clock() + after, kind, raw))
            self._change.notify()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            self.pulse.beat()
            for kind, raw in due:
                try:
                    wait = self.look(kind, raw)
                except ForbiddenError as error:
                    log.warning("labels cannot be put back", kind=kind.name, name=parse.meta(raw).get("name"),
                                error=str(error))  # fmt: skip
                    wait = MOST_SECONDS
                except ClusterError as error:
                    log.warning("will look again", kind=kind.name, name=parse.meta(raw).get("name"), error=str(error))
                    wait = RETRY_SECONDS
                except Exception:
                    log.exception("this is a bug")
                    wait = None
                if wait is not None:
                    self.doubt(kind, raw, wait)

    def _next(self) -> list[tuple[Kind, Raw]] | None:
        """What is due by now, after at most a second; None once it is to stop."""
        with self._change:
            if not self._stopped and not any(at <= self._clock() for at, _, _ in self._waiting.values()):
                self._change.wait(1.0)
            if self._stopped:
                return None
            due = [key for key, (at, _, _) in self._waiting.items() if at <= self._clock()]
            return [self._waiting.pop(key)[1:] for key in due]

    def look(self, kind: Kind, raw: Raw) -> float | None:
        """Brings the cache and the object's labels up to date. Returns in how many seconds to look again, if at all.

        Raises:
            ClusterError: the API server did not answer, or refuses the change.
        """
        about = parse.meta(raw)
        try:
            live = self._cluster.get(kind, about.get("namespace"), str(about.get("name")))
        except NotFoundError:
            self._cache.seen(kind, "DELETED", raw)
            return None
        found, released = parse.meta(live), parse.owner(raw) != parse.owner(live)
        if found.get("uid") != about.get("uid") or found.get("deletionTimestamp") or released:
            self._cache.seen(kind, "DELETED", raw)
            return None
        before, now = parse.labels(raw), parse.labels(live)
        if now.get(names.MANAGED_BY) == names.MANAGER:
            self._cache.seen(kind, None, live)
            return None
        kept = {mark: before[mark] for mark in _MARKS if mark in before and mark not in now}
        return self._put_back(kind, live, {**kept, names.MANAGED_BY: names.MANAGER})

    def _put_back(self, kind: Kind, live: Raw, missing: Mapping[str, str]) -> float | None:
        about, now = parse.meta(live), self._clock()
        at, count = self._repaired.get(about["uid"], (float("-inf"), 0))
        rest = min(2.0**count, MOST_SECONDS) if count else 0.0
        if now - at < rest:
            # Something else takes the label each time: it is not fought at full speed.
            return rest - (now - at)
        # It is there and ours, with or without the label.
        shown = {**live, "metadata": {**about, "labels": {**parse.labels(live), **missing}}}
        self._cache.seen(kind, None, shown)
        patch = {"metadata": {"uid": about["uid"], "labels": missing}}
        try:
            answer = self._cluster.merge(kind, about.get("namespace"), about["name"], patch)
        except (NotFoundError, ConflictError):
            return 0.0
        except NotLeaderError:
            return FOLLOWER_SECONDS  # The leader puts it back.
        self._repaired = {uid: kept for uid, kept in self._repaired.items() if now - kept[0] < 10 * MOST_SECONDS}
        self._repaired[about["uid"]] = now, count + 1
        self._cache.seen(kind, None, answer)
        log.warning("put labels back that were taken off", kind=kind.name, namespace=about.get("namespace"),
                    name=about["name"], labels=sorted(missing))  # fmt: skip
        return None
