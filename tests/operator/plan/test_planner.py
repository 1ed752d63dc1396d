"""The planner against a cluster in miniature."""

import json
from dataclasses import replace
from typing import Any

import pytest

from plimsoll.api.manifest import parse_spec
from plimsoll.operator import build, shape
from plimsoll.operator.actions import Apply, MarkFailed, Plan
from plimsoll.operator.plan import plan
from plimsoll.operator.plan.capacity import room_for
from plimsoll.operator.plan.conditions import timestamp
from plimsoll.operator.plan.devices import device_memory
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Node, Page, Pod
from tests.support.miniature import GIB, Cluster, inspection, spec

CUDA = Settings(cuda_runtime_image="runtime:cuda")


def test_from_nothing_to_ready_by_way_of_an_inspection() -> None:
    cluster = Cluster()
    first = cluster.act()
    assert [a.object["kind"] for a in first.actions if isinstance(a, Apply)] == ["NetworkPolicy", "Pod"]
    assert cluster.status["phase"] == "Inspecting"
    assert not cluster.sets
    cluster.settle()
    assert cluster.recorded
    assert cluster.inspector is None
    assert cluster.status["phase"] == "Ready"
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.status["budget"]["precision"] == "bfloat16"
    assert cluster.status["endpoint"] == "http://demo.ns:8000/v1"
    assert {"Service", "PodDisruptionBudget", "NetworkPolicy"} <= {kind for kind, _ in cluster.children}


def test_an_unchanged_cluster_is_left_alone() -> None:
    cluster = Cluster()
    cluster.settle()
    writes = cluster.writes
    for _ in range(50):
        cluster.now += 60
        cluster.act()
    assert cluster.writes == writes


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"accelerator": {"resource": "cpu", "memory": "300Mi"}}, "DoesNotFit", "needs"),
        ({"model": {"source": "file:///models"}}, "InvalidSpec", "spec.model.source"),
        ({"kvCache": {"ratio": 2}}, "InvalidSpec", "spec.kvCache.ratio"),
        ({"kvCash": {}}, "InvalidSpec", "kvCache"),
        ({"precision": "float16"}, "NotSupported", "spec.precision"),
        ({"parallelism": {"tensor": 64}}, "InvalidSpec", "spec.parallelism.tensor"),
        ({"context": {"maxLength": 100000}}, "InvalidSpec", "spec.context.maxLength"),
    ],
)
def test_a_refusal_says_why_and_starts_nothing(changes: dict[str, Any], reason: str, words: str) -> None:
    cluster = Cluster(spec=spec(**changes))
    cluster.settle()
    accepted = cluster.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", reason)
    assert words in accepted["message"]
    assert cluster.status["phase"] == "Refused"
    assert cluster.condition("Stalled")["status"] == "True"
    assert not cluster.sets
    writes = cluster.writes
    cluster.settle(20)
    assert cluster.writes == writes


def test_a_source_outside_the_allow_list_is_refused_before_any_pod() -> None:
    cluster = Cluster(settings=Settings(allowed_sources=("hf://our-org/*",)))
    assert not cluster.act().actions
    assert cluster.condition("Accepted")["reason"] == "SourceNotAllowed"


def test_a_source_that_cannot_be_read_is_quoted_and_tried_again() -> None:
    cluster = Cluster(found=None)
    for _ in range(10):
        cluster.act()
        cluster.others_move()
    assert "no such claim" in cluster.condition("SourceReady")["message"]
    looks = 0
    since = cluster.condition("SourceReady")["lastTransitionTime"]
    for _ in range(600):
        looks += any(isinstance(action, Apply) for action in cluster.act().actions)
        cluster.others_move()
    assert 3 <= looks <= 15
    assert cluster.condition("SourceReady")["lastTransitionTime"] == since
    cluster.found = inspection()
    cluster.settle(700)
    assert cluster.status["phase"] == "Ready"


def test_what_served_goes_on_when_a_change_is_refused() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.change(accelerator={"resource": "cpu", "memory": "300Mi"})
    cluster.settle()
    assert cluster.condition("Accepted")["reason"] == "DoesNotFit"
    assert sum(pod.ready for pod in cluster.pods) == 1
    assert cluster.condition("Ready")["status"] == "False"
    assert "goes on serving" in cluster.condition("Ready")["message"]


