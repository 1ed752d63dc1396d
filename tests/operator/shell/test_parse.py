"""Real objects to the snapshot's values, and anything at all without an exception."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.api.shard import MOST_RANKS
from plimsoll.operator import names, parse
from plimsoll.operator.parse_page import page_of
from plimsoll.operator.snapshot import Failure, Page

Real = Callable[[str], dict[str, Any]]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_a_pod_that_serves(real: Real) -> None:
    raw = real("pod_ready")
    pod = parse.pod(raw)
    assert (pod.name, pod.uid, pod.ip) == (raw["metadata"]["name"], raw["metadata"]["uid"], raw["status"]["podIP"])
    assert (pod.phase, pod.ready, pod.deleting, pod.node) == ("Running", True, False, "node-1")
    assert pod.revision == raw["metadata"]["labels"][names.REVISION]
    assert pod.owner == raw["metadata"]["ownerReferences"][0]["uid"]
    (server,) = pod.containers
    assert (server.name, server.state, server.restarts, server.init) == ("server", "running", 0, False)
    assert pod.created > 1.7e9


def test_a_pod_in_trouble_quotes_its_container(real: Real) -> None:
    raw = real("pod_ready")
    raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:02:30Z"
    raw["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
    raw["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    ]
    raw["status"]["containerStatuses"][0] |= {
        "restartCount": 4,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "the last words"}},
    }
    pod = parse.pod(raw)
    assert (pod.ready, pod.deleting, pod.unschedulable) == (False, True, "0/3 nodes are available")
    assert pod.message == "Evicted: The node was low on memory."
    assert pod.ends_by == parse.timestamp("2026-01-01T00:02:30Z"), "the API server counts the grace period in"
    server = pod.containers[0]
    assert (server.state, server.reason, server.restarts) == ("waiting", "CrashLoopBackOff", 4)
    assert (server.last_reason, server.last_message, server.last_exit_code) == ("OOMKilled", "the last words", 137)
    assert parse.last_words(pod) == "the last words"


def test_when_a_pod_ended_is_the_last_time_in_its_status(real: Real) -> None:
    raw = real("pod_ready")
    assert (parse.pod(raw).ends_by, parse.pod(raw).ended_at) == (0.0, 0.0)
    raw["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
    raw["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T05:00:00Z"},
    ]
    raw["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 137}}
    assert parse.pod(raw).ended_at == parse.timestamp("2026-01-01T05:00:00Z")
    raw["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2026-01-01T05:00:03Z"
    assert parse.pod(raw).ended_at == parse.timestamp("2026-01-01T05:00:03Z")
    raw["status"] = {"phase": "Failed", "reason": "Evicted"}
    assert parse.pod(raw).ended_at == 0.0


def test_a_revision_reads_back_what_was_written_on_it(real: Real) -> None:
    raw = real("replica_set")
    found = parse.replica_set(raw)
    assert (found.number, found.proven, found.failure, found.blocked) == (1, True, None, None)
    assert found.replicas == raw["spec"]["replicas"]
    assert found.spec["model"]["source"].startswith("pvc://")
    failure = Failure("CrashLoop", "pod a: it says “no”", 1790000000.5)
    raw["metadata"]["annotations"][names.FAILED] = parse.failure_text(failure)
    raw["status"]["conditions"] = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
    again = parse.replica_set(raw)
    assert (again.failure, again.blocked) == (failure, "exceeded quota")


def test_hand_written_annotations_are_taken_with_care(real: Real) -> None:
    raw = real("replica_set")
    raw["metadata"]["annotations"] |= {names.NUMBER: "many", names.FAILED: "I say so", names.SPEC: "[1]"}
    found = parse.replica_set(raw)
    assert (found.number, found.spec) == (0, {})
    assert found.failure == Failure("Failed", "I say so", 0.0)


def test_only_ready_pods_of_a_slice_get_requests(real: Real) -> None:
    raw = real("endpoint_slice")
    uid = raw["endpoints"][0]["targetRef"]["uid"]
    assert parse.ready_endpoints(raw) == {uid}
    raw["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    assert parse.ready_endpoints(raw) == frozenset()


def test_a_node_as_the_planner_counts_it(real: Real) -> None:
    raw = real("node")
    node = parse.node(raw)
    assert (node.name, node.usable, node.taints, node.image_volumes) == ("node-1", True, (), False)
    assert node.allocatable["cpu"] == 2000
    assert node.allocatable["nvidia.com/gpu"] == 8
    assert node.allocatable["memory"] > 1 << 30
    raw["spec"] |= {"unschedulable": True, "taints": [{"key": "gpu", "effect": "NoSchedule"}]}
    raw["status"]["nodeInfo"]["containerRuntimeVersion"] = "containerd://2.1.4-k3s1"
    cordoned = parse.node(raw)
    assert (cordoned.usable, cordoned.cordoned, cordoned.image_volumes) == (False, True, True)
    assert cordoned.taints == ({"key": "gpu", "value": "", "effect": "NoSchedule"},)


@pytest.mark.parametrize(
    ("runtime", "can"),
    [("containerd://2.0.9", False), ("containerd://2.1.0", True), ("cri-o://1.31.0", True), ("cri-o://1.30.9", False),
     ("docker://29.1", False), ("", False), ("containerd://edge", False)],
)  # fmt: skip
def test_which_runtimes_mount_images(real: Real, runtime: str, can: bool) -> None:
    raw = real("node")
    raw["status"]["nodeInfo"]["containerRuntimeVersion"] = runtime
    assert parse.node(raw).image_volumes is can


def test_a_record_is_read_and_a_damaged_one_is_none(real: Real) -> None:
    raw = real("record")
    found = parse.inspection(raw["data"].values())
    assert found is not None
    assert found.bytes == 98362432
    assert parse.inspection([value[:-9] for value in raw["data"].values()]) is None
    assert parse.inspection(["Traceback", None]) is None


PAGE = {"phase": "loading", "startup": {"load": {"bytes": 5, "total": 9, "seconds": 1.0}}, "running": 1}


def test_a_page_moves_when_its_bytes_or_its_phase_do() -> None:
    first = page_of(PAGE, 10.0, None)
    assert first is not None
    assert (first.phase, first.moved_at, first.running) == ("loading", 10.0, 1)
    same = page_of({**PAGE, "running": 2}, 20.0, first)
    assert same is not None
    assert (same.running, same.moved_at) == (2, 10.0)
    further = page_of({**PAGE, "startup": {"load": {"bytes": 6}}}, 30.0, same)
    assert further is not None
    assert further.moved_at == 30.0


def test_a_page_shows_what_each_rank_holds() -> None:
    ranks = [{"rank": 0, "weights": 7, "peak": 9}, {"rank": 1, "weights": -1, "kvCache": "many"}, None]
    read = page_of({**PAGE, "ranks": ranks}, 1.0, None)
    assert read is not None
    assert read.ranks == ({"rank": 0, "weights": 7, "peak": 9}, {"rank": 1}, {})
    many = page_of({**PAGE, "ranks": [{}] * 1000}, 1.0, None)
    assert many is not None
    assert len(many.ranks) == MOST_RANKS


def test_a_page_shows_how_a_pod_computes_in_bounded_words() -> None:
    said = {"deterministic": True, "kernels": "native-avx2", "digest": "sha256:" + "a" * 64}
    read = page_of({**PAGE, "serving": said}, 1.0, None)
    assert read is not None
    assert read.serving == said
    long = page_of({**PAGE, "serving": {**said, "kernels": "x" * 9999, "reason": 5, "more": "y"}}, 1.0, None)
    assert long is not None
    assert long.serving == {**said, "kernels": "x" * 64}
    for odd in (None, [], {}, {"deterministic": "yes", "kernels": "native"}):
        none = page_of({**PAGE, "serving": odd}, 1.0, None)
        assert none is not None
        assert none.serving == {}


def test_a_page_shows_how_far_each_rank_has_loaded() -> None:
    ranks = [{"rank": 0, "bytes": 7, "total": 9, "seconds": 1.5, "more": 1}, {"rank": 1, "bytes": -1}, None]
    read = page_of({**PAGE, "startup": {"load": {"bytes": 7}, "ranks": ranks}}, 1.0, None)
    assert read is not None
    assert read.startup == {"load": {"bytes": 7}}
    assert read.rank_loads == ({"rank": 0, "bytes": 7, "total": 9, "seconds": 1.5}, {"rank": 1}, {})


@pytest.mark.parametrize("odd", [None, [], "ready", {}, {"phase": "resting"}, {"phase": None}])
def test_what_is_no_page_is_none(odd: Any) -> None:
    assert page_of(odd, 1.0, None) is None


@settings(deadline=None)
@given(JSON, JSON, JSON, JSON, JSON)
def test_a_page_of_anything_is_a_page(startup: Any, observed: Any, running: Any, usage: Any, waiting: Any) -> None:
    data = {"phase": "ready", "startup": startup, "observed": observed, "running": running, "cacheUsage": usage}
    data["ranks"] = [observed, startup]
    data["serving"] = {"deterministic": running, "kernels": observed, "digest": startup, "reason": usage}
    read = page_of({**data, "waiting": waiting}, 1.0, None)
    assert isinstance(read, Page)
    assert all(isinstance(amount, int) and amount >= 0 for rank in read.ranks for amount in rank.values())
    assert 0.0 <= read.cache_usage <= 1.0
    assert read.running >= 0
    assert page_of({**data, "waiting": waiting}, 2.0, read) == read


def test_objects_without_anything_in_them_are_read() -> None:
    for reader in (parse.pod, parse.replica_set, parse.node, parse.deployment, parse.ready_endpoints):
        reader({})  # type: ignore[operator]
        reader({"metadata": None, "spec": None, "status": None})  # type: ignore[operator]


def test_what_changes_with_every_write_is_left_out(real: Real) -> None:
    raw = real("replica_set")
    assert "managedFields" in raw["metadata"]
    slim = parse.trimmed(raw)
    assert "managedFields" not in slim["metadata"]
    assert slim["spec"] == raw["spec"]
    assert len(json.dumps(slim)) < len(json.dumps(raw))


@pytest.mark.parametrize("text", ["", None, "yesterday", "2026-13-01T00:00:00Z"])
def test_no_time_is_zero(text: str | None) -> None:
    assert parse.timestamp(text) == 0.0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"perDevice": {"total": 1024}}', True), ('{"perDevice": {}}', False), ('{"perDevice": 7}', False),
        ('{"a": 1}', False), ("[]", False), ("not JSON", False), ("", False),
    ],
)  # fmt: skip
def test_a_budget_that_somebody_wrote_over_is_none(text: str, kept: bool) -> None:
    raw = {"metadata": {"name": "a", "annotations": {names.BUDGET: text}}, "spec": {}}
    assert bool(parse.replica_set(raw).budget) is kept
