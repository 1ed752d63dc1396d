"""Raw Kubernetes objects to the snapshot's values. Pure; what is missing or odd in an object becomes a default."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from plimsoll.api.deployment import KIND
from plimsoll.api.errors import CheckpointError
from plimsoll.api.inspection import Inspection
from plimsoll.api.job_status import QuantizationJobStatus
from plimsoll.api.quantity import parse_quantity
from plimsoll.api.quantization_job import QUANTIZATION_KIND
from plimsoll.api.shard import MOST_RANKS
from plimsoll.api.status import ModelDeploymentStatus, checked
from plimsoll.operator import names
from plimsoll.operator.own_container import OURS, own_phase
from plimsoll.operator.shape import decoded, mapping, mappings, moment, text, timestamp, whole
from plimsoll.operator.snapshot import (
    Container,
    Deployment,
    Failure,
    Node,
    Output,
    Pod,
    ReplicaSet,
    Shape,
)

Raw = Mapping[str, Any]
STATUSES: Mapping[str, type[BaseModel]] = {KIND: ModelDeploymentStatus, QUANTIZATION_KIND: QuantizationJobStatus}
#: A condition's reason, as the CRD has it, and the most of a failure's words that go into a message.
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,1000}[A-Za-z0-9_])?")
_MOST_WORDS = 2000
#: Replicas of a revision of groups whose note says no number: as many as there are.
UNREADABLE = -1
#: Seconds in which a kubelet first says of a new pod that it is not ready.
_FIRST = 30.0


def meta(raw: Raw) -> Raw:
    """The object's metadata; empty where there is none."""
    return mapping(raw.get("metadata"))


def labels(raw: Raw) -> Mapping[str, str]:
    """The object's labels whose values are text."""
    return _texts(meta(raw).get("labels"))


def annotations(raw: Raw) -> Mapping[str, str]:
    """The object's annotations whose values are text."""
    return _texts(meta(raw).get("annotations"))


def _texts(value: Any) -> Mapping[str, str]:
    return {key: one for key, one in mapping(value).items() if isinstance(one, str)}


def controller(raw: Raw) -> Raw:
    """The owner reference of an object's controller; empty where it has none."""
    return next((one for one in mappings(meta(raw).get("ownerReferences")) if one.get("controller")), {})


def owner(raw: Raw) -> str:
    """uid of the object that keeps this one."""
    return text(controller(raw).get("uid"))


def trimmed(raw: Raw, status: Sequence[str] | None = None) -> dict[str, Any]:
    """The object without fields that are unused or change with every write. `status`: its fields that are read."""
    left_out = ("metadata",) if status is None else ("metadata", "status")
    slim = {key: value for key, value in raw.items() if key not in left_out}
    slim["metadata"] = {k: value for k, value in meta(raw).items() if k not in ("managedFields", "resourceVersion")}
    if status:
        live = mapping(raw.get("status"))
        slim["status"] = {key: live[key] for key in status if live.get(key)}
    return slim


def deployment(raw: Raw) -> Deployment:
    """A ModelDeployment as the planner takes it."""
    about = meta(raw)
    return Deployment(
        namespace=text(about.get("namespace")),
        name=text(about.get("name")),
        uid=text(about.get("uid")),
        generation=whole(about.get("generation")),
        spec=mapping(raw.get("spec")),
        status=checked(mapping(raw.get("status")), STATUSES.get(text(raw.get("kind")), ModelDeploymentStatus)),
        annotations=annotations(raw),
        deleting=bool(about.get("deletionTimestamp")),
        kind=text(raw.get("kind"), KIND),
    )


