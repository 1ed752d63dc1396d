"""What a quantization job's status says: only what was observed, each condition with words one can act on."""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.job_progress import Figures, JobProgress
from plimsoll.operator import build
from plimsoll.operator.plan.conditions import Condition, column, condition_of, timestamp, written
from plimsoll.operator.plan.job_admission import JobAdmission
from plimsoll.operator.plan.job_run import Run, percent
from plimsoll.operator.snapshot import BatchJob, Snapshot


def job_status(
    snapshot: Snapshot, admission: JobAdmission, run: Run | None, mine: BatchJob | None, held_up: str | None
) -> dict[str, Any]:
    """The whole status. Keys without a value are left out."""
    before, generation = snapshot.deployment.status, snapshot.deployment.generation
    conditions = _conditions(admission, run, held_up, before)
    found: dict[str, Any] = {
        "observedGeneration": generation,
        "phase": _phase(admission, run),
        "message": _message(admission, run, held_up),
        "startTime": before.get("startTime") or (timestamp(snapshot.now) if mine else None),
        "completionTime": timestamp(run.ended_at or snapshot.now) if run and (run.complete or run.failed) else None,
        "job": mine.name if mine else None,
        "source": _source(admission) or before.get("source"),
        "budget": _budget(snapshot, admission) or before.get("budget"),
        **_worked(run.progress if run else None, run, before, str(snapshot.deployment.spec.get("output", ""))),
        "conditions": written(conditions, before.get("conditions", ()), generation, snapshot.now),
    }
    return {key: value for key, value in found.items() if value is not None}


def _conditions(
    admission: JobAdmission, run: Run | None, held_up: str | None, before: Mapping[str, Any]
) -> list[Condition]:
    accepted, ready = admission.accepted, admission.source_ready
    if run is not None:
        # What has been accepted and is under way is no more judged by a source or a cluster that has changed since.
        accepted, ready = _kept(before, accepted), _kept(before, ready)
    if run is not None and run.complete:
        return [
            accepted, ready,
            Condition("Complete", "True", "Passed", f"The output is written: {run.message}."),
            Condition("Failed", "False", "Passed", "The output is written."),
        ]  # fmt: skip
    if run is not None and run.failed:
        failed = Condition("Failed", "True", run.reason, run.message)
        return [
            accepted, ready, Condition("Complete", "False", run.reason, "The job has failed."), failed,
            Condition("Stalled", "True", failed.reason, failed.message),
        ]  # fmt: skip
    doing = Condition("Complete", "False", "NotStarted", held_up or "The Job is not made yet.")
    if run is not None:
        doing = Condition("Complete", "False", run.reason, run.message)
    found = [
        accepted, ready, doing,
        Condition("Failed", "False", "NotFailed", "Nothing has gone wrong for good."),
    ]  # fmt: skip
    if run is None and accepted.status == "False":
        return [*found, Condition("Stalled", "True", accepted.reason, accepted.message)]
    return [*found, Condition("Reconciling", "True", doing.reason, doing.message)]


def _kept(before: Mapping[str, Any], now: Condition) -> Condition:
    """The condition as it was, where it was true."""
    was = condition_of(before, now.type)
    return Condition(now.type, "True", was["reason"], was.get("message", "")) if was.get("status") == "True" else now


def _phase(admission: JobAdmission, run: Run | None) -> str:
    if run is not None:
        return run.phase
    if admission.accepted.status == "False":
        return "Refused"
    return "Pending" if admission.ok else "Inspecting"


def _message(admission: JobAdmission, run: Run | None, held_up: str | None) -> str:
    """Why it does not go on; empty while it does."""
    if run is not None:
        steps = (run.phase, "Starting", "Ending", "Downloading")
        return (
            "" if run.complete or (run.reason in steps and not run.failed) else column(f"{run.reason}: {run.message}")
        )
    if admission.ok:
        return held_up or ""
    first = admission.source_ready if admission.source_ready.status == "False" else admission.accepted
    return column(first.message)


