"""What clusters do to pods, to the operator and to the API server, under traffic: none of its requests fails."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.cluster import SERVING, SOON, RefusedError, eventually
from e2e.deployments import ModelDeployment, settled
from e2e.scene import Scene
from e2e.test_rollouts import watched
from e2e.traffic import traffic

Serve = Callable[..., tuple[ModelDeployment, str]]
BUILT_BY = "plimsoll.dev/built-by"


def _pods(deployment: ModelDeployment) -> str:
    return ", ".join(sorted(pod["metadata"]["name"] for pod in deployment.pods()))


@pytest.mark.alone
def test_drain_with_the_disruption_budget_fails_no_request(scene: Scene, serving: Serve) -> None:
    # One node may be all there is: it is cordoned, one pod may be evicted and the budget refuses the other, until the
    # node takes pods again and the replacement serves. `kubectl drain` goes on asking all the while.
    deployment, url = serving(replicas=2)
    before = deployment.identities()
    node = deployment.pods()[0]["spec"]["nodeName"]
    here = {p["metadata"]["uid"] for p in deployment.pods() if p["spec"]["nodeName"] == node}
    command = ["kubectl", "drain", node, f"--pod-selector={deployment.selector}", "--delete-emptydir-data"]
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        report.mark(f"drain {node}: {_pods(deployment)}")
        with subprocess.Popen(
            [*command, "--timeout=300s"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as drain:
            try:
                eventually(lambda: before - deployment.identities(), SOON, "a pod was evicted")
                report.mark("one was evicted")
                report.more(2)
                scene.cluster.kubectl("uncordon", node)
                report.mark("uncordoned")
                words, _ = drain.communicate(timeout=SERVING)
            finally:
                drain.kill()
                scene.cluster.kubectl("uncordon", node)
        assert drain.returncode == 0, words
        report.mark("drained")
        settled(deployment, 2, SERVING)
        deployment.ready()
        report.more(2)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest, drain=words)
    scene.result.note(words=f"fewest serving {seen.fewest}, refused by the budget {words.count('Cannot evict')} times")
    report.assert_none_failed()
    assert not here & deployment.identities()
    assert seen.fewest >= 1


def test_the_operator_killed_in_a_rollout_goes_on_where_it_was(scene: Scene, serving: Serve) -> None:
    deployment, url = serving(replicas=2)
    before = deployment.identities()
    with traffic(url, deployment.name) as report, watched(deployment) as seen:
        deployment.patch(serving={"maxRunningRequests": 16})
        eventually(lambda: deployment.identities() - before, SOON, "the rollout has begun")
        scene.operator.kill()
        report.mark("operator killed")
        report.more(4)
        scene.operator.start()
        report.mark("operator started")
        deployment.ready()
        settled(deployment, 2, SERVING)
        report.mark("settled")
        report.more(2)
    scene.result.note(traffic=report.figures(), fewestServing=seen.fewest, words=f"fewest serving {seen.fewest}")
    report.assert_none_failed()
    assert not before & deployment.identities()
    assert seen.fewest >= 1


def test_upgrading_the_operator_restarts_no_pod(scene: Scene, serving: Serve) -> None:
    deployment, url = serving()
    before = deployment.identities()
    [first] = deployment.replica_sets()
    with traffic(url, deployment.name) as report:
        scene.operator.upgrade()
        report.mark("another version leads")
        scene.cluster.kubectl("scale", f"mdep/{deployment.name}", "-n", scene.namespace, "--replicas=2")
        settled(deployment, 2, SERVING)
        deployment.ready()
        report.mark("it has scaled")
        report.more(2)
    scene.result.note(traffic=report.figures())
    report.assert_none_failed()
    [second] = deployment.replica_sets()
    assert before <= deployment.identities()
    assert deployment.restarts() == 0
    assert second["spec"]["template"] == first["spec"]["template"]
    assert second["metadata"]["annotations"][BUILT_BY] == first["metadata"]["annotations"][BUILT_BY]


@pytest.mark.alone
def test_the_api_server_restarted_in_a_rollout_fails_no_request(scene: Scene, serving: Serve) -> None:
    command = os.environ.get("PLIMSOLL_E2E_RESTART_API_SERVER")
    if not command:
        pytest.skip("PLIMSOLL_E2E_RESTART_API_SERVER names no command")
    deployment, url = serving(replicas=2)
    before = deployment.identities()
    with traffic(url, deployment.name) as report:
        deployment.patch(serving={"maxRunningRequests": 16})
        eventually(lambda: deployment.identities() - before, SOON, "the rollout has begun")
        report.mark("the API server is ended")
        began = time.monotonic()
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        report.mark(f"the API server is back after {time.monotonic() - began:.0f} s")
        eventually(lambda: _answers(scene), SERVING, "the API server answers")
        deployment.ready()
        settled(deployment, 2, SERVING)
        report.mark("settled")
        report.more(2)
    scene.result.note(traffic=report.figures())
    report.assert_none_failed()
    assert not before & deployment.identities()


def _answers(scene: Scene) -> bool:
    try:
        return bool(scene.cluster.nodes())
    except (RefusedError, OSError):
        return False
    except Exception as error:
        raise AssertionError(str(error)) from None


def test_a_killed_pod_fails_its_own_requests_and_no_other(scene: Scene, serving: Serve) -> None:
    deployment, url = serving(replicas=2)
    survivor, victim = deployment.pods()
    # A Service of the survivor alone tells its requests from the killed pod's; it goes on serving for the deployment.
    label = {"metadata": {"labels": {"e2e/role": "survivor"}}}
    scene.cluster.patch("pods", scene.namespace, survivor["metadata"]["name"], label)
    others_url = scene.url(deployment, name="survivor", selector={"e2e/role": "survivor"})
    with traffic(others_url, deployment.name) as others, traffic(url, deployment.name) as shared:
        killed = shared.mark("one of two pods is killed")
        _kill(victim["metadata"]["uid"])
        eventually(lambda: deployment.routable() == 1, SOON, "the killed pod leaves the Service", every=0.1)
        left = shared.mark("it has left the Service")
        eventually(lambda: deployment.restarts() >= 1, SOON, "the kubelet starts its container again")
        named = "server exited with 137 (SIGKILL"
        eventually(lambda: named in deployment.get()["status"]["message"], SOON, "the status says how it ended", 0.1)
        settled(deployment, 2, SERVING)
        deployment.ready()
        shared.mark("it serves again")
        shared.more(2)
        others.more(2)
    scene.result.note(traffic=others.figures(), shared=shared.figures())
    scene.result.note(words=f"shared by both: {len(shared.failed)} of {shared.requests}, gone in {left - killed:.1f} s")
    others.assert_none_failed()
    # Node proxies hear of it a moment after the API server does.
    late = [failure for failure in shared.failed if failure.ended < killed or failure.began > left + 2]
    assert not late, shared.words()


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_engine_that_ends_or_hangs_costs_only_streams_that_had_begun(
    scene: Scene, serving: Serve, harm: signal.Signals
) -> None:
    deployment, url = serving(replicas=2, serving={"hangTimeout": "6s"})
    victim = deployment.pods()[0]["metadata"]["uid"]
    with traffic(url, deployment.name) as report:
        harmed = report.mark(f"{harm.name} to one of two engines")
        _signal(_engines(victim), harm)
        eventually(lambda: deployment.routable() == 1, SOON, "its pod leaves the Service", every=0.1)
        left = report.mark("it has left the Service")
        settled(deployment, 2, SERVING)
        report.mark("it serves again")
        report.more(2)
    scene.result.note(traffic=report.figures())
    scene.result.note(words=f"{len(report.failed)} of {report.requests} failed, gone in {left - harmed:.1f} s")
    # Of a late answer, and not of a 503, a pod is taken out after half a minute.
    assert left - harmed < 20
    assert deployment.restarts() == 0
    assert all(failure.kind == "stream" for failure in report.failed), report.words()
    assert len(report.failed) <= 1, report.words()


def _engines(uid: str) -> list[int]:
    """Ids of the engine processes of a pod."""
    module = b"plimsoll.runtime.engine.transport.process"
    return [process for process in _processes(uid) if module in Path(f"/proc/{process}/cmdline").read_bytes()]


def _kill(uid: str) -> None:
    """SIGKILL to all processes of a pod."""
    _signal(_processes(uid), signal.SIGKILL)


def _signal(processes: list[int], number: signal.Signals) -> None:
    if not processes:
        pytest.skip("the node's processes are not to be seen from here, so none can be killed")
    try:
        for process in processes:
            os.kill(process, number)
    except PermissionError:
        pytest.skip("the node's processes belong to somebody else, so none can be killed")


def _processes(uid: str) -> list[int]:
    """Ids of a pod's processes, where this machine is its node; the one that holds its namespaces is left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if uid in (folder / "cgroup").read_text().replace("_", "-"):
                command = (folder / "cmdline").read_bytes().split(b"\0")
                if any(b"plimsoll" in word for word in command):
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.long
def test_the_operator_stopped_and_started_again_and_again_changes_nothing(scene: Scene, serving: Serve) -> None:
    deployment, url = serving()
    before, version = deployment.identities(), deployment.get()["metadata"]["resourceVersion"]
    with traffic(url, deployment.name) as report:
        for how in (scene.operator.stop, scene.operator.kill, scene.operator.stop):
            how()
            scene.operator.start()
            report.more(2)
    scene.result.note(traffic=report.figures(), words=shlex.join(sorted(before)))
    report.assert_none_failed()
    assert deployment.identities() == before
    after = deployment.get()["metadata"]["resourceVersion"]
    scene.result.note(statusWritten=after != version)
