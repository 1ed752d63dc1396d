"""How a quantization job's Job and pods are doing, from what they say: steps, interruptions, the end."""

from dataclasses import dataclass, replace
from typing import Literal

from plimsoll.api.job_progress import JobProgress
from plimsoll.operator import parse_jobs
from plimsoll.operator.build.quantizing import CONTAINER, FINAL_EXIT_CODES, STOPPED_EXIT_CODE
from plimsoll.operator.plan.quota import with_help
from plimsoll.operator.plan.trouble import ASK_AFTER, troubles, words
from plimsoll.operator.shape import timestamp
from plimsoll.operator.snapshot import BatchJob, Container, Pod, Snapshot

#: Seconds in which the last pod's words may still be on their way when its Job is seen to have ended.
PATIENCE = 15.0
_AWAITED = "the last words of the pod are awaited"
_LOST = "the pod was gone before its last words were read; another pod reads the output"
#: Seconds by which a Job's time and the status's may differ, as the API server gives one and the operator the other.
_SAME = 2.0


@dataclass(frozen=True)
class Run:
    """Where it is."""

    phase: str
    reason: str
    """One word for a program: the phase, what holds it up, or why it failed."""
    message: str = ""
    progress: JobProgress | None = None
    """The newest there is, of the pod that runs or of the last one's last words."""
    complete: bool = False
    failed: bool = False
    ended_at: float = 0.0
    again_in: float | None = None
    unheard: bool = False
    """The output is written, and what its pod said of it went with the pod: another pod is to read it."""

    @property
    def paused(self) -> bool:
        """Whether nothing works on it now, so that its end cannot be estimated."""
        return self.reason in ("Interrupted", "Crashed", "Suspended")


def running(snapshot: Snapshot, job: BatchJob) -> Run:
    """The state of `job`, of which `snapshot` has the pods."""
    pods = [pod for pod in snapshot.pods if pod.owner == job.uid]
    job = settled(job, pods, snapshot.now)
    alive = [pod for pod in pods if pod.phase not in ("Succeeded", "Failed")]
    gone = [pod for pod in snapshot.parted if pod.owner == job.uid]
    said = [one for one in (last_words(pod) for pod in reversed([*gone, *pods])) if one is not None]
    progress = next((pod.progress for pod in reversed(alive) if pod.progress), None) or next(iter(said), None)
    if job.ended:
        return _ended(snapshot, job, pods, said[0] if said else None)
    if job.suspended:
        return Run("Pending", "Suspended", _resume(snapshot, job), progress)
    if not alive:
        if job.last_event:
            text = f"no pod can be created: {with_help(words(job.last_event))}"
            return Run(_reached(progress), "PodsRefused", text, progress, again_in=30.0)
        return _between(pods, progress)
    staying = [pod for pod in alive if not pod.deleting]
    if not staying:
        return _ending(alive[-1], progress, snapshot)
    return _alive(staying[-1], pods, progress, snapshot)


def settled(job: BatchJob, pods: list[Pod], now: float) -> BatchJob:
    """`job` as its own container ended, where an injected one keeps the Job controller from seeing that.

    A sidecar that ends by itself within `PATIENCE` lets the Job end as usual. One that failed beside our container has
    the Job start another pod or fail, though the output is written.
    """
    last = next((pod for pod in reversed(pods) if pod.lingers and not _again(pod)), None)
    if last is None or job.ended == "Complete" or (not job.ended and now - last.ended_at < PATIENCE):
        return job
    ended: Literal["Complete", "Failed"] = "Complete" if last.phase == "Succeeded" else "Failed"
    return replace(job, ended=ended, ended_at=last.ended_at, reason="Failed", message="")


def held_back(pods: list[Pod], now: float) -> tuple[Pod | None, float | None]:
    """The pod that has to be deleted for the next one to start, as only an injected container of it runs on; and the
    seconds until any pod that lingers is taken for ended."""
    lingering = [(pod, pod.ended_at + PATIENCE - now) for pod in pods if pod.lingers and not pod.deleting]
    due = next((pod for pod, left in lingering if left <= 0 and _again(pod)), None)
    return due, min((left for _, left in lingering if left > 0), default=None)


def _again(pod: Pod) -> bool:
    """Whether our container ended in a way that another pod is to go on after."""
    container = _container(pod)
    return container is not None and container.exit_code not in (0, *FINAL_EXIT_CODES)


def podless(job: BatchJob, pods: list[Pod], now: float) -> bool:
    """Whether the Job should have a pod by now, and only its events say why it has none."""
    waits = not job.ended and not job.suspended and not job.deleting
    return waits and now - job.created >= ASK_AFTER and not any(pod.owner == job.uid and not pod.ended for pod in pods)


def _resume(snapshot: Snapshot, job: BatchJob) -> str:
    patch = '{"spec":{"suspend":false}}'
    command = f"kubectl patch job {job.name} -n {snapshot.deployment.namespace} -p '{patch}'"
    return f"Job {job.name} is suspended, so that it has no pod. Where no queue did that, undo it by: {command}"


def last_words(pod: Pod) -> JobProgress | None:
    """What the job's container left in its termination message; None while it runs, or when that is no progress."""
    container = _container(pod)
    if container is None or container.state != "terminated":
        return None
    return parse_jobs.progress(container.message)


def _container(pod: Pod) -> Container | None:
    return next((one for one in pod.containers if one.name == CONTAINER and not one.init), None)


