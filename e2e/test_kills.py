"""Ranks, servers and pods are killed and stopped at random instants under load: the group is back, nothing is left.

Processes of containers are struck from outside, so the node must be this machine. A row of the result is one blow. The
next one comes 0.1 to `PAUSE_SECONDS` after the group is back, so that some hit an engine that has only just started.
"""

import random
import signal
import statistics
import time
from collections import Counter
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.rank_kills import Clients, lives
from e2e.cluster import SERVING, SOON, eventually
from e2e.deployments import ModelDeployment
from e2e.scene import Scene
from e2e.struck import PodProcesses, mounts, processes
from e2e.test_groups import INDEX, leaders

BLOWS = 25
PAUSE_SECONDS = 20.0
#: A blow at a rank ends all ranks of its group within so long.
GONE_SECONDS = 5.0
#: A server that is stopped is ended by its probe; one that is killed often waits for the kubelet's back-off.
BACK_SECONDS = 420.0
#: On a node whose processors others keep busy, too.
ANSWER_SECONDS = 120.0
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
#: What is struck, how (a signal, or `deleted`), and whether connections to the leader may end with it.
ONE_POD = (
    ("rank 0", KILL, False), ("rank 0", STOP, False), ("another rank", KILL, False), ("another rank", STOP, False),
    ("another rank", KILL, False), ("another rank", STOP, False), ("the server", KILL, True),
    ("the server", STOP, True), ("the pod", "deleted", True),
)  # fmt: skip
GROUP = (
    ("the leader's engine", KILL, False), ("the leader's engine", STOP, False), ("a follower's rank", KILL, False),
    ("a follower's rank", STOP, False), ("a follower's agent", KILL, False), ("a follower's agent", STOP, False),
    ("the leader's server", KILL, True), ("the leader's server", STOP, True), ("a follower's pod", "deleted", False),
    ("the leader's pod", "deleted", True),
)  # fmt: skip
EACH_POD = (
    ("pod 0", "deleted", True), ("pod 1", "deleted", False), ("pod 2", "deleted", False),
    ("the leader's server", KILL, True),
)  # fmt: skip


