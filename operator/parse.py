"""Raw Kubernetes objects to the snapshot's values. Pure; what is missing or odd in an object becomes a default."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from plimsoll.api.deployment import KIND
from plimsoll.api.errors import CheckpointError
from plimsoll.api.inspection import Inspection
from plimsoll.api.quantity import parse_quantity
from plimsoll.operator import names
from plimsoll.operator.own_container import OURS, own_phase
from plimsoll.operator.snapshot import Container, Deployment, Failure, Node, Output, Page, Pod, ReplicaSet

Raw = Mapping[str, Any]
PHASES = ("downloading", "loading", "warming", "ready", "draining")


def timestamp(text: str | None) -> float:
    """RFC 3339 to seconds since the epoch; 0 for what is none."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp() if text else 0.0
    except (ValueError, TypeError):
        return 0.0


def meta(raw: Raw) -> Raw:
    return raw.get("metadata") or {}


def labels(raw: Raw) -> Mapping[str, str]:
    return meta(raw).get("labels") or {}


def annotations(raw: Raw) -> Mapping[str, str]:
    return meta(raw).get("annotations") or {}


def controller(raw: Raw) -> str:
    """uid of the object that keeps this one."""
    owners = meta(raw).get("ownerReferences") or ()
    return next((str(one.get("uid", "")) for one in owners if one.get("controller")), "")


def trimmed(raw: Raw, status: Sequence[str] | None = None) -> dict[str, Any]:
    """Without what nobody reads and what changes with every write. `status`: the fields of it that are read."""
    left_out = ("metadata",) if status is None else ("metadata", "status")
    slim = {key: value for key, value in raw.items() if key not in left_out}
    slim["metadata"] = {k: value for k, value in meta(raw).items() if k not in ("managedFields", "resourceVersion")}
    if status:
        live = raw.get("status") or {}
        slim["status"] = {key: live[key] for key in status if live.get(key)}
    return slim


def deployment(raw: Raw) -> Deployment:
    about = meta(raw)
    return Deployment(
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        uid=about.get("uid", ""),
        generation=int(about.get("generation") or 0),
        spec=raw.get("spec") or {},
        status=raw.get("status") or {},
        annotations=annotations(raw),
        deleting=bool(about.get("deletionTimestamp")),
        kind=str(raw.get("kind") or KIND),
    )


def replica_set(raw: Raw) -> ReplicaSet:
    about, notes = meta(raw), annotations(raw)
    number = notes.get(names.NUMBER, "")
    return ReplicaSet(
        name=about.get("name", ""),
        uid=about.get("uid", ""),
        revision=labels(raw).get(names.REVISION, ""),
        # The API server writes 1 where nothing was said.
        replicas=int((raw.get("spec") or {}).get("replicas", 1)),
        number=int(number) if number.isdecimal() else 0,
        created=timestamp(about.get("creationTimestamp")),
        built_by=notes.get(names.BUILT_BY, ""),
        spec=_json(notes.get(names.SPEC)),
        source=_json(notes.get(names.INSPECTED)),
        budget=_budget(notes.get(names.BUDGET)),
        failure=_failure(notes.get(names.FAILED)),
        output=_output(notes.get(names.OUTPUT)),
        proven=notes.get(names.PROVEN) == "true",
        blocked=_blocked(raw),
        resource_version=about.get("resourceVersion", ""),
        deleting=bool(about.get("deletionTimestamp")),
    )


def replica_sets(raws: Iterable[Raw], uid: str) -> tuple[ReplicaSet, ...]:
    """Those that the deployment `uid` keeps, and those that nobody does.

    What an earlier deployment of its name has left is on its way out and no revision of this one: neither its number
    nor its verdicts count here.
    """
    return tuple(replica_set(raw) for raw in raws if controller(raw) in ("", uid))


def _budget(text: str | None) -> Mapping[str, Any]:
    """Empty where somebody wrote something else over it."""
    value = _json(text)
    per_device = value.get("perDevice")
    total = per_device.get("total") if isinstance(per_device, Mapping) else None
    return value if isinstance(total, int) else {}


def _output(text: str | None) -> Output | None:
    value = _json(text)
    parts = [str(value.get(key) or "") for key in ("job", "uri", "digest")]
    return Output(*parts) if all(parts) else None