def _alive(pod: Pod, pods: list[Pod], progress: JobProgress | None, snapshot: Snapshot) -> Run:
    found = troubles([pod], float("inf"), snapshot.now, snapshot.nodes)
    if found:
        return Run("Pending", found[0].reason, f"pod {pod.name}: {found[0].message}", progress)
    if pod.progress is not None:
        return Run(pod.progress.phase, pod.progress.phase, _step(pod.progress), pod.progress)
    if pod.page is not None and pod.page.phase == "downloading":
        return Run("Downloading", "Downloading", "the checkpoint is being fetched", progress)
    resumed = " goes on where the last one was" if len(pods) > 1 else " starts"
    where = resumed if pod.node else " waits for a node"
    return Run(progress.phase if progress else "Pending", "Starting", f"pod {pod.name}{where}", progress)


def _step(progress: JobProgress) -> str:
    if progress.phase in ("Complete", "Failed"):
        return "the pod is ending"
    layers = f", layer {progress.layer} of {progress.of}" if progress.of and progress.phase == "Quantizing" else ""
    return f"{progress.message or progress.phase.lower()}{layers}"


def _ending(pod: Pod, progress: JobProgress | None, snapshot: Snapshot) -> Run:
    """Of the one pod there is; on a node that is dead it stays so until the node comes back or is deleted."""
    lost = any(node.name == pod.node and node.not_ready for node in snapshot.nodes or ())
    where = f" on node {pod.node}{', which is NotReady' if lost else ''}" if pod.node else ""
    text = f"pod {pod.name} is ending{where}; the next one starts once it is gone"
    return Run(_reached(progress), "Interrupted", text, progress)


def _reached(progress: JobProgress | None) -> str:
    return progress.phase if progress and progress.phase not in ("Complete", "Failed") else "Pending"


def _between(pods: list[Pod], progress: JobProgress | None) -> Run:
    phase = _reached(progress)
    if not pods:
        return Run(phase, "Starting", "the Job's pod is about to be created", progress)
    pod = pods[-1]
    container = _container(pod)
    if pod.phase == "Succeeded" or (container is not None and container.exit_code in FINAL_EXIT_CODES):
        # The Job is about to say the same.
        return Run(phase if phase != "Pending" else "Evaluating", "Ending", f"pod {pod.name} has ended", progress)
    text = f"pod {pod.name} {_why(pod)}; the next one goes on where it was"
    return Run(phase, "Interrupted" if _was_stopped(pod) else "Crashed", text, progress)


def _was_stopped(pod: Pod) -> bool:
    container = _container(pod)
    evicted = pod.message.partition(":")[0] in ("Evicted", "NodeLost", "Preempting", "Terminated", "NodeShutdown")
    return evicted or (container is not None and container.exit_code == STOPPED_EXIT_CODE)


def _why(pod: Pod) -> str:
    container = _container(pod)
    if container is not None and container.reason == "OOMKilled":
        return "was killed for taking more memory than its limit"
    if _was_stopped(pod):
        return "was evicted or deleted"
    failed = [c for c in pod.containers if c.state == "terminated" and c.exit_code]
    ended = next((c for c in failed if c is container), next(iter(failed), None))
    if ended is None:
        return words(pod.message) or "ended"
    said = last_words(pod)
    text = words((said.message if said else ended.message) or "")
    return f"exited with {ended.exit_code}{f': {text}' if text else ''}"


def _ended(snapshot: Snapshot, job: BatchJob, pods: list[Pod], said: JobProgress | None) -> Run:
    """The Job's end is believed; what it came to is in the last pod's words, which may be a moment late."""
    waited = snapshot.now - job.ended_at
    unread = not pods or any(pod.phase not in ("Succeeded", "Failed") for pod in pods)
    if job.ended == "Complete":
        if said is not None and said.phase == "Complete" and said.output is not None:
            return Run("Complete", "Complete", _loss(said), said, complete=True, ended_at=job.ended_at)
        if waited < PATIENCE:
            return Run("Evaluating", "Ending", _AWAITED, said, again_in=PATIENCE - waited)
        if not pods and _first(snapshot, job):
            return Run("Evaluating", "ReportLost", _LOST, said, unheard=True)
        text = "the Job is complete and its pod's last words are not: look into the claim, or make the job again"
        return Run("Failed", "NoReport", text, said, failed=True, ended_at=job.ended_at)
    if (said is None or said.phase != "Failed") and unread and waited < PATIENCE:
        return Run("Pending", "Ending", _AWAITED, said, again_in=PATIENCE - waited)
    if said is not None and said.phase == "Failed":
        reason, text = said.reason or "Failed", said.message or "the job gave no reason"
    else:
        reason, text = _crash(job, pods)
    return Run("Failed", reason, text, said, failed=True, ended_at=job.ended_at)


def _first(snapshot: Snapshot, job: BatchJob) -> bool:
    """Whether this Job is the one that the status began with, and none made after it."""
    return job.created <= timestamp(snapshot.deployment.status.get("startTime")) + _SAME


def _crash(job: BatchJob, pods: list[Pod]) -> tuple[str, str]:
    last = pods[-1] if pods else None
    container = _container(last) if last else None
    if last is not None and container is not None and container.reason == "OOMKilled":
        fix = "Raise accelerator.memory (on GPUs pod.memory)"
        return "OutOfMemory", f"pod {last.name} {_why(last)}, {job.message}. {fix}"
    if last is not None:
        return "Crashed", f"pod {last.name} {_why(last)}. {job.message}"
    return job.reason or "Failed", job.message or "the Job has failed"


def _loss(said: JobProgress) -> str:
    found = said.evaluation
    if found is None:
        return "the output is written and was not measured"
    return (
        f"perplexity {found.before:.4g} before and {found.after.perplexity:.4g} after ({percent(found.increase)}), "
        f"KL divergence {found.after.kl_mean:.3g}"
    )


def percent(share: float) -> str:
    """A share as a percentage with a sign and three digits."""
    return f"{100 * share:+.3g}%"