class Struck:
    """A deployment of one replica under load, and all that was seen of it."""

    def __init__(self, scene: Scene, deployment: ModelDeployment, url: str) -> None:
        self.cluster, self.deployment, self.url = scene.cluster, deployment, url
        seed = random.randrange(1 << 16)
        scene.result.note(seed=seed)
        self.draw = random.Random(seed)
        self.seen: set[psutil.Process] = set()
        self.uids: set[str] = set()
        self.rows: list[dict[str, Any]] = []

    def look(self) -> list[PodProcesses]:
        """Its pods, the leader's first."""
        pods = sorted(self.deployment.pods(), key=lambda pod: pod["metadata"]["labels"][INDEX])
        found = processes(pods)
        self.seen |= {one for pod in found for one in pod.all}
        self.uids |= {pod["metadata"]["uid"] for pod in pods}
        return found

    def whole(self, like: list[tuple[int, ...]] | None = None) -> list[tuple[int, ...]]:
        """Ranks, listening sockets and shared memories of each pod, once it serves with as many of each as `like`."""
        pods, live = self.deployment.pods(), self.deployment.ready_pods()
        assert len(pods) == len(live) == self.deployment.get()["spec"]["parallelism"].get("nodes", 1), "pods"
        found = [(len(pod.ranks), pod.listening(), pod.segments()) for pod in self.look()]
        assert like in (None, found), f"{found}, and not {like}"
        assert self.answers(), "no answer"
        return found

    def answers(self) -> bool:
        """Whether a request gets its answer; proxies of Services hear of a pod that is ready after the fact."""
        body = {"model": "m", "prompt": "One, two,", "max_tokens": 1}
        try:
            return httpx.post(f"{self.url}/v1/completions", json=body, timeout=ANSWER_SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    def strike(self, what: str, how: signal.Signals | str) -> list[psutil.Process]:
        """Returns all ranks that there were."""
        leader, *others = pods = self.look()
        if what.startswith("pod "):
            pod = pods[int(what.removeprefix("pod "))]
        else:
            pod = self.draw.choice(others) if what.startswith("a follower") else leader
        if how == "deleted":
            self.cluster.delete("pods", self.deployment.namespace, pod.pod["metadata"]["name"])
        else:
            part = what.rpartition(" ")[2]
            if part in ("server", "agent"):
                target = pod.server
            else:
                target = self.draw.choice(pod.ranks[1:]) if what == "another rank" else pod.ranks[0]
            assert target is not None
            target.send_signal(how)
        return [rank for pod in pods for rank in pod.ranks]


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.parametrize(
    ("kinds", "times", "parallelism"),
    [
        (ONE_POD, BLOWS, {"tensor": 3}), (GROUP, BLOWS, {"tensor": 3, "nodes": 3}),
        (EACH_POD, len(EACH_POD), {"tensor": 3, "nodes": 3}),
    ],
    ids=["one pod", "three pods", "each of three pods"],
)  # fmt: skip
def test_a_replica_comes_back_from_any_blow(scene: Scene, kinds: Any, times: int, parallelism: dict[str, int]) -> None:
    deployment = scene.deploy(
        model={"servedName": "m"}, parallelism=parallelism, accelerator={"resource": "cpu", "memory": "700Mi"},
        serving={"hangTimeout": "3s"}, pod={"cpu": "1" if kinds is ONE_POD else "100m"},
    )  # fmt: skip
    deployment.ready()
    own = scene.cluster.get("services", deployment.namespace, deployment.name) or {"spec": {}}
    assert own["spec"].get("publishNotReadyAddresses"), "its only pod has a 503 for requests while it is not ready"
    url = scene.url(deployment, selector=leaders(deployment), unready=True)
    struck = Struck(scene, deployment, url)
    if not any(pod.all for pod in struck.look()):
        pytest.skip("the node's processes are not this machine's")
    usual = eventually(struck.whole, SOON, "it answers")
    clients = Clients(struck.url, 0)
    try:
        blows = (kinds * -(-times // len(kinds)))[:times]
        for what, how, cuts in struck.draw.sample(blows, len(blows)):
            time.sleep(struck.draw.uniform(0.1, PAUSE_SECONDS))
            # Of a group that ends by itself another blow would say nothing.
            eventually(lambda: struck.whole(usual), BACK_SECONDS, "it is whole")
            ends, began = Counter(clients.ends), time.monotonic()
            old = struck.strike(what, how)
            eventually(lambda: not any(map(lives, old)), BACK_SECONDS, f"{what} {how}: ranks are gone", 0.02)  # noqa: B023
            gone = time.monotonic() - began
            eventually(lambda: struck.whole(usual), BACK_SECONDS, f"{what} {how}: it is back", 0.2)
            back = time.monotonic() - began
            row = {"what": what, "how": getattr(how, "name", how), "gone": round(gone, 1), "back": round(back, 1),
                   "cuts": cuts, "ends": dict(Counter(clients.ends) - ends)}  # fmt: skip
            struck.rows.append(row)
            print(row, flush=True)
            scene.result.note(blows=struck.rows, summary=summary(struck.rows))
    finally:
        clients.close()
    deployment.delete()
    eventually(lambda: not any(map(lives, struck.seen)), SERVING, "all processes are gone")
    eventually(lambda: not mounts(struck.uids), SOON, "and all their mounts")
    scene.result.note(processes=len(struck.seen), requests=dict(clients.ends))
    bad = [row for row in struck.rows if _went_wrong(row)]
    assert not bad, bad


def _went_wrong(row: dict[str, Any]) -> bool:
    """A connection is refused while the leader has no server: its container or its pod is being made again."""
    lost = [end for end in row["ends"] if end.startswith("LOST")]
    late = row["gone"] > GONE_SECONDS and row["how"] != "deleted" and "server" not in row["what"]
    return late or bool(lost and not row["cuts"])


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A line of each kind: times, seconds until ranks were gone and until it was back (median, most), requests."""
    found = []
    for what, how in sorted({(row["what"], row["how"]) for row in rows}):
        mine = [row for row in rows if (row["what"], row["how"]) == (what, how)]
        times = [[row[key] for row in mine] for key in ("gone", "back")]
        parts = [f"{statistics.median(each):.1f}, {max(each):.1f}" for each in times]
        ends = sum((Counter(row["ends"]) for row in mine), Counter[str]())
        found.append(f"| {how} of {what} | {len(mine)} | {parts[0]} | {parts[1]} | {dict(ends)} |")
    return found
