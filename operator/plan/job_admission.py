"""Whether a quantization job may run: its words, its source, its arithmetic, before any pod of it exists."""

from dataclasses import dataclass

from plimsoll.api.dataset import parse_dataset
from plimsoll.api.device import CUDA_BUILD_BYTES
from plimsoll.api.errors import DoesNotFitError, PlimsollError, SpecError
from plimsoll.api.inspection import Inspection
from plimsoll.api.job_budget import (
    DEFAULT_LENGTH,
    JobLoad,
    JobNeeds,
    default_samples,
    job_needs,
    largest_group,
)
from plimsoll.api.job_ways import ON_GPUS, JobNames, check_disk, check_memory, memory_ways
from plimsoll.api.manifest import parse_job_spec
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantity import format_bytes
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.api.source import parse_source
from plimsoll.api.ways_out import MIB
from plimsoll.operator.build.placing import Placing
from plimsoll.operator.build.quantizing import BESIDE_BYTES
from plimsoll.operator.plan.admission import NOT_LOOKED_AT, Asked, check_image, looked_at, refused
from plimsoll.operator.plan.capacity import tolerates
from plimsoll.operator.plan.conditions import Condition
from plimsoll.operator.plan.devices import able_nodes, allowed
from plimsoll.operator.plan.job_devices import job_placing
from plimsoll.operator.plan.permission import check_account, check_allowed, check_source
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Snapshot


@dataclass(frozen=True)
class JobAdmission(Asked):
    """Whether a QuantizationJob is accepted, and what it needs."""

    spec: QuantizationJobSpec | None = None
    needs: JobNeeds | None = None
    placing: Placing | None = None
    """Of GPUs: which nodes' devices hold the search."""
    needs_claims: tuple[str, ...] = ()
    """Whose size has to be known to go on."""

    @property
    def ok(self) -> bool:
        return self.needs is not None and self.accepted.status == "True"


def admit_job(snapshot: Snapshot, settings: Settings) -> JobAdmission:
    """Goes as far as what is known allows; what stops it is in the conditions."""
    try:
        spec = parse_job_spec(snapshot.deployment.spec)
        check_source(spec.model, spec.pod, settings)
        check_account(spec.pod, snapshot.deployment.namespace, settings)
        check_image(spec, settings)
        _check_places(spec)
        _check_texts(spec, settings)
    except PlimsollError as error:
        return JobAdmission(refused(error), NOT_LOOKED_AT)
    if snapshot.rivals:
        text = (
            f"spec.output: {spec.output} belongs to QuantizationJob {snapshot.rivals[0]}, and others may serve it. "
            "Write another PATH"
        )
        return JobAdmission(Condition("Accepted", "False", "OutputTaken", text), NOT_LOOKED_AT)
    look = looked_at(snapshot, spec.model.source)
    if look.inspection is None:
        return JobAdmission(look.accepted, look.source_ready, spec, needs_inspection=True)
    return _sized(snapshot, spec, look.inspection, look.source_ready)


def _check_places(spec: QuantizationJobSpec) -> None:
    for field, uri in (
        ("output", spec.output),
        ("calibration.dataset", spec.calibration.dataset),
        ("evaluation.dataset", spec.evaluation.dataset),
    ):
        if uri is not None and uri.startswith("file://"):
            raise SpecError(
                "names a path of one machine; a cluster has many", field=f"spec.{field}", value=uri,
                fix="Write pvc://CLAIM/PATH",
            )  # fmt: skip


def _check_texts(spec: QuantizationJobSpec, settings: Settings) -> None:
    """What the job reads is held to the list, and what it writes is not: that is a claim of its own namespace."""
    for field, uri in (
        ("spec.calibration.dataset", spec.calibration.dataset),
        ("spec.evaluation.dataset", spec.evaluation.dataset),
    ):
        if uri is not None and parse_dataset(uri, field).kind != "self":
            check_allowed(uri, field, spec.model, spec.pod, settings)


