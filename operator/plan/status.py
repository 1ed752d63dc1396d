"""What a deployment's status says: only what was observed, each condition with words one can act on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plimsoll.operator import build, names
from plimsoll.operator.plan.admission import Admission
from plimsoll.operator.plan.conditions import Condition, Truth, column, written
from plimsoll.operator.plan.quantized import FAILED, WAITING
from plimsoll.operator.plan.quota import with_help
from plimsoll.operator.plan.rollout import Revision, Stage
from plimsoll.operator.plan.serving import serving
from plimsoll.operator.plan.trouble import Trouble, words
from plimsoll.operator.snapshot import Page, Pod, Snapshot


@dataclass(frozen=True)
class Rolling:
    """Where the pods are, once there may be any."""

    desired: int
    new: Revision | None
    others: tuple[Revision, ...]
    stage: Stage
    troubles: tuple[Trouble, ...]
    """Of the wanted revision's pods and, while others should serve, of theirs."""
    room: int | None = None
    """Pods that free devices would take now; None: not known."""


def status(snapshot: Snapshot, admission: Admission, rolling: Rolling, revision: str | None) -> dict[str, Any]:
    """The whole status. Keys without a value are left out."""
    before = snapshot.deployment.status
    generation = snapshot.deployment.generation
    conditions = _conditions(admission, rolling)
    ready = next(condition for condition in conditions if condition.type == "Ready")
    sets = (*rolling.others, *((rolling.new,) if rolling.new else ()))
    newest = [pod for pod in (rolling.new.pods if rolling.new else ()) if not pod.deleting and not pod.ended]
    found: dict[str, Any] = {
        "observedGeneration": generation,
        "phase": _phase(admission, rolling, conditions),
        "message": "" if ready.status == "True" else column(ready.message),
        "endpoint": _endpoint(snapshot) if sets else None,
        "ready": f"{rolling.new.available if rolling.new else 0}/{rolling.desired}",
        "replicas": sum(sum(not pod.ended for pod in s.pods) for s in sets),
        "readyReplicas": sum(s.available for s in sets),
        "updatedReplicas": rolling.new.available if rolling.new else 0,
        "selector": ",".join(f"{key}={value}" for key, value in _chosen(snapshot).items()),
        "revision": revision,
        "source": _source(admission, rolling, before),
        "budget": admission.kept or (build.described(admission.budget) if admission.budget else None),
        "observed": _observed(newest, before),
        "serving": before.get("serving") if _unread(newest) else serving(newest),
        "startup": _startup(newest, before),
        "load": _load(sets, before),
        "conditions": written(conditions, before.get("conditions", ()), generation, snapshot.now),
    }
    return {key: value for key, value in found.items() if value is not None}


def _chosen(snapshot: Snapshot) -> Mapping[str, str]:
    """The labels that autoscalers count by: of a group its leader alone."""
    chosen = names.selector(snapshot.deployment.name)
    return {**chosen, names.INDEX: names.LEADS} if snapshot.leaders else chosen


def _conditions(admission: Admission, rolling: Rolling) -> list[Condition]:
    ready = _ready(admission, rolling)
    progressing = _progressing(admission, rolling)
    degraded = _degraded(rolling, ready)
    found = [admission.accepted, _source_ready(admission, rolling), progressing, ready, degraded]
    # kstatus: these two are there only while they are true.
    stuck = admission.accepted if admission.accepted.status == "False" else admission.stuck
    if stuck is None and (rolling.stage is Stage.FAILED or any(t.fatal for t in rolling.troubles)):
        stuck = degraded
    # While a job makes the next output, what it is to replace serves and is ready.
    doing = admission.source_ready if admission.source_ready.reason == WAITING else progressing
    if stuck is not None:
        found.append(Condition("Stalled", "True", stuck.reason, stuck.message))
    elif progressing.status == "True" or doing is admission.source_ready:
        found.append(Condition("Reconciling", "True", doing.reason, doing.message))
    return found


def _source_ready(admission: Admission, rolling: Rolling) -> Condition:
    """With what the pods go on serving, where the source has been inspected again since and leads elsewhere."""
    found, served = admission.inspection, rolling.new.set.source if rolling.new else {}
    if found is None or not served or (served.get("digest"), served.get("revision")) == (found.digest, found.revision):
        return admission.source_ready
    text = (
        f"{admission.source_ready.message}; this revision was made from {served.get('revision')} and goes on serving "
        "that: name the new one in spec.model.source to roll it out"
    )
    return replace(admission.source_ready, message=text)


