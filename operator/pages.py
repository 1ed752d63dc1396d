"""What pods' status pages said last, which of them this process has asked for, and the last words of pods that are
gone."""

import time
from dataclasses import replace

from plimsoll.api.job_progress import JobProgress
from plimsoll.operator.entries import may_answer, said_by
from plimsoll.operator.snapshot import Page, Pod


class Pages:
    """Pages by uid of the pod. The caller holds the cache's lock."""

    def __init__(self) -> None:
        self._said: dict[str, Page | JobProgress] = {}
        self._first_seen: dict[str, float] = {}
        self._asked: dict[str, bool] = {}
        """Pods whose page was asked for since this process leads, and whether it is known what comes of it."""
        self._leading_since = 0.0
        self._parted: dict[str, tuple[float, Pod]] = {}
        """By uid of a Job: the last of its pods that ended and is gone, and when it went."""

    def came(self, uid: str) -> None:
        """Note when a pod was first seen."""
        self._first_seen.setdefault(uid, time.time())

    def went(self, uid: str) -> None:
        """Forget a pod that was deleted."""
        self._said.pop(uid, None)
        self._first_seen.pop(uid, None)
        self._asked.pop(uid, None)

    def part(self, pod: Pod | None, now: float) -> None:
        """Keep the last words of a Job's pod that goes. A pod that was deleted as it ended may be gone before its Job
        is seen to have ended, and only these words say what became of the work."""
        if pod is not None and any(one.state == "terminated" for one in pod.containers if not one.init):
            self._parted[pod.owner] = now, pod

    def parted(self, owner: str) -> Pod | None:
        """The last pod of that Job which ended and is gone."""
        kept = self._parted.get(owner)
        return kept[1] if kept else None

    def tidy(self, oldest: float) -> None:
        """Forget pods that went before `oldest`."""
        self._parted = {owner: kept for owner, kept in self._parted.items() if kept[0] > oldest}

    def shown(self, uid: str, pod: Pod) -> Pod:
        """`pod` with its page, and with what this process knows of it."""
        unread = self.unread(uid) and may_answer(pod)
        return replace(pod, seen_since=self.seen_since(uid), unread=unread, **said_by(pod, self.of(uid)))

    def of(self, uid: str) -> Page | JobProgress | None:
        """The latest status page of a pod, if it has answered."""
        return self._said.get(uid)

    def keep(self, uid: str, page: Page | JobProgress | None) -> None:
        """Keep a pod's latest status page; None forgets it."""
        if page is None:
            self._said.pop(uid, None)
        else:
            self._said[uid] = page

    def seen_since(self, uid: str) -> float:
        """Seconds since the epoch at which this process, as the leader, began to look at a pod."""
        return max(self._first_seen.get(uid, 0.0), self._leading_since)

    def began_to_lead(self, now: float) -> None:
        """From here on pages are read, and none was read before."""
        self._leading_since = now
        self._asked.clear()

    def asked(self, uid: str, *, known: bool) -> bool:
        """The pod's page was asked for; `known`: it answered, or is given up. Returns whether that is news."""
        was = self._asked.get(uid, False)
        self._asked[uid] = was or known
        return known and not was

    def unread(self, uid: str) -> bool:
        """Whether it is not known yet what comes of asking."""
        return not self._asked.get(uid)

    def unasked(self, uid: str) -> bool:
        """Whether this pod has not been polled yet."""
        return uid not in self._asked
