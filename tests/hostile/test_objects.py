"""Objects of a hostile tenant: each harms its own deployment alone, and says on itself which field is wrong."""

import base64
import copy
import functools
import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import structlog
from prometheus_client import generate_latest

from plimsoll.operator import kinds, names
from plimsoll.operator.actions import Apply
from plimsoll.operator.cluster import Cluster, decode
from plimsoll.operator.departures import Departures
from plimsoll.operator.entries import job_key
from plimsoll.operator.kinds import Kind
from plimsoll.operator.main import source_key
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.plan import next_plan
from plimsoll.operator.plan.quota import with_help
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Snapshot
from plimsoll.operator.watch_cache import Cache
from tests.operator.shell.conftest import OBJECTS
from tests.operator.shell.test_hostile import JOB, NODE, NOTES, QUANTIZATION, VALUES, places, with_value
from tests.support.bounded import bounded

Json = dict[str, Any]
NOW = 1_790_000_000.0
TENANT = "tenant"
HEALTHY = "op-shell"
FILES = {
    "deployment": kinds.DEPLOYMENT, "replica_set": kinds.REPLICA_SET, "pod_ready": kinds.POD,
    "endpoint_slice": kinds.ENDPOINT_SLICE, "record": kinds.CONFIG_MAP,
}  # fmt: skip
#: In the place of anything, besides those that were found before.
MORE: list[Any] = [
    "\x00\x1b]52;c;QQ==\x07", "\u202e" * 50, "x" * 30_000, "requests." * 2_000,
    "exceeded quota: a, requested: " * 3_000, "must specify a," * 20_000, -(10**18), (1 << 64) + 1, 2**31, -0.0,
    5e-324, 1.7e308, [[[[[]]]]], ["x"] * 20_000, {str(n): n for n in range(5_000)}, [{"type": "Ready"}] * 5_000,
    [{"name": None}, None, 5], {"": {"": ""}}, {"uri": "\x00", "digest": "", "revision": "", "bytes": -1},
    "2026-02-30T00:00:00Z", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z",
    "2026-01-01T00:00:00+99:99", "20260101T000000", "1e400", "NaN", "-Infinity",
    "plimsoll-inspection/1 " + "A" * 90_000,
]  # fmt: skip
#: Bytes in the place of one value, which a strict decoder refuses the whole list for, or reads otherwise.
TEXTS = [
    b'"\\ud800"', b'"x\\udfff\\ud800y"', b'"\xff\xfe"', b'"\x01"', b"NaN", b"-Infinity", b"1e400", b"9" * 5000,
    b"-" + b"9" * 5000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"[" * 9000 + b"]" * 9000, b'{"a":1,"a":{"a":2,"a":[]}}',
    b'"\\u0000"', b"1e-400", b"0." + b"3" * 5000, b'{"\\ud800":{"\\udc00":[]}}', b"null", b'"\xed\xa0\x80"',
]  # fmt: skip


def tenants(raw: Json) -> Json:
    """The object as it would be in the tenant's namespace."""
    made = copy.deepcopy(raw)
    if "namespace" in made["metadata"]:
        made["metadata"] |= {"namespace": TENANT, "uid": f"{made['metadata']['uid']}-of-a-tenant"}
    for owner in made["metadata"].get("ownerReferences", ()):
        owner["uid"] += "-of-a-tenant"
    return made


def children(snapshot: Snapshot) -> Iterator[tuple[Kind, Json]]:
    """What the planner would make for a deployment, as the API server keeps it: the tenant may write over it."""
    for action in next_plan(snapshot, Settings(), "0.1.0").actions:
        if isinstance(action, Apply) and action.object["kind"] in kinds.BY_NAME:
            made: Json = json.loads(json.dumps(action.object))
            made["metadata"] |= {"uid": f"uid-{made['kind']}", "resourceVersion": "9"}
            yield kinds.BY_NAME[made["kind"]], made


