"""Replicas over several pods: a StatefulSet each, on the cluster's own controllers."""

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import openai
import pytest

from e2e.bare import Start
from e2e.cluster import SERVING, SOON, Cluster, Object, eventually, is_true
from e2e.deployments import COMPONENT, DEPLOYMENT, ModelDeployment, settled
from e2e.played import claim, manifest, record, unclaim
from e2e.results import Result
from e2e.scene import Scene
from e2e.test_rollouts import watched
from e2e.traffic import traffic
from plimsoll.checkpoint.inspecting import inspect_source

GROUP, INDEX = "plimsoll.dev/group", "apps.kubernetes.io/pod-index"
POOL = "plimsoll.dev/e2e-pool"
TWO = {"tensor": 2, "nodes": 2}
#: Small enough that the pods of two groups and a spare one run on two cores.
SMALL = {"accelerator": {"resource": "cpu", "memory": "716Mi"}}
EXACT = {"accelerator": {"resource": "cpu", "memory": "1Gi"}, "precision": "float32"}


class Pool:
    """Nodes of the test's own, each of which takes one pod. The test plays their kubelets, and the engine: pods of a
    group are ready while all of it is on nodes that live."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace, self.alive = cluster, namespace, list[str]()
        self.lost: list[str] = []
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def start(self, count: int) -> None:
        self._thread.start()
        for _ in range(count):
            self.add()

    def add(self) -> None:
        name = f"{self.namespace[-4:]}-{len(self.alive) + len(self.lost)}"
        amounts = {"cpu": "1", "memory": "64Gi", "pods": "10"}
        meta = {"name": name, "labels": {"kubernetes.io/hostname": name, POOL: self.namespace}}
        body = {"metadata": meta, "status": {"capacity": amounts, "allocatable": amounts}}
        self.cluster.api("POST", "/api/v1/nodes", body)
        self.alive.append(name)

        def usable() -> bool:
            node = self.cluster.get("nodes", "", name)
            return node is not None and not node["spec"].get("taints")

        eventually(usable, SOON, f"{name} takes pods")

    def lose(self, name: str) -> None:
        """Its kubelet says nothing more: the control plane notices."""
        self.alive.remove(name)
        self.lost.append(name)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            try:
                self.beat()
                self.play()
            except Exception:
                continue  # what changes while it is looked at is looked at again

    def beat(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        for name in list(self.alive):
            path = f"/api/v1/nodes/{name}/status"
            self.cluster.api("PATCH", path, {"status": {"conditions": [ready]}}, kind="strategic-merge-patch")

    def play(self) -> None:
        pods = self.cluster.find("pods", self.namespace, labelSelector=f"{COMPONENT}=server")
        whole = Counter(pod["metadata"]["labels"][GROUP] for pod in pods if pod["spec"].get("nodeName") in self.alive)
        for at, pod in enumerate(pods):
            path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}"
            if pod["spec"].get("nodeName") not in self.alive:
                continue
            if "deletionTimestamp" in pod["metadata"]:
                self.cluster.api("DELETE", path, {"gracePeriodSeconds": 0})
                continue
            serves = whole[pod["metadata"]["labels"][GROUP]] == TWO["nodes"]
            if serves == is_true(pod["status"].get("conditions", []), "Ready"):
                continue
            address = pod["status"].get("podIP") or f"198.18.126.{at + 1}"
            status = {
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": str(serves)}],
            }  # fmt: skip
            self.cluster.api("PATCH", f"{path}/status", {"status": status}, kind="strategic-merge-patch")

    def remove(self) -> None:
        self._stop.set()
        self._thread.join(SOON)
        here = ("-n", self.namespace, "--all")
        self.cluster.kubectl("delete", "modeldeployments,statefulsets,replicasets", *here)
        self.cluster.kubectl("delete", "pods", *here, "--grace-period=0", "--force")
        for name in (*self.alive, *self.lost):
            self.cluster.delete("nodes", "", name)


@pytest.fixture
def pool(cluster: Cluster, namespace: str, model_file: Path) -> Iterator[Pool]:
    """Three nodes, the demo model's record and a claim."""
    record(cluster, namespace, inspect_source(f"file://{model_file}"))
    claim(cluster, namespace)
    made = Pool(cluster, namespace)
    try:
        made.start(3)
        yield made
    finally:
        made.remove()
        unclaim(cluster, namespace)