def test_a_bad_revision_stops_and_its_own_words_are_quoted() -> None:
    cluster = Cluster()
    cluster.settle()
    good = cluster.pods[0].revision
    cluster.change(context={"maxLength": 1024})
    cluster.bad = {build.revision(cluster.spec)}
    cluster.settle()
    assert "the checkpoint is damaged" in cluster.condition("Degraded")["message"]
    assert cluster.condition("Progressing")["reason"] == "RolloutFailed"
    assert [(pod.revision, pod.ready) for pod in cluster.pods] == [(good, True)]
    cluster.change(context={})
    cluster.settle()
    assert cluster.status["phase"] == "Ready"
    assert cluster.condition("Degraded")["status"] == "False"
    assert all(one.failure is None for one in cluster.sets.values())


def test_a_revision_tried_again_after_a_revert_is_forgiven() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.change(context={"maxLength": 1024})
    cluster.bad = {build.revision(cluster.spec)}
    cluster.settle()
    cluster.change(context={})
    cluster.settle()
    cluster.bad = set()
    cluster.change(context={"maxLength": 1024})
    cluster.settle()
    assert cluster.status["phase"] == "Ready"


def test_another_operator_version_leaves_templates_alone() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.version = "2"
    cluster.settings = Settings(runtime_image="plimsoll.dev/runtime:newer")
    before = dict(cluster.children)
    pods = list(cluster.pods)
    cluster.settle()
    sets = {key: value for key, value in cluster.children.items() if key[0] == "ReplicaSet"}
    assert sets == {key: value for key, value in before.items() if key[0] == "ReplicaSet"}
    assert cluster.pods == pods
    cluster.change(replicas=2)
    cluster.settle()
    assert [one.replicas for one in cluster.sets.values()] == [2]


def test_what_is_inspected_or_sized_anew_reaches_no_revision_that_is_there() -> None:
    cluster = Cluster(spec=spec(accelerator={"resource": "cpu"}))
    cluster.settle()
    before = [one for (kind, _), one in cluster.children.items() if kind == "ReplicaSet"]
    cluster.found = replace(inspection(), revision="another-commit")
    cluster.nodes = (Node("n1", allocatable={"cpu": 8000, "memory": 12 * GIB, "pods": 110}),)
    cluster.settle()
    assert [one for (kind, _), one in cluster.children.items() if kind == "ReplicaSet"] == before
    assert cluster.status["source"]["revision"] == "main", "what is served"
    assert "another-commit" in cluster.condition("SourceReady")["message"]
    assert "goes on serving" in cluster.condition("SourceReady")["message"]
    old = {pod.name for pod in cluster.pods}
    cluster.change(context={"maxLength": 1024})
    cluster.bad = {build.revision(cluster.spec)}
    cluster.settle()
    assert cluster.status["source"]["revision"] == "main", "the new revision failed, and the old one serves"
    assert {pod.name for pod in cluster.pods} == old
    cluster.bad = set()
    cluster.change(context={"maxLength": 2048})
    cluster.settle()
    assert cluster.status["source"]["revision"] == "another-commit"
    assert "goes on serving" not in cluster.condition("SourceReady")["message"]


def test_a_changed_setting_reaches_no_revision_that_is_there() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.settings = Settings(runtime_image="plimsoll.dev/runtime:typo")
    writes = cluster.writes
    cluster.settle()
    assert cluster.writes == writes


def test_an_only_pod_gets_requests_before_it_is_ready_and_one_of_several_never_does() -> None:
    cluster = Cluster()
    published: set[tuple[int, bool]] = set()

    def settle() -> bool:
        for choice in range(80):
            cluster.act()
            service = cluster.children.get(("Service", "demo"))
            if service:
                wanted = sum(one.replicas for one in cluster.sets.values())
                published.add((max(wanted, len(cluster.pods)), "publishNotReadyAddresses" in service["spec"]))
            cluster.others_move(choice)
        assert cluster.status["phase"] == "Ready", cluster.status
        return bool(service and "publishNotReadyAddresses" in service["spec"])

    assert settle()
    cluster.change(context={"maxLength": 1024}, rollout={"strategy": "Surge"})
    assert settle()
    cluster.change(replicas=2)
    assert not settle()
    writes = cluster.writes
    assert not settle()
    assert cluster.writes == writes, "what is as it should be is not written again"
    assert published == {(0, True), (1, True), (2, False)} or published == {(1, True), (2, False)}, published
    cluster.change(replicas=1)
    assert settle()