class World:
    """A cache with the objects of two tenants, and what the healthy one's plans were before the other's turned."""

    def __init__(self, stored: list[tuple[Kind, Json]]) -> None:
        self.cache = Cache(lambda key: None, source_key)
        self.cache.sees_nodes = True
        self.departures = Departures(None, self.cache)  # type: ignore[arg-type]
        for kind, raw in stored:
            self.cache.seen(kind, None, copy.deepcopy(raw))
        self.healthy = [(HEALTHY, "a"), job_key(HEALTHY, "q")]
        self.before = self.plans()
        self._count = 10**9

    def plans(self) -> list[Any]:
        """Of the healthy tenant's objects."""
        found = [self.cache.snapshot(key, NOW) for key in self.healthy]
        return [next_plan(one, Settings(), "0.1.0") for one in found if one is not None]

    def meet(self, kind: Kind, raw: Json) -> list[Snapshot]:
        """Takes in one hostile object as the start does, looks as the workers and the periodic parts do, and returns
        what the tenant's own looks are made from."""
        self._count += 1
        about = raw["metadata"] if isinstance(raw.get("metadata"), dict) else {}
        about |= {"resourceVersion": str(self._count), "uid": f"{about.get('uid')}-{self._count}"}
        with bounded(5), structlog.testing.capture_logs() as logs:
            self.departures.stray(kind, raw)
            self.departures.heard(kind, "ADDED", raw)
            self.cache.seen(kind, None, raw)
            assert self.cache.version(kind, about["namespace"], about["name"]) == about["resourceVersion"]
            own = self.look()
            assert self.plans() == self.before
        assert not [one for one in logs if one["log_level"] == "error"], logs
        return own

    def look(self) -> list[Snapshot]:
        cache = self.cache
        keys = cache.every()
        assert set(self.healthy) <= set(keys)
        own = []
        for key in keys:
            snapshot = cache.snapshot(key, NOW) if key not in self.healthy else None
            if snapshot is not None:
                plan = next_plan(snapshot, Settings(), "0.1.0")
                msgspec.json.encode([plan.status, [one.object for one in plan.actions if isinstance(one, Apply)]])
                assert len(msgspec.json.encode(plan.events)) < 10_000
                own.append(snapshot)
        cache.targets()
        cache.inspected()
        cache.unused_policies()
        assert all(len(phase) <= 40 for kind in (kinds.DEPLOYMENT, kinds.QUANTIZATION) for phase in cache.phases(kind))
        return own


def healthy_objects() -> list[tuple[Kind, Json]]:
    read = [(kind, json.loads((OBJECTS / f"{name}.json").read_text())) for name, kind in FILES.items()]
    return [*read, (kinds.QUANTIZATION, QUANTIZATION), (kinds.JOB, JOB), (kinds.NODE, NODE)]


@functools.cache
def objects() -> tuple[tuple[Kind, Json], ...]:
    """One of each kind that a tenant can write, as the operator would meet it."""
    mine = [(kind, tenants(raw)) for kind, raw in healthy_objects() if kind is not kinds.NODE]
    dict(mine)[kinds.CONFIG_MAP]["metadata"]["labels"][names.SOURCE] = source_key(TENANT, mine[0][1]["spec"])
    cache = Cache(lambda key: None, source_key)
    for kind, raw in mine:
        cache.seen(kind, None, raw)
    snapshot = cache.snapshot((TENANT, "a"), NOW)
    assert snapshot is not None
    made = [one for one in children(snapshot) if one[0] not in {kind for kind, _ in mine}]
    assert {kind for kind, _ in made} >= {kinds.SERVICE, kinds.BUDGET, kinds.POLICY}
    return (*mine, *made)


@pytest.fixture
def world() -> World:
    return World([*healthy_objects(), *objects()])


def cases(kind: Kind, raw: Json, count: int) -> Iterator[tuple[tuple[Any, ...], Any, Json]]:
    chance = random.Random(kind.name)
    every = [path for path in places(raw) if path[0] not in ("apiVersion", "kind")]
    for _ in range(count):
        # What lies deep is most of an object: the first two levels are where its shape is.
        path = chance.choice([one for one in every if len(one) <= 3] if chance.random() < 0.5 else every)
        value = chance.choice([*VALUES, *MORE])
        yield path, value, with_value(raw, path, copy.deepcopy(value))


