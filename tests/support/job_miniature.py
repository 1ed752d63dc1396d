"""A cluster in miniature for quantization jobs: Job controller, kubelet and the job itself, one move at a time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from plimsoll.api.inspection import Inspection
from plimsoll.api.job_progress import CacheFigures, Evaluation, Figures, JobProgress, Output
from plimsoll.operator import parse
from plimsoll.operator.actions import Apply, Delete, Plan, Record
from plimsoll.operator.plan import plan_job
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import BatchJob, Container, Deployment, Inspecting, Node, Pod, Snapshot
from tests.support.miniature import GIB, inspection

DIGEST = "sha256:" + "5a" * 32
LAYERS = 4
_FIGURES = Figures(perplexity=13.4, kl_mean=0.19, kl_p99=1.5, top1_agreement=0.83)
_CACHES = [
    CacheFigures(precision="int8", perplexity=13.401, kl_mean=0.0004, top1_agreement=0.99, increase=0.0001),
    CacheFigures(precision="int4", perplexity=13.6, kl_mean=0.013, top1_agreement=0.93, increase=0.0149),
]
EVALUATION = Evaluation(
    tokens=4096, before=11.0, after=_FIGURES, round_to_nearest=None, increase=0.218, caches=_CACHES,
    recommended_cache="int4",
)  # fmt: skip


def job_spec(**changes: Any) -> dict[str, Any]:
    found = {"model": {"source": "pvc://models/smollm2"}, "weights": {"groupSize": 64}, "output": "pvc://models/awq"}
    return {**found, **changes}


@dataclass
class JobCluster:
    """Carries plans out as the API server and its controllers would."""

    spec: dict[str, Any] = field(default_factory=job_spec)
    found: Inspection | None = field(default_factory=inspection)
    nodes: tuple[Node, ...] | None = (Node("n1", allocatable={"cpu": 8000, "memory": 16 * GIB, "pods": 110}),)
    claim: int | None = 64 * GIB
    settings: Settings = field(default_factory=Settings)
    outcome: str = "Complete"
    """What the job comes to: Complete, GateFailed, or Crash, again and again."""
    uid: str = "uid-1"
    now: float = 1_000_000.0
    generation: int = 1
    status: Mapping[str, Any] = field(default_factory=lambda: {"observedGeneration": 0})  # by the CRD
    children: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    batch: BatchJob | None = None
    earlier: tuple[BatchJob, ...] = ()
    pods: list[Pod] = field(default_factory=list)
    parted: tuple[Pod, ...] = ()
    """Pods that ended and are gone."""
    rivals: tuple[str, ...] = ()
    inspector: Pod | None = None
    recorded: bool = False
    reached: int = 0
    """Layers that lie on the claim, whatever became of the pods."""
    writes: int = 0
    made: int = 0
    crashes: int = 0
    events: list[str] = field(default_factory=list)

    def snapshot(self, claims: Mapping[str, int] | None = None) -> Snapshot:
        job = Deployment(
            "ns", "demo", self.uid, self.generation, self.spec, self.status, kind="QuantizationJob"
        )  # fmt: skip
        found = self.found if self.recorded or (self.inspector and self.inspector.phase == "Succeeded") else None
        return Snapshot(
            job, self.now, Inspecting("key", found, None, self.inspector), pods=tuple(self.pods),
            children=dict(self.children), nodes=self.nodes, rivals=self.rivals, claims=claims,
            batch_jobs=(*self.earlier, *((self.batch,) if self.batch else ())), parted=self.parted,
        )  # fmt: skip

    def look(self) -> Plan:
        found = plan_job(self.snapshot(), self.settings)
        if found.needs_claims:
            known = {} if self.claim is None else dict.fromkeys(found.needs_claims, self.claim)
            found = plan_job(self.snapshot(known), self.settings)
            assert not found.needs_claims
        return found

    def act(self) -> Plan:
        found = self.look()
        for action in found.actions:
            self.writes += 1
            self._carry_out(action)
        if found.status and found.status != self.status:
            self.writes += 1
            self.status = json.loads(json.dumps(found.status))
        self.events += [f"{event.type} {event.reason}" for event in found.events]
        return found

    def _carry_out(self, action: object) -> None:
        match action:
            case Apply(object=one) if one["kind"] == "Pod":
                self.inspector = replace(parse.pod(one), created=self.now, node="n1")
            case Apply(object=one) if one["kind"] == "Job":
                assert self.batch is None, "a Job is made once"
                self.made += 1
                name = one["metadata"]["name"]
                uid = f"uid-{name}" if self.made == 1 else f"uid-{name}-{self.made}"
                self.batch = BatchJob(name, uid, self.uid, created=self.now)
                self.children["Job", one["metadata"]["name"]] = one
            case Apply(object=one):
                self.children[one["kind"], one["metadata"]["name"]] = one
            case Delete(kind="Job", name=name):
                assert self.batch is not None
                assert self.batch.name == name
                self.batch, self.pods = None, []
            case Delete(kind="Pod", name=name):
                if self.inspector is not None and self.inspector.name == name:
                    self.inspector = None
            case Record():
                self.recorded, self.inspector = True, None
            case _:
                raise AssertionError(f"nobody carries out {action}")

    def others_move(self, evict: bool = False) -> None:
        self.now += 3
        if self.inspector is not None and self.inspector.phase == "Pending":
            self.inspector = replace(self.inspector, phase="Succeeded")
        if self.batch is None or self.batch.ended:
            return
        alive = next((pod for pod in self.pods if pod.phase not in ("Succeeded", "Failed")), None)
        if alive is None:
            name = f"{self.batch.name}-{len(self.pods)}"
            self.pods.append(Pod(name, f"uid-{name}", owner=self.batch.uid, created=self.now, node="n1", ip="10.0.0.1"))
        elif evict:
            self._end(alive, 143, None)
        elif self.outcome == "Crash" and self.reached == 2:
            self.crashes += 1
            self._end(alive, 137, None)
            if self.crashes > self.spec.get("backoffLimit", 6):
                self._job_ends("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif self.reached < LAYERS:
            self.reached += 1 if alive.progress else 0
            self._says(alive, JobProgress(
                phase="Quantizing", layer=self.reached, of=LAYERS, percent=80 * self.reached / LAYERS,
                eta_seconds=60.0, seconds=self.now % 1000, peak_memory=GIB,
            ))  # fmt: skip
        else:
            self._conclude(alive)

    def _conclude(self, pod: Pod) -> None:
        passed = self.outcome == "Complete"
        said = JobProgress(
            phase="Complete" if passed else "Failed", layer=LAYERS, of=LAYERS, percent=100, seconds=90,
            peak_memory=GIB, evaluation=EVALUATION, output=Output(digest=DIGEST, bytes=1 << 27),
            reason=None if passed else "GateFailed",
            message=None if passed else "perplexity rose by 21.8 %, 2 % are allowed",
        )  # fmt: skip
        self._end(pod, 0 if passed else 3, said)
        if passed:
            self._job_ends("Complete", "CompletionsReached", "")
        else:
            self._job_ends("Failed", "PodFailurePolicy", "Container quantize failed with exit code 3")

    def _says(self, pod: Pod, progress: JobProgress) -> None:
        self.pods[self.pods.index(pod)] = replace(pod, phase="Running", progress=progress)

    def _end(self, pod: Pod, code: int, said: JobProgress | None) -> None:
        container = Container(
            "quantize", state="terminated", exit_code=code, message=said.encode().decode() if said else "",
            reason="OOMKilled" if code == 137 else "Error",
        )  # fmt: skip
        ended = replace(pod, phase="Failed" if code else "Succeeded", containers=(container,), progress=None)
        self.pods[self.pods.index(pod)] = ended

    def _job_ends(self, ended: Any, reason: str, message: str) -> None:
        assert self.batch is not None
        self.batch = replace(self.batch, ended=ended, reason=reason, message=message, ended_at=self.now)

    def settle(self, rounds: int = 40, evict: Any = frozenset()) -> Plan:
        for number in range(rounds):
            self.act()
            self.others_move(number in evict)
        return self.act()

    def condition(self, kind: str) -> Mapping[str, Any]:
        return next((c for c in self.status["conditions"] if c["type"] == kind), {})
