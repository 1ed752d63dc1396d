"""Whatever happens between the operator and the API server, and to the operator itself, the end is the same.

Each run is one life of a few deployments, seen through a proxy that makes trouble; then the proxy goes calm, and what
the cluster holds must be what a life without trouble leaves. A hundred lives on played nodes: `-m long`.
`test_operator_process.py` has a few on the control plane alone.
"""

import copy
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import Cluster, eventually
from e2e.deployments import ModelDeployment
from e2e.differences import differences
from e2e.operators import LocalOperator
from e2e.played import claim, manifest, needs_played_nodes, record, unclaim
from e2e.proxy import FaultyProxy
from e2e.results import Result
from plimsoll.checkpoint.inspecting import inspect_source

LIVES = 100
#: Of requests that go wrong while there is trouble.
RATE = 0.38
#: With all its retries, while more than every third request goes wrong.
PATIENCE = 150.0
KINDS = ("modeldeployments", "replicasets", "services", "poddisruptionbudgets", "networkpolicies", "pods", "configmaps")
_OUTER = {"uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "generateName", "selfLink"}

pytestmark = [pytest.mark.long, pytest.mark.alone]


@pytest.fixture
def bring_up(
    cluster: Cluster, namespace: str, tmp_path: Path, model_file: Path
) -> Iterator[Callable[[int | None], tuple[LocalOperator, FaultyProxy]]]:
    """Starts an operator behind a proxy; seed None: one that makes no trouble."""
    needs_played_nodes(cluster)
    record(cluster, namespace, inspect_source(f"file://{model_file}"))
    claim(cluster, namespace)

    def start(seed: int | None) -> tuple[LocalOperator, FaultyProxy]:
        proxy = FaultyProxy(seed or 0)
        proxy.rate = 0.0 if seed is None else RATE
        settings = {"namespaces": [namespace], "operatorNamespace": namespace, "leaseName": "faults", "workers": 4}
        operator = LocalOperator(tmp_path, settings)
        operator.environment["KUBECONFIG"] = str(proxy.kubeconfig(tmp_path))
        operator.start()
        return operator, proxy

    yield start
    unclaim(cluster, namespace)


class Killer:
    """Ends the operator with SIGKILL at random moments of a life, if its seed says so."""

    def __init__(self, operator: LocalOperator, seed: int | None) -> None:
        self.operator, self.random = operator, random.Random(f"killer {seed}")
        self.left = 0 if seed is None or seed % 3 else self.random.randint(1, 2)
        self.killed = 0

    def maybe(self) -> None:
        """Called between two steps of a life."""
        if self.left and self.random.random() < 0.5:
            self.left -= 1
            self.killed += 1
            time.sleep(self.random.uniform(0.0, 1.5))
            self.operator.kill()
            time.sleep(self.random.uniform(0.0, 1.0))
            self.operator.start()


def live(cluster: Cluster, namespace: str, killer: Killer, chaos: random.Random) -> None:
    """Three come, one changes, one grows, one more is refused, one goes."""

    def pause() -> None:
        time.sleep(chaos.uniform(0.0, 2.0))
        killer.maybe()

    cluster.apply(manifest(namespace, "changes"), manifest(namespace, "grows", replicas=2), manifest(namespace, "goes"))
    for name in ("changes", "grows", "goes"):
        ModelDeployment(cluster, namespace, name).ready(PATIENCE)
        killer.maybe()
    ModelDeployment(cluster, namespace, "changes").patch(context={"maxLength": 512})
    pause()
    ModelDeployment(cluster, namespace, "grows").patch(replicas=3)
    pause()
    cluster.apply(manifest(namespace, "refused", accelerator={"memory": "100Mi"}))
    pause()
    ModelDeployment(cluster, namespace, "goes").delete()
    pause()


def picture(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """All that is there, without times, versions, and what is drawn by lot."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for item in cluster.find(kind, namespace):
            about, name = item["metadata"], _plain(item["metadata"]["name"], namespace)
            if kind == "configmaps" and "plimsoll" not in name:
                continue
            if kind == "pods":
                name = re.sub(r"-[a-z0-9]{5}$", "", name)
                owner = about["ownerReferences"][0]["name"]
                kept: Any = {"deleting": "deletionTimestamp" in about, "labels": about["labels"], "of": owner}
            else:
                meta = {key: value for key, value in about.items() if key not in _OUTER}
                for one in meta.get("ownerReferences", []):
                    one.pop("uid")
                kept = {"metadata": meta, "spec": item.get("spec"), "data": item.get("data")}
            if kind == "modeldeployments":
                kept["status"] = _observed_by_all(item.get("status"))
                kept["metadata"].pop("annotations", None)
            if kind == "services":
                for key in ("clusterIP", "clusterIPs"):
                    kept["spec"].pop(key)
            found.setdefault(f"{kind}/{name}", []).append(json.loads(_plain(json.dumps(kept), namespace)))
    return found


def _plain(text: str, namespace: str) -> str:
    return re.sub(
        r"(plimsoll-(?:source|inspect)-|plimsoll.dev/source\": \")[0-9a-f]{16}",
        r"\1KEY",
        text.replace(namespace, "HERE"),
    )


def _observed_by_all(status: Any) -> Any:
    """Without times, and without what status pages say: whether something answers for a played pod differs by place."""
    found = {k: v for k, v in copy.deepcopy(status or {}).items() if k not in ("load", "observed", "startup")}
    for condition in found.get("conditions", ()):
        condition.pop("lastTransitionTime")
    return found


def settle(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Waits until nothing has changed for a while and everybody has what was wished for."""
    names = ("changes", "grows")

    def quiet() -> dict[str, Any]:
        for name in names:
            deployment = ModelDeployment(cluster, namespace, name)
            ready, progressing = deployment.condition("Ready"), deployment.condition("Progressing")
            assert (ready or {}).get("status") == "True", deployment.words()
            assert (progressing or {}).get("status") == "False", deployment.words()
            assert deployment.status["phase"] == "Ready", deployment.words()
        refused = ModelDeployment(cluster, namespace, "refused")
        assert (refused.condition("Accepted") or {}).get("status") == "False", refused.words()
        before = picture(cluster, namespace)
        # A garbage collector that has just begun takes its time.
        assert not [key for key in before if "goes" in key], "what was deleted has not gone"
        time.sleep(4.0)
        after = picture(cluster, namespace)
        assert before == after, "things still move"
        leaving = [key for key, items in after.items() if any(item.get("deleting") for item in items)]
        assert not leaving, f"what was deleted has not gone: {leaving}"
        return after

    return eventually(quiet, PATIENCE, "everything has settled")


def told(cluster: Cluster, namespace: str) -> dict[str, int]:
    """Events of the operator: how often each was told. One object for each, whatever happened."""
    counts: dict[str, int] = {}
    for event in cluster.find("events", namespace):
        if event["source"].get("component") != "plimsoll-operator":
            continue
        what = f"{event['involvedObject']['name']} {event['reason']}: {_plain(event['message'], namespace)}"
        assert what not in counts, f"two events say the same: {what}"
        counts[what] = event.get("count", 1)
    return counts


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, Any]:
    """What a life without trouble leaves, once one has been lived."""
    return {}


def test_a_life_without_trouble_leaves_what_was_wished_for(
    cluster: Cluster, namespace: str, bring_up: Any, undisturbed: dict[str, Any], result: Result
) -> None:
    operator, proxy = bring_up(None)
    try:
        live(cluster, namespace, Killer(operator, None), random.Random(0))
        found = settle(cluster, namespace)
    finally:
        operator.stop()
        proxy.close()
    undisturbed.update(found)
    assert {key: len(found[key]) for key in found if key.startswith("pods/")} == {
        key: count for key, count in _pods(found).items() if count
    }
    assert sum(_pods(found).values()) == 4
    assert not any("goes" in key for key in found)
    events = told(cluster, namespace)
    # Serving is told once when it comes and once after the change.
    assert max(events.values()) <= 2, events
    result.note(objects=sum(len(items) for items in found.values()), events=len(events))


def _pods(found: dict[str, Any]) -> dict[str, int]:
    """Replicas that the ReplicaSets want, by the name that their pods have."""
    return {
        key.replace("replicasets/", "pods/"): items[0]["spec"]["replicas"]
        for key, items in found.items()
        if key.startswith("replicasets/")
    }


@pytest.mark.parametrize("seed", range(LIVES))
def test_whatever_happens_on_the_way_the_end_is_the_same(
    seed: int, cluster: Cluster, namespace: str, bring_up: Any, undisturbed: dict[str, Any], result: Result
) -> None:
    if not undisturbed:
        pytest.skip("the life without trouble has to be lived first: run the whole file")
    operator, proxy = bring_up(seed)
    killer = Killer(operator, seed)
    try:
        live(cluster, namespace, killer, random.Random(seed))
        proxy.rate = 0.0
        calm = time.monotonic()

        def same() -> bool:
            assert not (found := differences(undisturbed, picture(cluster, namespace))), found
            return True

        eventually(same, PATIENCE, "the same is there as without trouble")
        result.note(troubles=dict(proxy.faults), killed=killer.killed, settled=round(time.monotonic() - calm, 1))
        time.sleep(4.0)
        assert same(), "and stays"
        assert operator.healthy()
    finally:
        operator.stop()
        proxy.close()
        if sys.exc_info()[0]:
            result.note(log=operator.log().splitlines()[-200:])
    events = told(cluster, namespace)
    assert max(events.values()) <= 4, events
    assert "this is a bug" not in operator.log()
