"""Processes of a deployment's pods, seen from their node, which must be this machine."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.rank_kills import lives, segments
from e2e.cluster import Object

ENGINE, RANK = "plimsoll.runtime.engine.transport.process", "plimsoll.runtime.engine.worker.rank_process"
_LISTENS = "0A"


class PodProcesses:
    """Processes of one pod's container as they are now.

    Attributes:
        server: the container's first process: the endpoint, or a follower's agent; None where it does not run.
        ranks: processes that hold a part of the model; a leader's rank 0 first.
    """

    def __init__(self, pod: Object, found: Iterable[psutil.Process]) -> None:
        self.pod = pod
        self.all = list(found)
        ours = [one for one in self.all if any("plimsoll" in word for word in words(one))]
        # The sandbox's own process is in the pod, too.
        pids = {one.pid for one in ours}
        self.server = next((one for one in ours if one.ppid() not in pids), None)
        of_ranks = [one for one in self.all if {ENGINE, RANK} & set(words(one))]
        self.ranks = sorted(of_ranks, key=lambda one: (ENGINE not in words(one), one.pid))

    def listening(self) -> int:
        """Sockets that listen in the pod's network."""
        assert self.server is not None
        rows = [
            row.split()
            for kind in ("tcp", "tcp6")
            for row in Path(f"/proc/{self.server.pid}/net/{kind}").read_text().splitlines()[1:]
        ]
        return sum(row[3] == _LISTENS for row in rows)

    def segments(self) -> int:
        """Memories of groups that its processes hold, each counted once."""
        return len(segments(one.pid for one in self.all))


def words(process: psutil.Process) -> list[str]:
    """Its command line; empty for one that is gone or dead."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def processes(pods: Iterable[Object]) -> list[PodProcesses]:
    """Of each pod, in the order of `pods`. Zombies are left out."""
    known = {pod["metadata"]["uid"]: list[psutil.Process]() for pod in pods}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            group = Path(f"/proc/{name}/cgroup").read_text()
            uid = next((uid for uid in known if uid in group), None)
            if uid is not None and lives(one := psutil.Process(int(name))):
                known[uid].append(one)
        except (OSError, psutil.Error):
            continue
    return [PodProcesses(pod, known[pod["metadata"]["uid"]]) for pod in pods]


def mounts(uids: Iterable[str]) -> list[str]:
    """Mounts of this machine that belong to pods with these uids."""
    table = Path("/proc/mounts").read_text().splitlines()
    return [line.split()[1] for line in table if any(uid in line for uid in uids)]
