"""The operator process and the API server: leases, outages, lies, and what it costs to be idle."""

import os
import random
import re
import time
from pathlib import Path
from typing import Any

from e2e.bare import CHILDREN, Deployment, Start, ready
from e2e.cluster import PATHS, SOON, Cluster, RefusedError, eventually
from e2e.differences import differences
from e2e.operators import LocalOperator
from e2e.proxy import FaultyProxy
from e2e.results import Result
from plimsoll.operator import names

RUNS = int(os.environ.get("PLIMSOLL_E2E_FAULT_RUNS", "3"))
LEASE = "/apis/coordination.k8s.io/v1/namespaces/{}/leases/plimsoll-operator"


def holder(cluster: Cluster, namespace: str) -> str:
    try:
        return str(cluster.api("GET", LEASE.format(namespace))["spec"].get("holderIdentity") or "")
    except RefusedError:
        return ""


def metric(operator: LocalOperator, name: str) -> float:
    """The sum over a metric's labels."""
    lines = [line for line in operator.metrics().splitlines() if re.match(rf"{name}[ {{]", line)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def every_watch_refused(proxy: FaultyProxy, *kinds: str) -> None:
    """Returns once the watches of these kinds were begun anew and met a 410."""

    def look() -> bool:
        assert not (left := [kind for kind in kinds if not proxy.refused[kind]]), left
        return True

    eventually(look, SOON, "every watch has met a 410", every=0.05)


def test_one_of_two_operators_writes_and_the_other_takes_over(
    start: Start, deployment: Deployment, cluster: Cluster, namespace: str, result: Result
) -> None:
    operators = [start(), start()]
    eventually(lambda: all(ready(one) for one in operators), SOON, "both are ready")
    eventually(lambda: sum(metric(one, "plimsoll_leader") for one in operators) == 1, SOON, "one leads")
    leader, follower = sorted(operators, key=lambda one: -metric(one, "plimsoll_leader"))
    deployment.apply()
    eventually(deployment.all_there, SOON, "the leader has made everything")
    assert metric(follower, "plimsoll_writes_total") == 0
    begun = time.monotonic()
    leader.kill()
    deployment.apply(replicas=1)
    eventually(deployment.seen, SOON, "the follower has taken over")
    crash = time.monotonic() - begun
    third = start()
    eventually(lambda: ready(third), SOON, "the third is ready")
    begun = time.monotonic()
    follower.stop()
    ended = time.monotonic() - begun
    deployment.apply(replicas=2)
    eventually(deployment.seen, SOON, "the third has taken over")
    handed = time.monotonic() - begun
    result.note(words=f"after SIGKILL {crash:.1f} s, after SIGTERM {handed:.1f} s; it ended in {ended:.1f} s")
    assert ended < 5
    assert handed < crash


def test_it_waits_for_its_kind_and_says_so(
    start: Start, proxy: FaultyProxy, deployment: Deployment, result: Result
) -> None:
    proxy.hidden = "plimsoll.dev"
    operator = start(proxy)
    eventually(lambda: "apply crds/" in operator.log(), SOON, "it says what is missing")
    assert not ready(operator)
    deployment.apply()
    proxy.hidden = ""
    eventually(deployment.all_there, SOON, "it goes on by itself")


def test_what_an_outage_hid_is_found_out(
    start: Start, proxy: FaultyProxy, deployment: Deployment, cluster: Cluster, namespace: str, result: Result
) -> None:
    operator = start(proxy)
    deployment.apply()
    eventually(deployment.all_there, SOON, "everything is there")
    with proxy.away():
        # Watches start again with a list, and a list does not tell of what is gone.
        proxy.gone = True
        cluster.delete("services", namespace, "a")
        cluster.delete("networkpolicies", namespace, "a")
        deployment.apply(replicas=1)
        eventually(lambda: metric(operator, "plimsoll_leader") == 0, SOON, "it has stopped to lead")
    every_watch_refused(proxy, "modeldeployments", *CHILDREN)
    proxy.gone = False
    begun = time.monotonic()
    eventually(lambda: deployment.all_there() and cluster.find("networkpolicies", namespace), SOON, "all put back")
    result.note(words=f"{time.monotonic() - begun:.1f} s after the outage")
    assert operator.healthy()


def test_one_made_anew_while_nobody_watched_has_no_history(
    start: Start, proxy: FaultyProxy, deployment: Deployment, result: Result
) -> None:
    start(proxy)
    deployment.apply()
    eventually(deployment.all_there, SOON, "a first revision")
    deployment.apply(serving={"maxRunningRequests": 16})
    eventually(lambda: deployment.all_there(2), SOON, "a second revision")
    with proxy.away():
        # Not so long that the lease is lost: what the new list shows is acted upon at once, whatever it hides.
        proxy.gone = True
        deployment.delete()
        deployment.apply()
    every_watch_refused(proxy, "modeldeployments", *CHILDREN)
    proxy.gone = False
    eventually(deployment.all_there, SOON, "made anew")
    numbers = [one["metadata"]["annotations"][names.NUMBER] for one in deployment.sets()]
    assert numbers == ["1"]


def test_a_watch_that_tells_nonsense_is_begun_anew(
    start: Start, proxy: FaultyProxy, deployment: Deployment, cluster: Cluster, namespace: str, result: Result
) -> None:
    operator = start(proxy)
    deployment.apply()
    eventually(deployment.all_there, SOON, "everything is there")
    proxy.nonsense = True
    deployment.apply(replicas=1)
    eventually(lambda: "will watch again" in operator.log(), SOON, "it has noticed")
    proxy.nonsense = False
    begun = time.monotonic()
    cluster.delete("services", namespace, "a")
    eventually(deployment.all_there, SOON, "it goes on")
    eventually(lambda: ready(operator), SOON, "it is ready")
    result.note(words=f"{time.monotonic() - begun:.1f} s until all was put back")


def test_an_idle_operator_writes_nothing_but_its_lease(
    start: Start, deployment: Deployment, cluster: Cluster, namespace: str, result: Result
) -> None:
    operator = start()
    deployment.apply(replicas=1)
    eventually(deployment.all_there, SOON, "everything is there")
    assert operator.process is not None
    time.sleep(8.0)
    versions, writes = _versions(cluster, namespace), metric(operator, "plimsoll_writes_total")
    cpu = _cpu_seconds(operator.process.pid)
    time.sleep(30.0)
    assert _versions(cluster, namespace) == versions
    assert metric(operator, "plimsoll_writes_total") == writes
    share = (_cpu_seconds(operator.process.pid) - cpu) / 30
    resident = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{operator.process.pid}/status").read_text())[0]) / 1024
    result.note(words=f"{resident:.0f} MiB resident, {share:.1%} of a core", resident=resident, cpu=share)
    assert resident < 200


def _versions(cluster: Cluster, namespace: str) -> dict[str, str]:
    kinds = (*CHILDREN, "modeldeployments", "configmaps", "events", "pods")
    found = [one for kind in kinds if kind in PATHS for one in cluster.find(kind, namespace)]
    return {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in found}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _through(
    cluster: Cluster, namespace: str, deployment: Deployment, chance: random.Random | None, patience: float
) -> dict[str, Any]:
    """One history: made, changed, robbed of children, changed back, scaled. Returns where it ends."""

    def rest() -> None:
        if chance is not None:
            time.sleep(chance.uniform(0.0, 0.5))

    deployment.apply()
    eventually(deployment.all_there, patience, "made")
    rest()
    deployment.apply(serving={"maxRunningRequests": 16})
    eventually(lambda: deployment.all_there(2), patience, "a second revision")
    rest()
    for kind in ("services", "poddisruptionbudgets", "networkpolicies"):
        cluster.delete(kind, namespace, "a")
    cluster.patch("replicasets", namespace, deployment.sets()[0]["metadata"]["name"], {"spec": {"replicas": 1}})
    rest()
    deployment.apply()
    eventually(lambda: deployment.all_there(2), patience, "back, and put back")
    deployment.apply(replicas=1)
    eventually(lambda: deployment.all_there(2) and len(cluster.find("pods", namespace)) == 1, patience, "scaled")
    eventually(lambda: "nodes are available" in deployment.get()["status"]["message"], patience, "why it waits")
    return deployment.end_state()


def _ends_like(deployment: Deployment, first: dict[str, Any], which: str) -> None:
    def same() -> bool:
        assert not (found := differences(first, deployment.end_state())), found
        return True

    eventually(same, SOON, f"{which} ends like the first")


def test_faults_between_operator_and_api_server_change_nothing_in_the_end(
    start: Start, proxy: FaultyProxy, deployment: Deployment, cluster: Cluster, namespace: str, result: Result
) -> None:
    operator = start(proxy)
    first: dict[str, Any] = {}
    seconds = []
    for run in range(RUNS + 1):
        proxy.rate = 0.0 if run == 0 else (0.05, 0.2, 0.4)[run % 3]
        begun = time.monotonic()
        found = _through(cluster, namespace, deployment, random.Random(run) if run else None, 2 * SOON)
        proxy.rate = 0.0
        first = first or found
        _ends_like(deployment, first, f"run {run}")
        seconds.append(time.monotonic() - begun)
        deployment.delete()
    faults = sum(proxy.faults.values())
    result.note(faults=dict(proxy.faults), runs=RUNS, slowest=max(seconds))
    result.note(words=f"{RUNS} runs with {faults} faults, slowest {max(seconds):.0f} s, {seconds[0]:.0f} s without")
    assert operator.healthy()
    assert '"this is a bug"' not in operator.log()
    assert len(proxy.faults) >= min(3, RUNS)