def _ready(admission: Admission, rolling: Rolling) -> Condition:
    """Every wanted replica of this generation has loaded, generated a token, and is routable."""
    if not admission.ok:
        first = admission.accepted if admission.source_ready.status != "False" else admission.source_ready
        kept = sum(revision.available for revision in rolling.others) + (rolling.new.available if rolling.new else 0)
        also = f" An earlier revision goes on serving on {kept} replicas." if kept else ""
        return Condition("Ready", "False", first.reason, first.message + also)
    serving = rolling.new.available if rolling.new else 0
    if rolling.stage is Stage.FAILED:
        words = rolling.troubles[0].message if rolling.troubles else ""
        failure = rolling.new.set.failure if rolling.new else None
        text = f"This revision failed: {failure.message if failure else words}"
        return Condition("Ready", "False", "RolloutFailed", text)
    if serving >= rolling.desired:
        if rolling.desired == 0:
            return Condition("Ready", "True", "ScaledToZero", "No replica is wanted.")
        return Condition("Ready", "True", "Serving", f"{serving} of {rolling.desired} replicas serve.")
    count = f"{serving} of {rolling.desired} replicas of this revision serve"
    if rolling.new and rolling.new.set.blocked:
        why = with_help(rolling.new.set.blocked)
        return Condition("Ready", "False", "PodsRefused", f"{count}; no pod can be created: {why}")
    if rolling.troubles:
        first_trouble = rolling.troubles[0]
        text = f"{count}; pod {first_trouble.pod}: {first_trouble.message}"
        return Condition("Ready", "False", first_trouble.reason, text)
    return Condition("Ready", "False", "NotReady", f"{count}; {_doing(rolling)}")


#: Troubles of a pod that had got further: what its page or its containers said last is old.
_SINCE = frozenset({"NodeNotReady", "Unready", "Restarted", "Stalled"})
_LOOK = "(if this stays, `kubectl describe pod` names the image, claim or Secret it waits for)"


def _doing(rolling: Rolling) -> str:
    newest = rolling.new.pods if rolling.new else ()
    pods = [pod for pod in newest if not pod.ready and not pod.deleting and not pod.ended]
    for pod in pods:
        since = next((one for one in rolling.troubles if one.pod == pod.name and one.reason in _SINCE), None)
        if since is not None:
            return f"pod {pod.name}: {since.message}"
        if pod.page is not None and pod.node:
            return f"pod {pod.name} is {pod.page.phase}"
        waits = next((c for c in pod.containers if c.state == "waiting" and c.reason), None)
        if waits:
            # The kubelet tells of a volume or a Secret that is missing in events alone.
            more = waits.message or words(pod.last_event) or (_LOOK if waits.reason == "ContainerCreating" else "")
            return f"pod {pod.name} waits: {waits.reason} {more}".rstrip()
    if pods:
        return f"pod {pods[0].name} starts" if pods[0].node else f"pod {pods[0].name} waits for a node"
    if rolling.stage is Stage.REPLACING:
        return "an old replica drains first" + (", as no device is free for one more" if rolling.room == 0 else "")
    return "pods are about to be created"


def _progressing(admission: Admission, rolling: Rolling) -> Condition:
    if admission.accepted.status == "False":
        return Condition(
            "Progressing", "False", admission.accepted.reason, "Nothing is under way: the spec is refused."
        )
    if not admission.ok:
        truth: Truth = "False" if admission.stuck else "True"
        return Condition("Progressing", truth, admission.source_ready.reason, admission.source_ready.message)
    if rolling.stage is Stage.FAILED:
        text = "The rollout has stopped; the last revision that proved itself serves. Change the spec to try again."
        return Condition("Progressing", "False", "RolloutFailed", text)
    if rolling.stage is Stage.COMPLETE:
        return Condition("Progressing", "False", "Complete", "What is wanted is there.")
    text = {
        Stage.SCALING: "Pods are being created or ended.",
        Stage.SURGING: "New replicas start beside the old ones, on free devices.",
        Stage.REPLACING: "Old replicas are drained and replaced in turn.",
        Stage.WAITING: "One more replica waits for a free device; rollout.strategy Auto or Replace would not wait.",
    }[rolling.stage]
    if rolling.stage is Stage.REPLACING and rolling.room == 0:
        text = "No device is free for one more replica: old ones are drained and replaced in turn."
    doing = _doing(rolling)
    # Not str.capitalize, which would spell ContainerCreating in small letters.
    return Condition("Progressing", "True", rolling.stage.value, f"{text} {doing[:1].upper()}{doing[1:]}.")


def _degraded(rolling: Rolling, ready: Condition) -> Condition:
    """Something that should serve does not; the container's own words are in the message."""
    if rolling.stage is Stage.FAILED and rolling.new and rolling.new.set.failure:
        failure = rolling.new.set.failure
        return Condition("Degraded", "True", failure.reason, failure.message)
    fatal = [trouble for trouble in rolling.troubles if trouble.fatal]
    if fatal:
        return Condition("Degraded", "True", fatal[0].reason, f"pod {fatal[0].pod}: {fatal[0].message}")
    known_good = rolling.new is not None and rolling.new.set.proven and rolling.new.available < rolling.new.set.replicas
    if known_good and rolling.stage is Stage.SCALING and ready.status != "True" and rolling.troubles:
        first = rolling.troubles[0]
        return Condition("Degraded", "True", first.reason, f"pod {first.pod}: {first.message}")
    return Condition("Degraded", "False", "AsExpected", "Nothing that should serve fails to.")