def replica_set(raw: Raw) -> ReplicaSet:
    """A ReplicaSet as the planner takes it."""
    about, notes = meta(raw), annotations(raw)
    # The API server writes 1 where nothing was said.
    keeps = whole(mapping(raw.get("spec")).get("replicas"), 1)
    spec = decoded(notes.get(names.SPEC))
    return ReplicaSet(
        name=text(about.get("name")),
        uid=text(about.get("uid")),
        revision=labels(raw).get(names.REVISION) or selected_revision(raw),
        replicas=whole(notes.get(names.GROUPS), UNREADABLE) if names.GROUPS in notes else keeps,
        shape=shape(spec) if names.GROUPS in notes else None,
        number=whole(notes.get(names.NUMBER)),
        created=timestamp(about.get("creationTimestamp")),
        built_by=notes.get(names.BUILT_BY, ""),
        spec=spec,
        source=_source(notes.get(names.INSPECTED)),
        budget=_budget(notes.get(names.BUDGET)),
        failure=_failure(notes.get(names.FAILED)),
        output=_output(notes.get(names.OUTPUT)),
        proven=notes.get(names.PROVEN) == "true",
        blocked=_blocked(raw),
        deleting=bool(about.get("deletionTimestamp")),
    )


def shape(spec: Mapping[str, Any]) -> Shape | None:
    """The groups that a deployment's spec asks for; None where replicas are single pods, or it cannot be read."""
    parallelism = mapping(spec.get("parallelism"))
    nodes = whole(parallelism.get("nodes"), 1)
    if not 2 <= nodes <= MOST_RANKS:
        return None
    return Shape(nodes, text(parallelism.get("topologyKey")) or None, parallelism.get("exclusiveTopology") is True)


def replica_sets(raws: Iterable[Raw], uid: str) -> tuple[ReplicaSet, ...]:
    """Those that the deployment `uid` controls, and those without a controller.

    What an earlier deployment of its name has left is on its way out and no revision of this one: neither its number
    nor its verdicts count here.
    """
    return tuple(replica_set(raw) for raw in raws if owner(raw) in ("", uid))


def selected_revision(raw: Raw) -> str:
    """Of a ReplicaSet that has lost its label: its selector cannot change."""
    selector = mapping(mapping(raw.get("spec")).get("selector"))
    return text(mapping(selector.get("matchLabels")).get(names.REVISION))


def _source(note: str | None) -> Mapping[str, Any]:
    """Empty where somebody wrote something else over it."""
    value = decoded(note)
    known = all(isinstance(value.get(key), str) for key in ("uri", "digest", "revision"))
    return value if known and whole(value.get("bytes"), -1) >= 0 else {}


def _budget(note: str | None) -> Mapping[str, Any]:
    """Empty where somebody wrote something else over it."""
    value = mapping(checked({"budget": decoded(note)}).get("budget")) if note else {}
    return value if "total" in mapping(value.get("perDevice")) else {}


def _output(note: str | None) -> Output | None:
    value = decoded(note)
    parts = [text(value.get(key)) for key in ("job", "uri", "digest")]
    return Output(*parts) if all(parts) else None


def failure_text(failure: Failure) -> str:
    """What `replica_set` reads back from the annotation."""
    return json.dumps({"reason": failure.reason, "message": failure.message, "at": round(failure.at, 3)})


def _blocked(raw: Raw) -> str | None:
    for one in mappings(mapping(raw.get("status")).get("conditions")):
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
            return (text(one.get("message")) or text(one.get("reason"), "pods cannot be created"))[:_MOST_WORDS]
    return None


def _failure(note: str | None) -> Failure | None:
    value = decoded(note)
    if not value:
        # Somebody's own words there still mean that the revision was given up.
        return Failure("Failed", note[:_MOST_WORDS], 0.0) if note else None
    at = moment(value.get("at")) or timestamp(value.get("at"))
    reason, message = text(value.get("reason"), "Failed"), text(value.get("message"))
    return Failure(reason if _REASON.fullmatch(reason) else "Failed", message[:_MOST_WORDS], at)


