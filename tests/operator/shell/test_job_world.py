"""Quantization jobs in the shell: who is woken by what, what a look writes, and whose page is a job's."""

import asyncio
import time
from typing import Any

import pytest

from plimsoll.api.job_progress import JobProgress
from plimsoll.operator import build, kinds, names, parse, parse_jobs
from plimsoll.operator.build.quantizing import CONTAINER
from plimsoll.operator.build.source import output_key
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.entries import job_key, object_of
from plimsoll.operator.events import Events
from plimsoll.operator.main import source_key
from plimsoll.operator.plan import next_plan
from plimsoll.operator.plan.job_run import last_words
from plimsoll.operator.poll import Poller
from plimsoll.operator.reconcile import Reconciler
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Output
from plimsoll.operator.usage import Usage
from plimsoll.operator.watch_cache import Cache
from plimsoll.operator.workqueue import WorkQueue
from tests.support.built import INSPECTION
from tests.support.job_manifests import LEAST
from tests.support.job_miniature import DIGEST

SPEC = LEAST | {"weights": {"groupSize": 64}}
KEY, WAITER = job_key("ns", "awq"), ("ns", "server")
OF_THE_JOB = {"labels": dict(names.job_labels("awq"))}
OUTPUT = Output("awq", SPEC["output"], DIGEST)


@pytest.fixture
def cache(woken: list[Any]) -> Cache:
    return Cache(woken.append, source_key)


def complete(output: Output = OUTPUT) -> dict[str, Any]:
    when = "2026-01-01T00:00:00Z"
    condition = {"type": "Complete", "status": "True", "reason": "Passed", "lastTransitionTime": when}
    return {"phase": "Complete", "conditions": [condition], "output": {"uri": output.uri, "digest": output.digest}}


def deployment(make: Any) -> dict[str, Any]:
    found: dict[str, Any] = make(
        kinds.DEPLOYMENT, "server", spec={"model": {"quantizationJob": "awq"}, "accelerator": {"resource": "cpu"}}
    )
    return found


def test_keys_of_jobs_are_no_deployments() -> None:
    assert object_of(KEY) == (kinds.QUANTIZATION, "ns", "awq")
    assert object_of(WAITER) == (kinds.DEPLOYMENT, "ns", "server")


def test_who_waits_for_a_job_is_woken_by_its_status_and_not_by_its_pods(
    cache: Cache, make: Any, woken: list[Any]
) -> None:
    cache.seen(kinds.DEPLOYMENT, None, deployment(make))
    woken.clear()
    cache.seen(kinds.QUANTIZATION, "ADDED", make(kinds.QUANTIZATION, "awq", 2, spec=SPEC))
    assert set(woken) == {KEY, WAITER}
    woken.clear()
    cache.seen(kinds.POD, "ADDED", make(kinds.POD, "awq-1", metadata=OF_THE_JOB))
    cache.seen(kinds.JOB, "ADDED", make(kinds.JOB, "awq-1", metadata=OF_THE_JOB))
    assert set(woken) == {KEY}
    woken.clear()
    cache.seen(kinds.QUANTIZATION, "MODIFIED", make(kinds.QUANTIZATION, "awq", 3, spec=SPEC, status=complete()))
    assert set(woken) == {KEY, WAITER}


def test_a_deployment_sees_its_job_and_the_inspection_of_its_output(cache: Cache, make: Any, woken: list[Any]) -> None:
    cache.seen(kinds.DEPLOYMENT, None, deployment(make))
    waiting = cache.snapshot(WAITER, 1.0)
    assert waiting is not None
    assert (waiting.quantizing, waiting.inspecting) == (None, None)
    cache.seen(kinds.QUANTIZATION, None, make(kinds.QUANTIZATION, "awq", spec=SPEC, status=complete()))
    key = output_key("ns", OUTPUT)
    woken.clear()
    cache.seen(kinds.CONFIG_MAP, None, {**build.record("ns", key, INSPECTION), "kind": "ConfigMap"})
    assert WAITER in woken
    found = cache.snapshot(WAITER, 1.0)
    assert found is not None
    assert found.quantizing is not None
    assert found.quantizing.output == OUTPUT
    assert found.inspecting is not None
    assert (found.inspecting.key, found.inspecting.found) == (key, INSPECTION)


