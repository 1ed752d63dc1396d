"""From one quantization job's snapshot to everything that should be done about it now.

As the planner of deployments: nothing is remembered between two looks but what the cluster holds. One batch/v1 Job is
made once what is wanted is known to fit; from then on it is watched, and what its pods say becomes status.
"""

from collections.abc import Iterator

from plimsoll.operator import build
from plimsoll.operator.actions import Action, Apply, Delete, Plan, ordered
from plimsoll.operator.plan.conditions import condition_of
from plimsoll.operator.plan.inspecting import inspecting
from plimsoll.operator.plan.job_admission import JobAdmission, admit_job
from plimsoll.operator.plan.job_run import held_back, podless, running
from plimsoll.operator.plan.job_status import job_status
from plimsoll.operator.plan.transitions import transitions
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import BatchJob, Snapshot


def plan_job(snapshot: Snapshot, settings: Settings) -> Plan:
    """What to do, what to say, and when to look again."""
    if snapshot.deployment.deleting:
        # Owner references take everything along.
        return Plan()
    mine = _mine(snapshot)
    if finished(snapshot):
        # What has ended stays ended, when its Job is gone too.
        return Plan(tuple(_held_open(mine)))
    admission = admit_job(snapshot, settings)
    run = running(snapshot, mine) if mine else None
    asks = False
    actions: list[Action] = []
    again: list[float | None] = []
    if run is None:
        looks, look_in = inspecting(snapshot, admission, settings)
        actions += looks
        again.append(look_in)
        if snapshot.claims is not None and not admission.ok:
            # No watch reports a claim that has grown.
            again.append(60.0)
    else:
        assert mine is not None
        stuck, look_in = held_back([pod for pod in snapshot.pods if pod.owner == mine.uid], snapshot.now)
        if stuck is not None and not mine.ended:
            actions.append(Delete("Pod", stuck.name, "only an injected container runs on: the next pod goes on"))
        if run.unheard and not mine.deleting:
            actions.append(
                Delete("Job", mine.name, "its pod's last words were not read: the next pod reads the output")
            )
        asks = podless(mine, list(snapshot.pods), snapshot.now)
        waits = None if any(pod.owner == mine.uid for pod in snapshot.pods) or mine.ended else 10.0
        again += [run.again_in, look_in, waits]
    actions += _policy(snapshot, admission, settings)
    actions += _leftovers(snapshot, mine)
    held_up = _held_up(snapshot, mine)
    if run is None and admission.ok and not held_up:
        assert admission.spec is not None
        assert admission.inspection is not None
        assert admission.needs is not None
        volumes = settings.image_volumes == "auto" and snapshot.image_volumes
        made = build.job(
            snapshot.deployment, admission.spec, admission.inspection, admission.needs, settings,
            image_volumes=volumes, placing=admission.placing,
        )  # fmt: skip
        actions.append(Apply(made, "quantize"))
    found = job_status(snapshot, admission, run, mine, held_up)
    return Plan(
        actions=ordered(actions),
        status=found,
        events=transitions(snapshot.deployment.status.get("conditions", ()), found["conditions"]),
        needs_claims=admission.needs_claims if run is None else (),
        needs_events=asks and not (mine and mine.last_event),
        again_in=min((one + 0.5 for one in again if one is not None), default=None),
    )


def finished(snapshot: Snapshot) -> bool:
    """Whether the end is in the status: it was reached once, and nothing takes it back."""
    return any(condition_of(snapshot.deployment.status, end).get("status") == "True" for end in ("Complete", "Failed"))


def _held_open(mine: BatchJob | None) -> Iterator[Action]:
    """Ends a Job whose own container has ended and which an injected one holds open.

    Another pod of it would be made if only the pod were deleted. The status is written by now, and keeps the end.
    """
    if mine is not None and not mine.ended and not mine.deleting:
        yield Delete("Job", mine.name, "its container has ended, and an injected one runs on")


def _mine(snapshot: Snapshot) -> BatchJob | None:
    """The Job of this object and this spec; one that a spec before it made is none, as long as that never started."""
    name, uid = build.job_name(snapshot.deployment), snapshot.deployment.uid
    return next((one for one in snapshot.batch_jobs if (one.name, one.owner) == (name, uid)), None)


def _policy(snapshot: Snapshot, admission: JobAdmission, settings: Settings) -> Iterator[Action]:
    if admission.spec is None or not admission.ok:
        return
    policy = build.job_policy(snapshot.deployment, admission.spec, settings)
    live = snapshot.children.get(("NetworkPolicy", policy["metadata"]["name"]))
    if live is None or build.differs(policy, live):
        yield Apply(policy, "missing" if live is None else "put back")


def _leftovers(snapshot: Snapshot, mine: BatchJob | None) -> Iterator[Action]:
    """Jobs of a spec that has been corrected since. What an earlier object owned goes with that."""
    for one in snapshot.batch_jobs:
        if one.owner == snapshot.deployment.uid and one is not mine and not one.deleting:
            yield Delete("Job", one.name, "the spec has changed")


def _held_up(snapshot: Snapshot, mine: BatchJob | None) -> str | None:
    """Why the Job is not made yet though all else is right: two must not write to one place."""
    if mine is not None:
        return None
    left = next((pod for pod in snapshot.pods if pod.phase not in ("Succeeded", "Failed")), None)
    return f"pod {left.name} of an earlier job of this name is ending" if left else None