def by_group(deployment: ModelDeployment, ending: bool = False) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for pod in deployment.pods(ending=ending):
        found.setdefault(pod["metadata"]["labels"][GROUP], []).append(pod)
    return found


def placed(pods: list[Object]) -> int:
    return sum("nodeName" in pod["spec"] for pod in pods)


@pytest.mark.cluster_wide
def test_groups_are_placed_whole_and_a_lost_node_s_group_is_made_anew_elsewhere(
    cluster: Cluster, namespace: str, pool: Pool, start: Start, result: Result
) -> None:
    start()
    wish = {"parallelism": TWO, "accelerator": {"resource": "cpu", "memory": "716Mi"}, "replicas": 2}
    pod = {"cpu": "700m", "nodeSelector": {"type": None, POOL: namespace}}
    cluster.apply(manifest(namespace, "spread", **wish, pod=pod))
    deployment = ModelDeployment(cluster, namespace, "spread")

    # Three nodes, and four pods: one group is whole, and of the other no pod takes what a third would need.
    eventually(lambda: deployment.status.get("ready") == "1/2", SOON, "one group serves")
    waits = deployment.wait("Ready", "False", reason="Unschedulable", seconds=SOON)
    assert "of group spread-" in waits["message"], waits
    assert sorted(map(placed, by_group(deployment).values())) == [1, 2]
    assert deployment.routable() == 1, "only the leader is behind the Service"
    pool.add()
    deployment.ready(SOON)
    assert [placed(pods) for pods in by_group(deployment).values()] == [2, 2]
    sets = cluster.find("statefulsets", namespace)
    assert {one["spec"]["podManagementPolicy"] for one in sets} == {"Parallel"}
    deployment.patch(replicas=1)
    eventually(lambda: len(by_group(deployment)) == 1, SOON, "one group is left")
    deployment.ready(SOON)

    # The node of the follower is lost; the leader says at once that its group is not whole.
    [(old, pods)] = by_group(deployment).items()
    follower = next(pod for pod in pods if pod["metadata"]["labels"][INDEX] == "1")
    began = time.monotonic()
    pool.lose(follower["spec"]["nodeName"])

    def elsewhere() -> bool:
        found = by_group(deployment)
        return old not in found and [len(pods) for pods in found.values()] == [2]

    eventually(elsewhere, SOON, "a new group is there, and the old one goes")
    deployment.ready(SOON)
    seconds = time.monotonic() - began
    events = cluster.kubectl("get", "events", "-n", namespace, "-o", "jsonpath={.items[*].message}")
    assert f"pod {follower['metadata']['name']} of group {old}: its node" in events
    held = [pod for pod in deployment.pods(ending=True) if pod["metadata"]["labels"][GROUP] == old]
    result.note(seconds=round(seconds, 1), held=[pod["metadata"]["name"] for pod in held])
    assert deployment.status["replicas"] >= 1
    assert cluster.get("statefulsets", namespace, old) is None


def leaders(deployment: ModelDeployment) -> dict[str, str]:
    return {DEPLOYMENT: deployment.name, COMPONENT: "server", INDEX: "0"}


def answer(client: openai.OpenAI, name: str) -> str:
    question = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    found = client.chat.completions.create(model=name, messages=question, max_tokens=24, temperature=0)  # type: ignore[call-overload]
    return str(found.choices[0].message.content)