def test_what_is_known_of_an_output_stays_while_a_revision_serves_it(cache: Cache, make: Any) -> None:
    key = output_key("ns", OUTPUT)
    job = make(kinds.QUANTIZATION, "awq", spec=SPEC, status=complete())
    cache.seen(kinds.QUANTIZATION, None, job)
    cache.seen(kinds.DEPLOYMENT, None, deployment(make))
    cache.seen(kinds.CONFIG_MAP, None, {**build.record("ns", key, INSPECTION), "kind": "ConfigMap"})
    notes = {names.OUTPUT: f'{{"job":"awq","uri":"{OUTPUT.uri}","digest":"{OUTPUT.digest}"}}', names.NUMBER: "1"}
    labels = {names.DEPLOYMENT: "server", names.MANAGED_BY: names.MANAGER, names.REVISION: "r"}
    revision = make(kinds.REPLICA_SET, "server-r", metadata={"labels": labels, "annotations": notes})
    cache.seen(kinds.REPLICA_SET, None, revision)
    cache.seen(kinds.QUANTIZATION, "DELETED", job)
    assert [one.wanted for one in cache.inspected() if one.key == key] == [True]
    found = cache.snapshot(WAITER, 1.0)
    assert found is not None
    assert found.replica_sets[0].output == OUTPUT
    assert found.inspecting is not None
    assert found.inspecting.found == INSPECTION
    cache.seen(kinds.REPLICA_SET, "DELETED", revision)
    assert [one.wanted for one in cache.inspected() if one.key == key] == [False]


def test_the_first_of_two_jobs_keeps_its_place_until_it_is_gone(cache: Cache, make: Any, woken: list[Any]) -> None:
    def job(name: str, second: int) -> dict[str, Any]:
        meta = {"creationTimestamp": f"2026-01-01T00:00:0{second}Z"}
        found: dict[str, Any] = make(kinds.QUANTIZATION, name, spec=SPEC, metadata=meta)
        return found

    cache.seen(kinds.QUANTIZATION, None, job("first", 1))
    cache.seen(kinds.QUANTIZATION, None, job("second", 2))
    first, second = (cache.snapshot(job_key("ns", name), 1.0) for name in ("first", "second"))
    assert first is not None
    assert second is not None
    assert (first.rivals, second.rivals) == ((), ("first",))
    woken.clear()
    cache.seen(kinds.QUANTIZATION, "DELETED", job("first", 1))
    assert job_key("ns", "second") in woken


