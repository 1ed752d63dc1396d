"""Objects that anybody may have written: each harms itself alone, and none keeps the operator from starting."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.operator import kinds, names, parse, parse_jobs, shape
from plimsoll.operator.cluster import Cluster, decode
from plimsoll.operator.kinds import Kind
from plimsoll.operator.main import source_key
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.parse_page import page_of
from plimsoll.operator.plan import next_plan
from plimsoll.operator.settings import Settings
from plimsoll.operator.verify import Verifier
from plimsoll.operator.waiting import last_told
from plimsoll.operator.watch_cache import Cache

Json = dict[str, Any]
NAMESPACE = "op-shell"
DEEP = '{"a":' * 3000 + "1" + "}" * 3000
#: What was found in the wild, or tried by reviewers, in the place of anything.
VALUES: list[Any] = [
    None, True, 5, -1, 0.5, 1e300, 10**30, "", "x", "9" * 5000, "٣", "\x00", [], [5], [None, [{}]], {}, {"a": 5},
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", {"type": ["Ready"], "status": {}}, [{"type": {}}],
    DEEP, "[" * 3000, '{"at":"0001-01-01T00:00:00+14:00"}', '{"at":1e300,"reason":5,"message":[]}', '{"at":NaN}',
    '{"reason":"\\ud800 x"}', '{"perDevice":{"total":-1}}', '{"perDevice":{"total":"1Gi"},"rejected":5}',
    '{"uri":5,"digest":{},"revision":[],"bytes":"x"}', "plimsoll-inspection/1 xyz", "plimsoll-inspection/1 ",
]  # fmt: skip
QUANTIZATION = {
    "apiVersion": "plimsoll.dev/v1alpha1", "kind": "QuantizationJob",
    "metadata": {"name": "q", "namespace": NAMESPACE, "uid": "uid-q", "resourceVersion": "5", "generation": 1},
    "spec": {"model": {"source": "pvc://claim/model"}, "method": "awq", "output": "pvc://claim/out"},
    "status": {"phase": "Running", "progress": {"percent": 5}, "output": {"uri": "pvc://claim/out", "digest": "d"},
               "conditions": [{"type": "Complete", "status": "True", "reason": "Passed", "message": ""}]},
}  # fmt: skip
JOB = {
    "apiVersion": "batch/v1", "kind": "Job", "spec": {"suspend": False},
    "metadata": {"name": "q-1", "namespace": NAMESPACE, "uid": "uid-j", "resourceVersion": "6",
                 "labels": {names.JOB: "q", names.MANAGED_BY: names.MANAGER}},
    "status": {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
}  # fmt: skip
NODE = {
    "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "uid-n", "resourceVersion": "7", "labels": {}},
    "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
    "status": {"allocatable": {"cpu": "4"}, "conditions": [{"type": "Ready", "status": "True"}],
               "nodeInfo": {"containerRuntimeVersion": "containerd://2.1.4"}},
}  # fmt: skip
#: On a ReplicaSet by us, and by anybody who may write one.
NOTES = (names.NUMBER, names.BUILT_BY, names.SPEC, names.BUDGET, names.INSPECTED, names.OUTPUT, names.FAILED,
         names.PROVEN)  # fmt: skip


@pytest.fixture(scope="module")
def objects() -> list[tuple[Kind, Json]]:
    """One of each kind, as a cluster gave it, all of one deployment or job."""
    from tests.operator.shell.conftest import OBJECTS

    found = {
        "deployment": kinds.DEPLOYMENT, "replica_set": kinds.REPLICA_SET, "pod_ready": kinds.POD,
        "endpoint_slice": kinds.ENDPOINT_SLICE, "record": kinds.CONFIG_MAP,
    }  # fmt: skip
    read = [(kind, json.loads((OBJECTS / f"{name}.json").read_text())) for name, kind in found.items()]
    for note in NOTES:
        read[1][1]["metadata"]["annotations"].setdefault(note, "true")
    return [*read, (kinds.QUANTIZATION, QUANTIZATION), (kinds.JOB, JOB), (kinds.NODE, NODE)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into an object but to what finds it: those the API server itself sees to."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if (*path, key) not in {("metadata", "name"), ("metadata", "namespace"), ("metadata", "uid"), ("kind",)}:
            yield from places(one, (*path, key))


def with_value(raw: Json, path: tuple[Any, ...], value: Any) -> Json:
    made: Any = copy.deepcopy(raw)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if path[0] == "metadata" and len(path) == 1:
        made["metadata"] = {**shape.mapping(value), **{k: raw["metadata"].get(k) for k in ("name", "namespace", "uid")}}
    return dict(made)


def world(objects: list[tuple[Kind, Json]], hostile: Json | None = None) -> Cache:
    cache = Cache(lambda key: None, source_key)
    cache.sees_nodes = True
    for kind, raw in objects:
        replaced = hostile is not None and hostile["kind"] == kind.name
        cache.seen(kind, None, hostile if replaced and hostile else raw)
    bystander = copy.deepcopy(objects[0][1])
    bystander["metadata"] |= {"name": "bystander", "uid": "uid-bystander"}
    cache.seen(kinds.DEPLOYMENT, None, bystander)
    return cache


def look_at_everything(cache: Cache) -> None:
    for key in cache.every():
        snapshot = cache.snapshot(key, 1_790_000_000.0)
        if snapshot is not None:
            plan = next_plan(snapshot, Settings(), "0.1.0")
            msgspec.json.encode(plan.status)
    cache.targets()
    cache.inspected()
    cache.unused_policies()
    cache.phases()
    cache.phases(kinds.QUANTIZATION)


def test_any_value_in_any_place_of_any_object_is_lived_with(objects: list[tuple[Kind, Json]]) -> None:
    chance = random.Random(14)
    for kind, raw in objects:
        everywhere = list(places(raw))
        notes = [("metadata", "annotations", note) for note in NOTES] if kind is kinds.REPLICA_SET else []
        for path in [*chance.sample(everywhere, min(6, len(everywhere))), *notes]:
            for value in VALUES if path in notes else chance.sample(VALUES, 4):
                hostile = with_value(raw, path, value)
                with structlog.testing.capture_logs() as logs:
                    cache = world(objects, hostile)
                    look_at_everything(cache)
                assert (NAMESPACE, "bystander") in cache.every()
                assert not logs, (kind.name, path, value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
OBJECT = st.fixed_dictionaries(
    {},
    optional={
        "metadata": JSON, "spec": JSON, "status": JSON, "data": JSON, "endpoints": JSON, "kind": JSON, "type": JSON,
        "message": JSON, "series": JSON, "phase": st.just("loading") | JSON, "startup": JSON, "observed": JSON,
    },
)  # fmt: skip
PARSERS: list[Callable[[Json], Any]] = [
    parse.deployment, parse.replica_set, parse.pod, parse.node, parse.ready_endpoints, parse_jobs.batch_job,
    parse_jobs.quantizing, parse_jobs.output_place, parse_jobs.progress, parse.trimmed,
    lambda raw: page_of(raw, 1.0, None), lambda raw: page_of({**raw, "phase": "loading"}, 1.0, None),
    lambda raw: parse.inspection(list(raw.values())), lambda raw: last_told([raw]), lambda raw: parse.owner(raw),
]  # fmt: skip


@settings(max_examples=60)
@given(raw=OBJECT, notes=st.dictionaries(st.sampled_from(NOTES), st.sampled_from([str(v) for v in VALUES])))
def test_no_parser_raises_for_any_json(raw: Json, notes: dict[str, str]) -> None:
    for parser in PARSERS:
        parser(raw)
    parse.replica_set({**raw, "metadata": {"annotations": notes}})


def test_one_malformed_object_keeps_no_kind_from_being_listed(
    cluster: Cluster, cache: Cache, api: Any, make: Callable[..., Json], metrics: Metrics
) -> None:
    bad = [make(kinds.DEPLOYMENT, "bad", spec={"model": 5}), make(kinds.DEPLOYMENT, "worse", spec=5, status="x")]
    page = [*bad, make(kinds.DEPLOYMENT, "good", spec={"model": {"source": "s1"}})]
    api.pages[kinds.DEPLOYMENT.path()] = [page]
    strict = Cache(lambda key: None, source_key)
    assert Verifier(cluster, strict, (), metrics).fill(kinds.DEPLOYMENT) == 3
    assert {name for _, name in strict.every()} == {"bad", "worse", "good"}
    for name in ("bad", "worse"):
        snapshot = strict.snapshot(("ns", name), 1.0)
        assert snapshot is not None
        accepted = next_plan(snapshot, Settings(), "0.1.0").status["conditions"][0]
        assert (accepted["type"], accepted["status"], accepted["reason"]) == ("Accepted", "False", "InvalidSpec")
        assert "spec" in accepted["message"]


def test_json_that_is_nested_too_deeply_is_read_without_what_is_too_deep() -> None:
    found = decode(f'{{"items": [{DEEP}, {{"metadata": {{"name": "good [{{"}}}}]}}'.encode())
    assert found["items"][1] == {"metadata": {"name": "good [{"}}
    assert list(found["items"][0]) == ["a"]


def test_what_cannot_even_be_taken_in_leaves_out_itself_alone(
    cache: Cache, make: Callable[..., Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = make(kinds.DEPLOYMENT, "a", 1, spec={})
    cache.seen(kinds.DEPLOYMENT, None, known)
    monkeypatch.setattr("plimsoll.operator.watch_cache.relations", lambda *_: 1 / 0)
    assert not cache.seen(kinds.DEPLOYMENT, "MODIFIED", make(kinds.DEPLOYMENT, "a", 2, spec={}))
    assert cache.version(kinds.DEPLOYMENT, "ns", "a") == "1"