def test_an_only_pod_on_a_lost_node_gets_no_requests() -> None:
    cluster = Cluster(nodes=(Node("n1", allocatable={"memory": 8 * GIB, "cpu": 8000, "pods": 10}),))
    cluster.settle()
    cluster.pods = [replace(pod, node="n1") for pod in cluster.pods]
    cluster.act()
    published = "publishNotReadyAddresses"
    assert published in cluster.children[("Service", "demo")]["spec"]
    cluster.nodes = (replace(cluster.nodes[0], usable=False, not_ready="NodeStatusUnknown", not_ready_at=cluster.now),)
    cluster.act()
    assert published not in cluster.children[("Service", "demo")]["spec"]


def test_what_others_change_of_ours_is_put_back_and_what_they_add_is_left() -> None:
    cluster = Cluster()
    cluster.settle()
    service = json.loads(json.dumps(cluster.children[("Service", "demo")]))
    service["spec"]["ports"][0]["port"] = 81
    service["metadata"]["labels"]["team"] = "blue"
    cluster.children[("Service", "demo")] = service
    assert [a.object["kind"] for a in cluster.look().actions if isinstance(a, Apply)] == ["Service"]
    service["spec"]["ports"][0]["port"] = 8000
    assert not cluster.look().actions
    del cluster.children[("PodDisruptionBudget", "demo")]
    assert [a.object["kind"] for a in cluster.act().actions if isinstance(a, Apply)] == ["PodDisruptionBudget"]
    name, one = next(iter(cluster.sets.items()))
    cluster.sets[name] = replace(one, replicas=7)
    live = dict(cluster.children[("ReplicaSet", name)])
    cluster.children[("ReplicaSet", name)] = {**live, "spec": {**live["spec"], "replicas": 7}}
    cluster.act()
    assert cluster.sets[name].replicas == 1


def test_history_is_kept_short() -> None:
    cluster = Cluster()
    for length in range(1024, 1024 + 15 * 64, 64):
        cluster.change(context={"maxLength": length})
        cluster.settle(12)
    cluster.settle()
    assert len(cluster.sets) == 11
    assert max(one.number for one in cluster.sets.values()) == 15


def test_a_deployment_on_its_way_out_gets_nothing_new() -> None:
    cluster = Cluster()
    cluster.settle()
    snapshot = cluster.snapshot()
    going = replace(snapshot, deployment=replace(snapshot.deployment, deleting=True), children={}, replica_sets=())
    assert plan(going, Settings(), "1") == Plan()


def test_a_loading_pod_that_moves_is_never_given_up_and_one_that_does_not_is() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.change(context={"maxLength": 1024})
    cluster.act()
    new = build.revision(cluster.spec)
    for moved, failed in ((500.0, False), (700.0, True)):
        at = cluster.now
        owner = f"uid-demo-{new}"
        page = Page(at - moved, "loading", {"load": {"bytes": 5, "total": 10, "seconds": 1.0}})
        slow = Pod("slow", revision=new, owner=owner, node="n1", created=at - 5000, phase="Running", page=page)
        cluster.pods = [pod for pod in cluster.pods if pod.revision != new] + [slow]
        found = cluster.look()
        assert any(isinstance(action, MarkFailed) for action in found.actions) is failed
    assert "700 s" in json.dumps(found.status)


def test_memory_comes_from_the_nodes_where_the_manifest_names_none() -> None:
    labels = {"pool": "gpu", "nvidia.com/gpu.memory": "16384"}
    node = Node("g1", labels=labels, allocatable={"nvidia.com/gpu": 1, "cpu": 8000, "memory": 64 * GIB, "pods": 99})
    cluster = Cluster(settings=CUDA, spec=spec(accelerator={"resource": "nvidia.com/gpu"}), nodes=(node,))
    cluster.settle()
    assert cluster.status["budget"]["perDevice"]["total"] == 16 * GIB
    bare = replace(node, labels={"nvidia.com/gpu.product": "NVIDIA-L4"})
    cluster = Cluster(settings=CUDA, spec=spec(accelerator={"resource": "nvidia.com/gpu"}), nodes=(bare,))
    cluster.settle()
    assert cluster.status["budget"]["perDevice"]["total"] == 22 * GIB
    closed = Node(
        "control-plane", taints=({"key": "closed", "value": "", "effect": "NoSchedule"},), allocatable={"memory": GIB}
    )
    open_ = Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 99})
    for nodes, pod, where in (
        ((closed, open_), {}, "n1"),
        ((closed, open_), {"tolerations": [{"key": "closed", "operator": "Exists"}]}, "n1"),
        ((closed,), {}, "control-plane"),
    ):
        memory = device_memory(parse_spec(spec(accelerator={"resource": "cpu"}, pod=pod)), nodes)
        assert f"node {where}" in memory.where
    cluster = Cluster(
        settings=CUDA, spec=spec(accelerator={"resource": "nvidia.com/gpu"}, pod={"nodeSelector": {"pool": "x"}})
    )
    cluster.settle()
    assert cluster.condition("Accepted")["reason"] == "MemoryUnknown"
    assert "pool=x" in cluster.condition("Accepted")["message"]