class World:
    """An API server, and everything from the cache to the real planner."""

    def __init__(self, api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> None:
        self.api, self.cache, self.make = api, cache, make
        self.queue = WorkQueue(metrics)
        self.reconciler = Reconciler(
            cluster, cache, self.queue, Settings(), metrics, next_plan, Usage(cluster), Events(cluster).emit
        )
        body = make(kinds.QUANTIZATION, "awq", spec=SPEC, metadata={"generation": 1})
        cache.seen(kinds.QUANTIZATION, None, api.put(kinds.QUANTIZATION, body))
        key = source_key("ns", SPEC)
        assert key is not None
        cache.seen(kinds.CONFIG_MAP, None, {**build.record("ns", key, INSPECTION), "kind": "ConfigMap"})

    def look(self) -> None:
        self.reconciler.reconcile(KEY)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.objects[kinds.QUANTIZATION.path("ns", "awq")].get("status", {})
        return found

    def stored(self, kind: kinds.Kind) -> list[dict[str, Any]]:
        return self.api.under(f"{kind.path('ns')}/")


@pytest.fixture
def world(api: Any, cluster: Cluster, cache: Cache, metrics: Any, make: Any) -> World:
    return World(api, cluster, cache, metrics, make)


def bound(make: Any, size: str) -> dict[str, Any]:
    found: dict[str, Any] = make(kinds.CLAIM, "models", status={"capacity": {"storage": size}})
    return found


def test_a_job_is_made_once_after_its_claim_was_looked_at(world: World) -> None:
    world.api.put(kinds.CLAIM, bound(world.make, "8Gi"))
    for _ in range(4):
        world.look()
    (made,) = world.stored(kinds.JOB)
    assert made["metadata"]["ownerReferences"][0]["kind"] == "QuantizationJob"
    assert world.status["budget"]["disk"]["claim"] == 8 << 30
    assert world.status["job"] == made["metadata"]["name"]
    assert world.status["startTime"]
    asked = [path for verb, path in world.api.requests if "persistentvolumeclaims" in path]
    # Not with every look: once before the Job is made.
    assert len(asked) == 1
    writes = len([verb for verb, _ in world.api.requests if verb != "GET"])
    world.look()
    assert len([verb for verb, _ in world.api.requests if verb != "GET"]) == writes


def test_a_claim_that_is_too_small_is_refused_in_the_status(world: World) -> None:
    world.api.put(kinds.CLAIM, bound(world.make, "1Mi"))
    world.look()
    assert world.status["phase"] == "Refused"
    assert world.stored(kinds.JOB) == []


def test_events_name_the_job(world: World) -> None:
    world.look()
    events = world.stored(kinds.EVENT)
    assert {one["involvedObject"]["kind"] for one in events} == {"QuantizationJob"}
    assert {one["reason"] for one in events} == {"Fits"}


PROGRESS = JobProgress(phase="Quantizing", layer=3, of=30, percent=20.0, seconds=10.0, peak_memory=1)


def test_a_jobs_page_is_its_progress_and_the_fetching_containers_is_none(cache: Cache, make: Any, metrics: Any) -> None:
    cache.seen(kinds.QUANTIZATION, None, make(kinds.QUANTIZATION, "awq", spec=SPEC))
    running = make(kinds.POD, "awq-1", metadata=OF_THE_JOB, status={"phase": "Running", "podIP": "10.0.0.9"})
    cache.seen(kinds.POD, None, running)
    (target,) = cache.targets()
    assert (target.key, target.quantizes) == (KEY, True)
    pages: list[Any] = [
        {"phase": "downloading", "startup": {}}, PROGRESS.model_dump(mode="json", by_alias=True), {"phase": "no such"},
    ]  # fmt: skip
    woken: list[Any] = []

    async def read(ip: str) -> Any:
        return pages.pop(0)

    async def three() -> list[Any]:
        poller = Poller(cache, woken.append, lambda: True, metrics, read)
        seen = []
        for turn in range(3):
            poller.tick(time.monotonic() + 100 * turn)
            await asyncio.gather(*poller._tasks)
            found = cache.snapshot(KEY, 1.0)
            assert found is not None
            seen.append((found.pods[0].page and found.pods[0].page.phase, found.pods[0].progress))
        return seen

    assert asyncio.run(three()) == [("downloading", None), (None, PROGRESS), (None, PROGRESS)]
    assert woken == [KEY, KEY]


def of_the_job(make: Any, version: int, **more: Any) -> dict[str, Any]:
    """A pod of the Job `awq-1`."""
    meta = {**OF_THE_JOB, "ownerReferences": [{"controller": True, "uid": "uid-awq-1"}]}
    found: dict[str, Any] = make(kinds.POD, "awq-1-x", version, metadata=meta, **more)
    return found


LAST_WORDS = {"name": CONTAINER, "state": {"terminated": {"exitCode": 0, "message": PROGRESS.encode().decode()}}}
ENDED = {"phase": "Succeeded", "containerStatuses": [LAST_WORDS]}


@pytest.mark.parametrize("shown", ["before its deletion", "by its deletion"])
def test_last_words_of_a_pod_that_is_deleted_as_it_ends_are_kept_for_a_while(make: Any, shown: str) -> None:
    now = [0.0]
    cache = Cache(lambda key: None, source_key, lambda: now[0])
    cache.seen(kinds.QUANTIZATION, None, make(kinds.QUANTIZATION, "awq", spec=SPEC))
    cache.seen(kinds.JOB, None, make(kinds.JOB, "awq-1", metadata=OF_THE_JOB))
    cache.seen(kinds.POD, None, of_the_job(make, 1, status={"phase": "Running"}))
    if shown == "before its deletion":
        cache.seen(kinds.POD, "MODIFIED", of_the_job(make, 2, status=ENDED))
        cache.seen(kinds.POD, "DELETED", of_the_job(make, 3))
    else:
        cache.seen(kinds.POD, "DELETED", of_the_job(make, 3, status=ENDED))
    for later, words in ((599.0, [PROGRESS]), (601.0, [])):
        now[0] = later
        cache.tidy()
        found = cache.snapshot(KEY, 1.0)
        assert found is not None
        assert not found.pods
        assert [last_words(pod) for pod in found.parted] == words


def test_jobs_and_their_ends_are_read_from_what_the_cluster_has() -> None:
    failed = {
        "metadata": {"name": "j", "uid": "u", "ownerReferences": [{"controller": True, "uid": "o"}]},
        "status": {"conditions": [
            {"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy"},
            {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 3",
             "lastTransitionTime": "1970-01-01T00:01:00Z"},
        ]},
    }  # fmt: skip
    found = parse_jobs.batch_job(failed)
    assert (found.name, found.owner, found.ended, found.ended_at) == ("j", "o", "Failed", 60.0)
    assert parse_jobs.batch_job({"metadata": {"name": "j"}, "status": {"active": 1}}).ended == ""
    refused = {"metadata": {"name": "q"}, "status": {"phase": "Refused", "message": "too much", "conditions": [
        {"type": "Accepted", "status": "False", "reason": "DoesNotFit"}]}}  # fmt: skip
    assert parse_jobs.quantizing(refused).failed == "DoesNotFit"
    assert parse_jobs.quantizing({"metadata": {"name": "q"}}).phase == "Pending"
    # What failed its gate may say where it lies: nobody serves it.
    gate = {"metadata": {"name": "q"}, "status": {**complete(), "conditions": [
        {"type": "Failed", "status": "True", "reason": "GateFailed", "message": "worse"}]}}  # fmt: skip
    assert (parse_jobs.quantizing(gate).output, parse_jobs.quantizing(gate).failed) == (None, "GateFailed")


def test_a_damaged_note_of_an_output_is_none() -> None:
    for text in ("", "{", "[]", '{"job":"a"}', '{"job":"a","uri":"b","digest":""}'):
        raw = {"metadata": {"name": "a", "annotations": {names.OUTPUT: text}}}
        assert parse.replica_set(raw).output is None