@pytest.mark.parametrize("kind", [kind for kind, _ in objects()], ids=lambda kind: kind.name)
def test_a_hostile_object_changes_no_plan_of_another_tenant(world: World, kind: Kind) -> None:
    raw = dict(objects())[kind]
    for _, _, hostile in cases(kind, raw, 40):
        world.meet(kind, hostile)
    # Without its parts, and without any.
    for part in [key for key in raw if key not in ("apiVersion", "kind", "metadata")]:
        world.meet(kind, {key: copy.deepcopy(value) for key, value in raw.items() if key != part})
    about = {key: raw["metadata"][key] for key in ("name", "namespace", "uid")}
    for labels in (None, {names.DEPLOYMENT: "a"}, {names.JOB: "q"}, {names.SOURCE: "\x00"}, {names.MANAGED_BY: 5}, []):
        world.meet(kind, {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {**about, "labels": labels}})


def test_a_hostile_node_keeps_no_deployment_from_being_looked_at(world: World) -> None:
    chance = random.Random(7)
    for path, value, hostile in cases(kinds.NODE, {**NODE, "metadata": {**NODE["metadata"], "name": "m"}}, 40):
        with bounded(5), structlog.testing.capture_logs() as logs:
            hostile["metadata"]["resourceVersion"] = str(chance.randrange(10**9, 10**10))
            world.cache.seen(kinds.NODE, None, hostile)
            conditions = [plan.status["conditions"][0] for plan in world.plans()]
        assert [one["status"] for one in conditions] == ["True", "Unknown"], (path, value)
        assert not logs


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_cannot_be_read_is_named_on_the_object_that_has_it(world: World, note: str) -> None:
    raw = dict(objects())[kinds.REPLICA_SET]
    for value in [one for one in (*VALUES, *MORE) if isinstance(one, str)]:
        hostile = with_value(raw, ("metadata", "annotations", note), value)
        own = world.meet(kinds.REPLICA_SET, hostile)
        said = [one for snapshot in own for one in snapshot.unreadable]
        if note == names.BUILT_BY or _is_fine(note, value):
            continue
        assert [(one.kind, one.name) for one in said] == [("ReplicaSet", raw["metadata"]["name"])], value
        assert said[0].uid == hostile["metadata"]["uid"]
        assert f"metadata.annotations[{note}]" in said[0].words
        assert len(said[0].words) < 600


def _is_fine(note: str, value: str) -> bool:
    """Whether the note may read so: of a failure the time, of a number its digits, of a spec any object, count."""
    if note == names.SPEC:
        return value.startswith("{") and value != VALUES[21] and "NaN" not in value and "ud800" not in value
    return note == names.NUMBER and value.isascii() and value.isdecimal() and len(value) < 19


def test_a_record_that_is_no_report_is_named_on_the_record(world: World) -> None:
    raw = dict(objects())[kinds.CONFIG_MAP]
    texts = [one for one in (*VALUES, *MORE) if not isinstance(one, dict | list)]
    for hostile in [with_value(raw, ("data", names.REPORT), value) for value in texts]:
        said = [one for snapshot in world.meet(kinds.CONFIG_MAP, hostile) for one in snapshot.unreadable]
        assert [(one.kind, one.uid) for one in said] == [("ConfigMap", hostile["metadata"]["uid"])]
        assert f"data.{names.REPORT}" in said[0].words


def forged(record: Json, **changes: Any) -> Json:
    """A record whose report is packed well and says something else."""
    mark, packed = record["data"][names.REPORT].split(" ")
    text = json.dumps({**json.loads(zlib.decompress(base64.b85decode(packed))), **changes}).encode()
    return with_value(record, ("data", names.REPORT), f"{mark} {base64.b85encode(zlib.compress(text, 9)).decode()}")