def _phase(admission: Admission, rolling: Rolling, conditions: Sequence[Condition]) -> str:
    """One word for a list; the conditions say the rest."""
    by_type = {condition.type: condition for condition in conditions}
    if admission.accepted.status == "False":
        return "Refused"
    if by_type["Degraded"].status == "True":
        return "Degraded"
    if not admission.ok:
        return "Quantizing" if admission.source_ready.reason in (WAITING, FAILED) else "Inspecting"
    if by_type["Ready"].status == "True":
        return "Stopped" if rolling.desired == 0 else "Ready" if rolling.stage is Stage.COMPLETE else "Updating"
    if any(revision.set.replicas for revision in rolling.others):
        return "Updating"
    starting = [pod for pod in (rolling.new.pods if rolling.new else ()) if not pod.ready and not pod.ended]
    phases = {pod.page.phase for pod in starting if pod.page}
    return "Downloading" if "downloading" in phases else "Loading" if phases & {"loading", "warming"} else "Pending"


def _endpoint(snapshot: Snapshot) -> str:
    deployment = snapshot.deployment
    return f"http://{deployment.name}.{deployment.namespace}:{names.HTTP_PORT}/v1"


def _source(admission: Admission, rolling: Rolling, before: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What serves, of the newest revision that does; before any does, what will. A source that was inspected again
    since is no part of it: what that found is served by revisions to come."""
    sets = [*rolling.others, *((rolling.new,) if rolling.new else ())]
    serving = [one.set.source for one in reversed(sets) if one.available and one.set.source]
    if serving:
        return serving[0]
    if rolling.new is not None and rolling.new.set.source:
        return rolling.new.set.source
    if admission.inspection is not None and admission.spec is not None:
        return build.served(admission.spec.model, admission.inspection)
    kept: Mapping[str, Any] | None = before.get("source")
    return kept


def _unread(pods: Iterable[Pod]) -> bool:
    """Whether a new leader has yet to read what some replica says: till then what was said last stands."""
    return any(pod.ready and pod.unread and not pod.deleting for pod in pods)


def _observed(pods: Sequence[Pod], before: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The most that any replica was measured at, and of each rank where there are several."""
    if _unread(pods):
        kept: Mapping[str, Any] | None = before.get("observed")
        return kept
    pages = [pod.page for pod in pods if pod.page]
    found: dict[str, Any] = _most([page.observed for page in pages])
    ranks = max((len(page.ranks) for page in pages), default=0)
    if ranks:
        found["ranks"] = [
            _most([page.ranks[rank] for page in pages if rank < len(page.ranks)]) for rank in range(ranks)
        ]
    return found or None


def _most(measured: Sequence[Mapping[str, int]]) -> dict[str, int]:
    terms = {term for one in measured for term in one}
    return {term: max(one.get(term, 0) for one in measured) for term in sorted(terms)}


def _startup(pods: Sequence[Pod], before: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The time line of the replica that starts now, else of the one that was slowest to."""
    starting = [pod.page for pod in pods if pod.page and not pod.ready and pod.page.startup]
    done = [pod.page for pod in pods if pod.page and pod.ready and pod.page.startup]
    if starting:
        return _steps(min(starting, key=lambda page: page.moved_at))
    if done and not _unread(pods):
        return _steps(max(done, key=lambda page: sum(step.get("seconds", 0.0) for step in page.startup.values())))
    kept: Mapping[str, Any] | None = before.get("startup")
    return kept


def _steps(page: Page) -> Mapping[str, Any]:
    return {**page.startup, "ranks": list(page.rank_loads)} if page.rank_loads else page.startup


def _load(sets: Iterable[Revision], before: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How busy the replicas are, in steps coarse enough that a steady load writes nothing."""
    pods = [pod for revision in sets for pod in revision.pods if not pod.deleting and not pod.ended]
    if _unread(pods):
        kept: Mapping[str, Any] | None = before.get("load")
        return kept
    pages = [pod.page for pod in pods if pod.page]
    if not pages:
        return None
    running, waiting = sum(page.running for page in pages), sum(page.waiting for page in pages)
    usage = 5 * round(20 * max(page.cache_usage for page in pages))
    old: Mapping[str, Any] = before.get("load") or {}
    was = old.get("runningRequests", -1), old.get("waitingRequests", -1), old.get("cacheUsage", -1)
    near = all(
        (then == 0) == (now == 0) and then >= 0 and max(then, now) <= 2 * min(then, now) + 1
        for then, now in zip(was[:2], (running, waiting), strict=True)
    )
    if near and abs(was[2] - usage) < 10:
        return old
    summary = f"{running} running, {waiting} waiting, cache {usage}%" if running or waiting else "idle"
    return {"runningRequests": running, "waitingRequests": waiting, "cacheUsage": usage, "summary": summary}