def _source(admission: JobAdmission) -> dict[str, Any] | None:
    if admission.inspection is None or admission.spec is None:
        return None
    return build.served(admission.spec.model, admission.inspection)


def _budget(snapshot: Snapshot, admission: JobAdmission) -> dict[str, Any] | None:
    needs, spec = admission.needs, admission.spec
    if needs is None or spec is None:
        return None
    disk: dict[str, int] = {"output": needs.output, "scratch": needs.scratch}
    kept = ((snapshot.deployment.status.get("budget") or {}).get("disk") or {}).get("claim")
    claim = next(iter((snapshot.claims or {}).values()), kept)
    if claim is not None:
        disk["claim"] = claim
    memory = {"walk": needs.walk, "sampling": needs.sampling, "evaluation": needs.evaluation}
    found: dict[str, Any] = {"memory": {**memory, "total": build.memory_line(spec, needs)}, "disk": disk}
    if spec.on_gpus:
        found["devices"] = {"count": spec.parallelism.workers, "memory": needs.device}
    return found


def _worked(said: JobProgress | None, run: Run | None, before: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """What the job itself says, written when a reader would notice: layer, percent, minutes."""
    kept = {key: before.get(key) for key in ("progress", "evaluation", "output", "peakMemory", "seconds")}
    if run is not None and run.paused and kept["progress"]:
        kept["progress"] = {key: value for key, value in kept["progress"].items() if key != "eta"}
    if said is None or run is None:
        return kept
    done = run.complete or run.failed
    progress: dict[str, Any] = {"layer": said.layer, "of": said.of, "percent": int(said.percent)}
    was = kept["progress"] or {}
    behind = progress["percent"] < (was.get("percent") or 0)
    # An attempt that goes on where another ended says 0 % until it has read what is there.
    begins = behind and said.phase == "Preparing"
    if begins:
        progress = {key: was[key] for key in ("layer", "of", "percent") if key in was}
    elif behind and said.layer >= (was.get("layer") or 0):
        # No layer is lost: only the estimate of what is left has grown.
        progress["percent"] = was["percent"]
    if said.eta_seconds is not None and not done and not run.paused and not begins:
        progress["eta"] = duration(said.eta_seconds)
    if said.evaluation is not None:
        kept["evaluation"] = _evaluation(said)
    if run.complete and said.output is not None:
        kept["output"] = {"uri": uri, "digest": said.output.digest, "bytes": said.output.bytes}
    if done or progress != kept["progress"]:
        kept |= {"progress": progress, "peakMemory": said.peak_memory, "seconds": int(said.seconds)}
    return kept


def _evaluation(said: JobProgress) -> dict[str, Any]:
    found = said.evaluation
    assert found is not None
    figures: dict[str, Any] = {
        "tokens": found.tokens,
        "before": {"perplexity": round(found.before, 4)},
        "after": _figures(found.after),
        "increase": percent(found.increase),
    }
    if found.round_to_nearest is not None:
        figures["roundToNearest"] = _figures(found.round_to_nearest)
    if found.caches:
        figures["caches"] = [
            {
                "precision": one.precision, "perplexity": round(one.perplexity, 4), "klMean": round(one.kl_mean, 5),
                "top1Agreement": round(one.top1_agreement, 4), "increase": percent(one.increase),
            }
            for one in found.caches
        ]  # fmt: skip
        figures["recommendedCache"] = found.recommended_cache
    return figures


def _figures(found: Figures) -> dict[str, float]:
    return {
        "perplexity": round(found.perplexity, 4), "klMean": round(found.kl_mean, 5), "klP99": round(found.kl_p99, 4),
        "top1Agreement": round(found.top1_agreement, 4),
    }  # fmt: skip


def duration(seconds: float) -> str:
    """For people, and coarse enough that it does not change with every look: `40s`, `12m`, `3h20m`."""
    if seconds < 120:
        return f"{max(10, round(seconds / 10) * 10)}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    tens = round(minutes / 10) * 10
    return f"{tens // 60}h{tens % 60}m" if tens % 60 else f"{tens // 60}h"