def test_a_report_of_a_few_bytes_takes_neither_memory_nor_time(world: World) -> None:
    raw = dict(objects())[kinds.CONFIG_MAP]
    tables = [
        [["a" * 200_000 + ".*.x", [1], {"F": "0-131070"}]], [["*" * 1000, [1], {"F": "0-32000"}]],
        [["a", [1], {"F": "0," * 100_000 + "0"}]], [["a", [1], {"F": ""}]] * 20_000, [["a", [1] * 100_000, {"F": ""}]],
        [["a", [1 << 47] * 8, {"F": ""}]], [["a", [1], {"F": "0-" + "9" * 4000}]], [["a", [1], {"F": "5-1," * 40_000}]],
        [["a" * 2000 + ".*.x", [1], {"F": "0-3"}]],
    ]  # fmt: skip
    config = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 2147483648, "num_key_value_heads": 3}
    changes = [*({"tensors": {"rates": {"F": [1, 1]}, "rows": rows}} for rows in tables), {"config": config},
               {"ends": [5] * 200_000}, {"tensors": {"rates": {str(n): [n, 7] for n in range(9_000)}, "rows": []}},
               {"config": {"architectures": [["a"] * 100_000]}}, {"bytes": True, "digest": "\ud800"}]  # fmt: skip
    for change in changes:
        with bounded(1):
            own = world.meet(kinds.CONFIG_MAP, forged(raw, **change))
        assert any(one.unreadable for one in own), str(change)[:200]
    # Many reports in one record cost no more than one.
    packed = forged(raw, **changes[7])["data"][names.REPORT]
    data = {str(n): packed for n in range(500)}
    with bounded(1):
        world.meet(kinds.CONFIG_MAP, with_value(raw, ("data",), {**data, names.REPORT: "x"}))


@pytest.mark.parametrize("kind", [kinds.DEPLOYMENT, kinds.QUANTIZATION], ids=lambda kind: kind.name)
def test_a_phase_of_any_text_is_no_name_of_a_metric(world: World, metrics: Metrics, kind: Kind) -> None:
    for value in [*VALUES, *MORE, "Loading\n"]:
        world.meet(kind, with_value(dict(objects())[kind], ("status",), {"phase": value}))
        for phase in world.cache.phases(kind):
            metrics.deployments.labels(phase).set(1)
    assert len(generate_latest(metrics.registry)) < 20_000


def test_words_of_any_length_take_no_time_to_read(world: World) -> None:
    replica_set, pod = dict(objects())[kinds.REPLICA_SET], dict(objects())[kinds.POD]
    for text in [one for one in MORE if isinstance(one, str) and len(one) > 1000]:
        blocked = {"type": "ReplicaFailure", "status": "True", "reason": text, "message": text}
        unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
        waits = {"name": "server", "ready": False, "state": {"waiting": {"reason": text, "message": text}}}
        ended = {"name": "server", "state": {"terminated": {"exitCode": 1, "reason": text, "message": text}}}
        with bounded(2):
            world.meet(kinds.REPLICA_SET, with_value(replica_set, ("status",), {"conditions": [blocked]}))
            world.meet(kinds.POD, with_value(pod, ("status",), {"phase": "Pending", "conditions": [unplaced]}))
            world.meet(kinds.POD, with_value(pod, ("status",), {"phase": "Pending", "containerStatuses": [waits]}))
            world.meet(kinds.POD, with_value(pod, ("status",), {"phase": "Failed", "message": text, "reason": text,
                                                                "containerStatuses": [ended]}))  # fmt: skip


@pytest.mark.parametrize("words", ["exceeded quota: a, requested: ", "must specify a,", "maximum cpu usage per "])
def test_a_message_of_any_length_about_a_quota_takes_no_time_to_search(words: str) -> None:
    text = words * 30_000
    with bounded(2):
        assert len(with_help(text)) < len(text) + 300