def pod(raw: Raw) -> Pod:
    """A pod as the planner takes it."""
    about, spec, status = meta(raw), mapping(raw.get("spec")), mapping(raw.get("status"))
    conditions = {text(one.get("type")): one for one in mappings(status.get("conditions"))}
    placed = conditions.get("PodScheduled") or {}
    unschedulable = None
    if placed.get("status") == "False" and placed.get("reason") in ("Unschedulable", "SchedulingGated"):
        unschedulable = text(placed.get("message")) or str(placed["reason"])
    phase, lingers = own_phase(status)
    message = ""
    if phase == "Failed" or status.get("reason") in ("NodeLost", "Evicted"):
        message = ": ".join(text(status.get(key)) for key in ("reason", "message") if text(status.get(key)))
    # The kubelet sorts by name; ours first, as troubles and words are looked for in this order.
    beside = sorted(mappings(status.get("containerStatuses")), key=lambda one: text(one.get("name")) not in OURS)
    containers = [
        *(_container(one, True) for one in mappings(status.get("initContainerStatuses"))),
        *(_container(one, False) for one in beside),
    ]
    return Pod(
        name=text(about.get("name")),
        uid=text(about.get("uid")),
        revision=sys.intern(labels(raw).get(names.REVISION, "")),
        owner=sys.intern(owner(raw)),
        group=sys.intern(labels(raw).get(names.OF_GROUP, "")),
        index=sys.intern(labels(raw).get(names.INDEX, "")),
        phase=sys.intern(phase),
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        deleting=bool(about.get("deletionTimestamp")),
        ends_by=timestamp(about.get("deletionTimestamp")),
        **_unready(conditions),
        ended_at=_ended_at(status) if phase in ("Succeeded", "Failed") else 0.0,
        lingers=lingers,
        created=timestamp(about.get("creationTimestamp")),
        node=text(spec.get("nodeName")) or None,
        ip=text(status.get("podIP")) or None,
        unschedulable=unschedulable,
        message=message,
        containers=tuple(containers),
        looks_as=annotations(raw).get(names.LOOKS_AS, ""),
        patience=moment(whole(annotations(raw).get(names.PATIENCE))),
    )


def _unready(conditions: Mapping[str, Raw]) -> dict[str, Any]:
    """Of a pod that was ready before: a kubelet calls it unready for the first time soon after it got its node."""
    now = conditions.get("Ready") or {}
    since, placed = timestamp(now.get("lastTransitionTime")), conditions.get("PodScheduled") or {}
    if now.get("status") == "True" or not since:
        return {}
    before = timestamp(placed.get("lastTransitionTime"))
    return {"unready_at": since, "unready": text(now.get("message"))} if before and since - before > _FIRST else {}


def _ended_at(status: Raw) -> float:
    """The last thing that a pod's status has a time of: nothing changes in one that has ended."""
    conditions = [one.get("lastTransitionTime") for one in mappings(status.get("conditions"))]
    states = [mapping(one.get("state")) for one in mappings(status.get("containerStatuses"))]
    ended = [mapping(one.get("terminated")) for one in states]
    return max((timestamp(one) for one in (*conditions, *(one.get("finishedAt") for one in ended))), default=0.0)


def _container(status: Raw, init: bool) -> Container:
    state, last = mapping(status.get("state")), mapping(mapping(status.get("lastState")).get("terminated"))
    which = next((name for name in ("running", "terminated", "waiting") if state.get(name) is not None), "waiting")
    now = mapping(state.get(which))
    times = [timestamp(one.get(key)) for one in (now, last) for key in ("startedAt", "finishedAt")]
    began, finished = times[:2] if which == "terminated" else times[2:]
    return Container(
        name=sys.intern(text(status.get("name"))),
        init=init,
        ours=text(status.get("name")) in OURS,
        state=which,  # type: ignore[arg-type]
        reason=sys.intern(text(now.get("reason"))),
        message=text(now.get("message")),
        exit_code=_exit_code(now),
        restarts=whole(status.get("restartCount")),
        last_reason=sys.intern(text(last.get("reason"))),
        last_message=text(last.get("message")),
        last_exit_code=_exit_code(last),
        last_ran=max(0.0, finished - began) if began else 0.0,
        moved_at=max(times),
    )