def _sized(snapshot: Snapshot, spec: QuantizationJobSpec, found: Inspection, ready: Condition) -> JobAdmission:
    load = _load(spec, found.facts)
    claim = parse_source(spec.output).name
    line, names = spec.line, ON_GPUS if spec.on_gpus else JobNames()
    try:
        if found.facts.quantization is not None:
            raise SpecError(
                "is quantized already", field="spec.model.source", value=spec.model.source,
                fix="Name the checkpoint that it was made of",
            )  # fmt: skip
        needs = job_needs(found.facts, load)
        check_memory(found.facts, needs, line or needs.memory, load, names)
        placing = job_placing(snapshot.nodes, spec, found.facts, load, needs)
        _check_nodes(snapshot, spec, found.facts, load, needs)
        known = None if snapshot.claims is None else snapshot.claims.get(claim)
        if known is not None:
            check_disk(found.facts, needs, known, load)
    except PlimsollError as error:
        return JobAdmission(refused(error), ready, spec, found)
    of = f" of {format_bytes(known)}" if known is not None else ""
    by = f" with {load.workers} workers" if load.workers > 1 else ""
    if load.devices:
        by = f" with {load.devices} devices, {format_bytes(needs.device)} on each"
    text = (
        f"memory: the walk {format_bytes(needs.walk)}{by}, evaluation {format_bytes(needs.evaluation)}"
        + (f", sampling {format_bytes(needs.sampling)}" if needs.sampling else "")
        + f"; the line is {format_bytes(line or needs.memory)}. Disk: {format_bytes(needs.output)} output + "
        f"{format_bytes(needs.scratch)} hidden states = {format_bytes(needs.disk)}{of} on claim {claim}"
    )
    accepted = Condition("Accepted", "True", "Fits", text)
    awaited = (claim,) if snapshot.claims is None else ()
    return JobAdmission(accepted, ready, spec, found, needs=needs, placing=placing, needs_claims=awaited)


def _load(spec: QuantizationJobSpec, facts: ModelFacts) -> JobLoad:
    """What the job will take, with the defaults that it fits to this model."""
    calibration = spec.calibration
    samples = default_samples(spec.samples_itself) if calibration.samples is None else calibration.samples
    return JobLoad(
        method=spec.method,
        bits=spec.bits,
        group_size=largest_group(facts) if spec.group_size is None else spec.group_size,
        samples=samples if spec.method == "awq" else 0,
        length=calibration.sequence_length or min(DEFAULT_LENGTH, facts.max_position),
        batch=calibration.batch_size or 1,
        sampled=spec.samples_itself or spec.evaluation.dataset == "self",
        held_out=spec.evaluation.samples,
        workers=1 if spec.on_gpus else spec.parallelism.workers,
        devices=spec.parallelism.workers if spec.on_gpus else 0,
        libraries=CUDA_BUILD_BYTES if spec.on_gpus else 0,
    )


def _check_nodes(
    snapshot: Snapshot, spec: QuantizationJobSpec, facts: ModelFacts, load: JobLoad, needs: JobNeeds
) -> None:
    """Raises DoesNotFitError where no node that may run the pod could ever hold it."""
    if snapshot.nodes is None:
        return
    line, names = (spec.line or needs.memory) + BESIDE_BYTES, ON_GPUS if spec.on_gpus else JobNames()
    wanted = [one.model_dump(by_alias=True, exclude_none=True) for one in spec.pod.tolerations]
    if spec.on_gpus:
        resource = spec.accelerator.resource
        able = [n for n in able_nodes(spec, snapshot.nodes) if n.allocatable.get(resource, 0) >= load.devices]
    else:
        able = [n for n in allowed(snapshot.nodes, spec.pod) if n.usable and tolerates(n.taints, wanted)]
    largest = max(able, key=lambda node: node.allocatable.get("memory", 0), default=None)
    if largest is None or largest.allocatable.get("memory", 0) >= line:
        return
    room = largest.allocatable.get("memory", 0)
    beside = max(0, room - BESIDE_BYTES)
    if needs.memory <= beside:
        ways = [f"{names.memory} {beside // MIB}Mi"]
    elif spec.line is None:
        ways = list(memory_ways(facts, load, beside, names))
    else:
        ways = [f"{way} and {names.memory} {beside // MIB}Mi" for way in memory_ways(facts, load, beside, names)]
    raise DoesNotFitError(
        f"needs {format_bytes(line)}, and the largest node that could take the pod, {largest.name}, has "
        f"{format_bytes(room)}",
        field=f"spec.{names.memory}",
        ways=(*ways, f"a node with {-(-line // MIB)}Mi"),
    )