def failure_text(failure: Failure) -> str:
    """What `replica_set` reads back from the annotation."""
    return json.dumps({"reason": failure.reason, "message": failure.message, "at": round(failure.at, 3)})


def _blocked(raw: Raw) -> str | None:
    for one in (raw.get("status") or {}).get("conditions") or ():
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
            return str(one.get("message") or one.get("reason") or "pods cannot be created")
    return None


def _json(text: str | None) -> Mapping[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _failure(text: str | None) -> Failure | None:
    value = _json(text)
    if not value:
        # Somebody's own words there still mean that the revision was given up.
        return Failure("Failed", text, 0.0) if text else None
    at = value.get("at")
    at = float(at) if isinstance(at, int | float) else timestamp(at if isinstance(at, str) else None)
    return Failure(str(value.get("reason") or "Failed"), str(value.get("message") or ""), at)


def pod(raw: Raw) -> Pod:
    about, spec, status = meta(raw), raw.get("spec") or {}, raw.get("status") or {}
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    placed = conditions.get("PodScheduled") or {}
    unschedulable = None
    if placed.get("status") == "False" and placed.get("reason") in ("Unschedulable", "SchedulingGated"):
        unschedulable = str(placed.get("message") or placed["reason"])
    phase, lingers = own_phase(status)
    message = ""
    if phase == "Failed" or status.get("reason") in ("NodeLost", "Evicted"):
        message = ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))
    # The kubelet sorts by name; ours first, as troubles and words are looked for in this order.
    beside = sorted(status.get("containerStatuses") or (), key=lambda one: one.get("name") not in OURS)
    containers = [
        *(_container(one, True) for one in status.get("initContainerStatuses") or ()),
        *(_container(one, False) for one in beside),
    ]
    return Pod(
        name=about.get("name", ""),
        uid=about.get("uid", ""),
        revision=sys.intern(labels(raw).get(names.REVISION, "")),
        owner=sys.intern(controller(raw)),
        phase=sys.intern(phase),
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        deleting=bool(about.get("deletionTimestamp")),
        ends_by=timestamp(about.get("deletionTimestamp")),
        ended_at=_ended_at(status) if phase in ("Succeeded", "Failed") else 0.0,
        lingers=lingers,
        created=timestamp(about.get("creationTimestamp")),
        node=spec.get("nodeName") or None,
        ip=status.get("podIP") or None,
        unschedulable=unschedulable,
        message=message,
        containers=tuple(containers),
        looks_as=annotations(raw).get(names.LOOKS_AS, ""),
        patience=float(patience) if (patience := annotations(raw).get(names.PATIENCE, "")).isdecimal() else 0.0,
    )


def _ended_at(status: Raw) -> float:
    """The last thing that a pod's status has a time of: nothing changes in one that has ended."""
    conditions = [one.get("lastTransitionTime") for one in status.get("conditions") or ()]
    ended = [(one.get("state") or {}).get("terminated") or {} for one in status.get("containerStatuses") or ()]
    return max((timestamp(one) for one in (*conditions, *(one.get("finishedAt") for one in ended))), default=0.0)


def _container(status: Raw, init: bool) -> Container:
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated") or {}
    which = next((name for name in ("running", "terminated", "waiting") if state.get(name) is not None), "waiting")
    now = state.get(which) or {}
    return Container(
        name=sys.intern(str(status.get("name", ""))),
        init=init,
        ours=status.get("name") in OURS,
        state=which,  # type: ignore[arg-type]
        reason=sys.intern(str(now.get("reason") or "")),
        message=str(now.get("message") or ""),
        exit_code=now.get("exitCode"),
        restarts=int(status.get("restartCount") or 0),
        last_reason=sys.intern(str(last.get("reason") or "")),
        last_message=str(last.get("message") or ""),
        last_exit_code=last.get("exitCode"),
    )


def ready_endpoints(raw: Raw) -> frozenset[str]:
    """uids of the pods that a slice sends requests to."""
    found = set()
    for one in raw.get("endpoints") or ():
        target, conditions = one.get("targetRef") or {}, one.get("conditions") or {}
        # Unknown counts as ready, says the API.
        if target.get("uid") and conditions.get("ready", True) is not False:
            found.add(target["uid"])
    return frozenset(found)