def _exit_code(state: Raw) -> int | None:
    return whole(state["exitCode"]) if "exitCode" in state else None


def ready_endpoints(raw: Raw) -> frozenset[str]:
    """uids of the pods that a slice sends requests to."""
    found = set()
    for one in mappings(raw.get("endpoints")):
        uid, conditions = text(mapping(one.get("targetRef")).get("uid")), mapping(one.get("conditions"))
        # Unknown counts as ready, says the API.
        if uid and conditions.get("ready", True) is not False:
            found.add(uid)
    return frozenset(found)


def node(raw: Raw) -> Node:
    """A node as the planner takes it."""
    spec, status = mapping(raw.get("spec")), mapping(raw.get("status"))
    conditions = mappings(status.get("conditions"))
    ready = next((one for one in conditions if one.get("type") == "Ready"), {})
    is_ready = ready.get("status") == "True"
    allocatable: dict[str, int] = {}
    for resource, quantity in mapping(status.get("allocatable")).items():
        try:
            allocatable[resource] = amount(resource, quantity)
        except ValueError:
            continue
    return Node(
        name=text(meta(raw).get("name")),
        labels=dict(labels(raw)),
        taints=tuple(
            {key: text(one.get(key)) for key in ("key", "value", "effect")} for one in mappings(spec.get("taints"))
        ),
        usable=is_ready and not spec.get("unschedulable"),
        not_ready="" if is_ready else text(ready.get("message")) or text(ready.get("reason"), "nothing says why"),
        not_ready_at=0.0 if is_ready else timestamp(ready.get("lastTransitionTime")),
        cordoned=bool(spec.get("unschedulable")),
        allocatable=allocatable,
        image_volumes=_mounts_images(text(mapping(status.get("nodeInfo")).get("containerRuntimeVersion"))),
    )


def amount(resource: str, quantity: Any) -> int:
    """A quantity as the snapshot counts it: processors in thousandths, the rest in ones. Raises ValueError."""
    value = parse_quantity(quantity)
    return int((value * 1000 if resource == "cpu" else value).to_integral_value(rounding="ROUND_CEILING"))


def _mounts_images(runtime: str) -> bool:
    """`containerd://2.1.4`, `cri-o://1.31.0`: the first versions that mount images as volumes."""
    name, _, version = runtime.partition("://")
    first = {"containerd": (2, 1), "cri-o": (1, 31)}.get(name)
    parts = version.lstrip("v").split(".")
    return first is not None and len(parts) >= 2 and (whole(parts[0], -1), whole(parts[1], -1)) >= first


def stays_for(raw: Raw) -> tuple[str, str] | None:
    """(namespace, our deployment or nothing) of a pod that stays where it is; None for one that ends by itself."""
    if text(mapping(raw.get("spec")).get("restartPolicy"), "Always") != "Always":
        return None
    return text(meta(raw).get("namespace")), labels(raw).get(names.DEPLOYMENT, "")


def inspection(texts: Iterable[Any]) -> Inspection | None:
    """The first of these texts that is a report of an inspect pod and can be read."""
    for one in texts:
        if isinstance(one, str) and Inspection.is_report(one):
            try:
                return Inspection.decode(one)
            except CheckpointError:
                continue
    return None


def last_words(found: Pod) -> str | None:
    """What the pod's own container said when it last ended; None while it has not.

    An init container speaks for the pod where it failed, and so that ours never began.
    """
    main = [one for one in found.containers if one.ours and not one.init]
    for one in (*main, *(one for one in reversed(found.containers) if one.init and one.exit_code != 0)):
        if one.state == "terminated":
            return one.message or one.reason
        if one.last_exit_code is not None:
            return one.last_message or one.last_reason
    return None