def test_a_label_that_no_node_has_is_named() -> None:
    cluster = Cluster(spec=spec(pod={"nodeSelector": {"pool": "fast"}}), devices=0)
    cluster.settle(20)
    ready = cluster.condition("Ready")
    assert ready["reason"] == "Unschedulable"
    assert "no node has the label pool=fast" in ready["message"]


def test_a_cordoned_node_gets_a_second_replica_before_the_first_may_go() -> None:
    here = Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110})
    cluster = Cluster(nodes=(here, replace(here, name="n2")))
    cluster.settle()
    cluster.nodes = (replace(here, usable=False), replace(here, name="n2"))
    assert not cluster.act().actions, "a node that flaps moves nothing"
    cluster.nodes = (replace(here, usable=False, cordoned=True), replace(here, name="n2"))
    cluster.act()
    assert [one.replicas for one in cluster.sets.values()] == [2]
    pdb = cluster.children[("PodDisruptionBudget", "demo")]
    assert pdb["spec"]["minAvailable"] == 1
    cluster.nodes = (replace(here, usable=False, cordoned=True),)
    cluster.devices = 1
    cluster.pods = cluster.pods[:1]
    cluster.act()
    assert cluster.children[("PodDisruptionBudget", "demo")]["spec"]["minAvailable"] == 0


def test_room_counts_what_free_nodes_would_take() -> None:
    cluster = Cluster(spec=spec(pod={"cpu": "2"}))
    cluster.settle()
    (template,) = (one["spec"]["template"] for (kind, _), one in cluster.children.items() if kind == "ReplicaSet")
    assert cluster.nodes is not None
    assert room_for(cluster.nodes, {}, template) == 4
    used = {"n1": {"cpu": 5000, "memory": 0, "pods": 1}}
    assert room_for(cluster.nodes, used, template) == 1


def test_a_new_leader_that_has_read_no_page_yet_writes_nothing_anew() -> None:
    cluster = Cluster(spec=spec(replicas=2))
    cluster.settle()
    page = Page(1.0, "ready", {"load": {"seconds": 2.0}}, {"peak": 5}, running=3)
    cluster.pods = [replace(cluster.pods[0], page=page), replace(cluster.pods[1], page=replace(page, running=1))]
    cluster.act()
    before = cluster.status
    assert before["observed"] == {"peak": 5}
    assert before["load"]["runningRequests"] == 4
    known = cluster.pods
    for read in ((), (0,), (1,)):
        cluster.pods = [
            pod if index in read else replace(pod, page=None, unread=True) for index, pod in enumerate(known)
        ]
        assert cluster.act().status == before
    cluster.pods = [replace(pod, page=None) for pod in known]
    found = cluster.act().status
    assert "observed" not in found, "nobody answers: what is not observed is not said"
    assert "load" not in found


def test_scaling_to_zero_is_no_trouble() -> None:
    cluster = Cluster()
    cluster.settle()
    cluster.change(replicas=0)
    cluster.settle()
    assert cluster.status["phase"] == "Stopped"
    assert not cluster.pods


@pytest.mark.parametrize("fewer", [True, False])
def test_phase_and_progress_say_the_same_while_a_pod_drains(fewer: bool) -> None:
    cluster = Cluster(spec=spec(replicas=2 if fewer else 1))
    cluster.settle()
    cluster.change(**({"replicas": 1} if fewer else {"context": {"maxLength": 1024}}))
    cluster.draining = True
    for _ in range(60):
        cluster.act()
        cluster.others_move()
        done = cluster.status["phase"] == "Ready"
        assert (cluster.condition("Progressing")["status"] == "False") is done, cluster.status
    assert done
    assert any(pod.deleting for pod in cluster.pods)


def test_timestamps_round_trip() -> None:
    assert shape.timestamp(timestamp(1_700_000_000.4)) == 1_700_000_000