def test_a_group_of_three_pods_answers_as_one_pod_does(scene: Scene) -> None:
    single = scene.deploy("one", **EXACT, pod={"cpu": "100m"})
    single.ready()
    one = openai.OpenAI(base_url=f"{scene.url(single)}/v1", api_key="none", max_retries=0)
    said = answer(one, "one")
    assert "Paris" in said
    single.delete()
    spread = {"tensor": 3, "nodes": 3}
    group = scene.deploy("three", **EXACT, parallelism=spread, pod={"cpu": "100m"})
    group.ready()
    three = openai.OpenAI(base_url=f"{scene.url(group, selector=leaders(group))}/v1", api_key="none", max_retries=0)
    assert answer(three, "three") == said
    assert len(group.pods()) == 3
    assert (group.status["replicas"], group.status["readyReplicas"]) == (1, 1)
    observed = eventually(lambda: (group.status.get("observed") or {}).get("ranks"), 60, "ranks are measured")
    assert [rank["rank"] for rank in observed] == [0, 1, 2]
    [revision] = group.replica_sets()
    for pod in group.pods():
        words = str(pod)
        assert revision["metadata"]["name"] in words
    scene.result.note(words=f"{said!r}", observed=observed)


def test_traffic_through_a_rollout_a_lost_follower_and_a_restarted_operator(scene: Scene) -> None:
    deployment = scene.deploy(**SMALL, parallelism=TWO, replicas=2, pod={"cpu": "50m"})
    deployment.ready()
    url = scene.url(deployment, selector=leaders(deployment))
    eventually(lambda: deployment.routable() == 2, SOON, "two leaders behind the Service")
    before = deployment.identities()
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        scene.operator.stop()
        report.mark("operator ended")
        report.more(2)
        scene.operator.start()
        report.mark("operator started")
        report.more(2)
        assert deployment.identities() == before
        deployment.patch(serving={"maxRunningRequests": 16})
        report.mark("spec changed")
        deployment.ready()
        settled(deployment, 4, SERVING)
        report.mark("rolled out")
        report.more(2)
        follower = next(pod for pod in deployment.pods() if pod["metadata"]["labels"][INDEX] == "1")
        name = follower["metadata"]["name"]
        report.mark(f"{name} deleted")
        scene.cluster.kubectl("delete", "pod", name, "-n", scene.namespace)
        settled(deployment, 4, SERVING)
        deployment.ready()
        report.more(2)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest)
    report.assert_none_failed()
    assert not before & deployment.identities()
    assert seen.fewest >= 1


@pytest.mark.alone
def test_a_drain_of_a_group_s_pods_fails_no_request(scene: Scene) -> None:
    # All pods may be on one node, which then takes pods again as soon as the first has left it.
    deployment = scene.deploy(**SMALL, parallelism=TWO, replicas=2, pod={"cpu": "50m"})
    deployment.ready()
    url = scene.url(deployment, selector=leaders(deployment))
    eventually(lambda: deployment.routable() == 2, SOON, "two leaders behind the Service")
    before = deployment.identities()
    node = deployment.pods()[0]["spec"]["nodeName"]
    command = ["kubectl", "drain", node, f"--pod-selector={deployment.selector}", "--delete-emptydir-data"]
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        report.mark(f"drain {node}")
        with subprocess.Popen(
            [*command, "--timeout=400s"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as drain:
            try:
                eventually(lambda: before - deployment.identities(), SOON, "a pod was evicted")
                report.mark("one was evicted")
                scene.cluster.kubectl("uncordon", node)
                words, _ = drain.communicate(timeout=400)
            finally:
                drain.kill()
                scene.cluster.kubectl("uncordon", node)
        assert drain.returncode == 0, words
        report.mark("drained")
        settled(deployment, 4, SERVING)
        deployment.ready()
        report.more(2)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest)
    report.assert_none_failed()
    assert not before & deployment.identities()
    assert seen.fewest >= 1