SPECS: dict[Kind, Json] = {
    kinds.DEPLOYMENT: {
        "model": ["source", "endpoint", "credentialsSecret"], "accelerator": ["resource", "memory"],
        "replicas": None, "precision": None, "kvCache": ["ratio", "blockSize", "precision"], "context": ["maxLength"],
        "parallelism": ["tensor"], "serving": ["maxRunningRequests", "requestTimeout", "apiKeysSecret"],
        "rollout": ["strategy", "drainTimeout", "progressDeadline"],
        "pod": ["cpu", "memory", "nodeSelector", "tolerations", "labels", "annotations", "image", "env", "proxy"],
    },
    kinds.QUANTIZATION: {"model": ["source", "endpoint"], "method": None, "output": None, "calibration": None},
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECS, ids=lambda kind: kind.name)
def test_a_field_of_a_spec_that_cannot_be_is_named_in_its_condition(world: World, kind: Kind) -> None:
    raw = dict(objects())[kind]
    fields = [path for part, inner in SPECS[kind].items() for path in [(part, one) for one in inner or ()] or [(part,)]]
    for path in fields:
        for value in ([5, [None]], {"hostile": [{}]}, 1.5e300, True):
            hostile = copy.deepcopy(raw)
            inner = hostile["spec"]
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = value
            [own] = [one for one in world.meet(kind, hostile) if one.deployment.kind == kind.name]
            accepted = next_plan(own, Settings(), "0.1.0").status["conditions"][0]
            assert (accepted["type"], accepted["status"]) == ("Accepted", "False"), (path, value)
            assert f"spec.{'.'.join(path)}" in accepted["message"], (path, value)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_one_value_that_no_decoder_takes_hides_no_other_object_of_a_list(text: bytes) -> None:
    mark = b'"a hostile value"'
    for kind, raw in objects():
        for path in (("spec",), ("status",), ("metadata", "annotations"), ("data",)):
            hostile = with_value({"spec": {}, "status": {}, "data": {}, **raw}, path, {"x": "a hostile value"})
            page = json.dumps({"items": [hostile, raw]}).encode().replace(mark, text)
            found = decode(page)["items"]
            assert found[1] == raw, kind.name
            assert found[0]["metadata"]["name"] == raw["metadata"]["name"]
            msgspec.json.encode(found)


def test_an_operator_starts_and_checks_with_all_hostile_objects_at_once(
    api: Any, cluster: Cluster, metrics: Metrics
) -> None:
    from plimsoll.operator.verify import Verifier

    world = World(healthy_objects())
    for kind in {kind for kind, _ in objects()}:
        raw = dict(objects())[kind]
        hostile = []
        for index, (_, _, one) in enumerate(cases(kind, raw, 12)):
            about = {"name": f"h{index}", "namespace": TENANT, "uid": f"u{index}", "resourceVersion": "7"}
            hostile.append({**one, "metadata": {**one["metadata"], **about}})
        api.pages[kind.path()] = [hostile]
    with structlog.testing.capture_logs() as logs:
        verifier = Verifier(cluster, world.cache, (), metrics)
        for kind in {kind for kind, _ in objects()}:
            assert verifier.fill(kind) == 12
            # All that was seen now is as listed: nothing is asked for anew.
            verifier._checked[kind.name] = float("inf")
            world.look()
        assert world.plans() == world.before
    assert not [one for one in logs if one["log_level"] == "error"], logs


def test_pods_of_strangers_are_counted_on_their_own_nodes_alone(api: Any, cluster: Cluster) -> None:
    from plimsoll.operator.usage import Usage

    def pod(node: str, **spec: Any) -> Json:
        return {"metadata": {"namespace": TENANT, "name": "p"}, "spec": {"nodeName": node, **spec}}

    wants = [{"resources": {"requests": {"memory": "1Gi", "cpu": "1"}}}]
    shapes: list[Callable[[Any], Json]] = [
        lambda value: pod("bad", containers=value), lambda value: pod("bad", containers=[value]),
        lambda value: pod("bad", containers=[{"resources": value}]),
        lambda value: pod("bad", containers=[{"resources": {"requests": value}}]),
        lambda value: pod("bad", containers=[{"resources": {"requests": {"memory": value}}}]),
        lambda value: pod("bad", initContainers=[{"restartPolicy": value, "resources": {"limits": {"cpu": value}}}]),
        lambda value: pod("bad", overhead={"memory": value}), lambda value: {"metadata": value, "spec": value},
        lambda value: pod("bad", restartPolicy=value, containers=wants), lambda value: pod(value, containers=wants),
    ]  # fmt: skip
    values = [value for value in (*VALUES, *MORE) if not isinstance(value, str) or len(value) < 10_000]
    hostile = [shape(value) for shape in shapes for value in values]
    api.pages[kinds.POD.path()] = [[pod("good", containers=wants), *hostile, pod("good", containers=wants)]]
    used, stays = Usage(cluster)._once()
    assert used["good"] == {"memory": 2 << 30, "cpu": 2000, "pods": 2}
    assert stays["good"] == {(TENANT, ""): 2 << 30}