def node(raw: Raw) -> Node:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in status.get("conditions") or ())
    allocatable: dict[str, int] = {}
    for resource, text in (status.get("allocatable") or {}).items():
        try:
            allocatable[resource] = amount(resource, text)
        except ValueError:
            continue
    return Node(
        name=meta(raw).get("name", ""),
        labels=dict(labels(raw)),
        taints=tuple(
            {key: str(one.get(key) or "") for key in ("key", "value", "effect")} for one in spec.get("taints") or ()
        ),
        usable=ready and not spec.get("unschedulable"),
        cordoned=bool(spec.get("unschedulable")),
        allocatable=allocatable,
        image_volumes=_mounts_images(str((status.get("nodeInfo") or {}).get("containerRuntimeVersion") or "")),
    )


def amount(resource: str, text: Any) -> int:
    """A quantity as the snapshot counts it: processors in thousandths, the rest in ones. Raises ValueError."""
    value = parse_quantity(text)
    return int((value * 1000 if resource == "cpu" else value).to_integral_value(rounding="ROUND_CEILING"))


def _mounts_images(runtime: str) -> bool:
    """`containerd://2.1.4`, `cri-o://1.31.0`: the first versions that mount images as volumes."""
    name, _, version = runtime.partition("://")
    first = {"containerd": (2, 1), "cri-o": (1, 31)}.get(name)
    parts = version.lstrip("v").split(".")
    if first is None or len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return False
    return (int(parts[0]), int(parts[1])) >= first


def requests(raw: Raw) -> dict[str, int]:
    """What the scheduler counts for a pod: the largest init container or the sum of the others, and one pod."""
    spec = raw.get("spec") or {}
    running: dict[str, int] = {}
    for one in spec.get("containers") or ():
        _add(running, one)
    largest: dict[str, int] = {}
    # Init containers that stay (restartPolicy Always) run beside all that come after them.
    staying: dict[str, int] = {}
    for one in spec.get("initContainers") or ():
        mine = dict(staying)
        _add(mine, one)
        if one.get("restartPolicy") == "Always":
            staying = mine
        for resource, count in mine.items():
            largest[resource] = max(largest.get(resource, 0), count)
    total = {key: running.get(key, 0) + staying.get(key, 0) for key in {*running, *staying}}
    for resource, count in largest.items():
        total[resource] = max(total.get(resource, 0), count)
    for resource, text in (spec.get("overhead") or {}).items():
        total[resource] = total.get(resource, 0) + amount(resource, text)
    return {**total, "pods": 1}


def _add(total: dict[str, int], container: Raw) -> None:
    resources = container.get("resources") or {}
    # Without a request the limit counts; extended resources need not repeat it.
    for resource, text in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
        total[resource] = total.get(resource, 0) + amount(resource, text)


def inspection(texts: Iterable[Any]) -> Inspection | None:
    """The first of these texts that is a report of an inspect pod and can be read."""
    for text in texts:
        if isinstance(text, str) and Inspection.is_report(text):
            try:
                return Inspection.decode(text)
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


def page(data: Any, now: float, before: Page | None) -> Page | None:
    """A pod's status page; None when it is none."""
    if not isinstance(data, dict) or data.get("phase") not in PHASES:
        return None
    startup = {key: value for key, value in _mapping(data.get("startup")).items() if isinstance(value, dict)}
    observed = {key: int(value) for key, value in _mapping(data.get("observed")).items() if _number(value)}
    usage = data.get("cacheUsage")
    read = Page(
        read_at=now,
        moved_at=now,
        phase=data["phase"],
        startup=startup,
        observed=observed,
        running=_count(data.get("running")),
        waiting=_count(data.get("waiting")),
        cache_usage=min(1.0, max(0.0, float(usage or 0))) if _number(usage) else 0.0,
    )
    if before is not None and _progress(read) == _progress(before):
        return replace(read, moved_at=before.moved_at)
    return read


def _progress(read: Page) -> tuple[Any, ...]:
    steps = [(name, step.get("bytes")) for name, step in sorted(read.startup.items())]
    return read.phase, *steps


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e18


def _count(value: Any) -> int:
    return max(0, int(value)) if _number(value) else 0
