"""Whether a deployment may run at all: its words, its source, its arithmetic, before any model pod exists."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plimsoll.api.activations import refuse_activations
from plimsoll.api.budget import RUNS, Budget, Load, budget
from plimsoll.api.cache_loss import cache_chosen
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.device import TORCH_TABLE, DeviceFacts, native_table
from plimsoll.api.errors import DoesNotFitError, NotRunYetError, PlimsollError, SpecError
from plimsoll.api.inspection import Inspection
from plimsoll.api.load import load_of, refuse_not_run_yet, sharing
from plimsoll.api.manifest import parse_spec
from plimsoll.api.quantity import format_bytes
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.api.second_rounding import as_stored, rounded_again
from plimsoll.operator import build
from plimsoll.operator.build.placing import Placing
from plimsoll.operator.plan.cards import Card
from plimsoll.operator.plan.conditions import Condition, condition_of
from plimsoll.operator.plan.devices import DeviceMemory, device_memory, selected
from plimsoll.operator.plan.permission import NotAllowedError, check_account, check_draft, check_source
from plimsoll.operator.plan.quantized import FAILED, awaited, serving
from plimsoll.operator.plan.trouble import words
from plimsoll.operator.settings import Settings
from plimsoll.operator.snapshot import Output, Pod, ReplicaSet, Snapshot

#: Where a line is from that a revision keeps.
KEPT = "when this revision was made"
NOT_LOOKED_AT = Condition("SourceReady", "Unknown", "NotLookedAt", "The spec has to be accepted first.")
#: The table of kernels that takes most, since a processor is known only once a pod runs on it.
CPU_TABLE = native_table(32, wide=True)


@dataclass(frozen=True)
class Asked:
    """What is known of a wish, a deployment's or a job's, as far as one could get."""

    accepted: Condition
    source_ready: Condition
    spec: ModelDeploymentSpec | QuantizationJobSpec | None = None
    inspection: Inspection | None = None
    needs_inspection: bool = False


@dataclass(frozen=True)
class Admission(Asked):
    """Whether a ModelDeployment is accepted, and what follows for its pods."""

    spec: ModelDeploymentSpec | None = None
    """With `precision`, `parallelism.tensor` and `accelerator.memory` resolved once there is a budget."""
    budget: Budget | None = None
    draft: Inspection | None = None
    """Of spec.serving.draft, where there is one."""
    output: Output | None = None
    """What is served in a source's place; `spec.model` has its address then."""
    kept: Mapping[str, Any] | None = None
    """status.budget of the revision that runs, where it is not what would be found today; no pod is made by it."""
    placing: Placing | None = None
    """Of a GPU: which nodes' devices hold the budget."""
    needs_taken: bool = False
    """What stays on the nodes has to be known to go on."""
    stuck: Condition | None = None
    """What will not move by itself, though the spec is accepted: a quantization job that failed."""

    @property
    def ok(self) -> bool:
        return (self.budget is not None or self.kept is not None) and self.accepted.status == "True"


def standing(admission: Admission, running: ReplicaSet | None, snapshot: Snapshot) -> Admission:
    """`admission`, unless the wanted revision is there: that was accepted, with the nodes and the source of its day.

    A node that is cordoned or joins, or a record that was deleted, makes no other model of what serves.
    """
    if admission.spec is None or running is None or not running.budget:
        return admission
    if admission.budget is not None and build.described(admission.budget) == running.budget:
        return admission
    status = snapshot.deployment.status
    before = condition_of(status, "Accepted") if status.get("revision") == running.revision else {}
    was = before["message"] if before.get("reason") == "Fits" else None
    total = format_bytes(running.budget["perDevice"]["total"])
    text = was or f"It fitted into the {total} per device that there were when this revision was made."
    return replace(admission, accepted=Condition("Accepted", "True", "Fits", text), budget=None, kept=running.budget)


def admit(snapshot: Snapshot, settings: Settings) -> Admission:
    """Goes as far as what is known allows; what stops it is in the conditions."""
    output, waits = None, None
    try:
        spec = parse_spec(snapshot.deployment.spec)
        if spec.model.quantization_job is not None:
            output, waits = awaited(spec.model.quantization_job, snapshot)
            spec = spec if output is None else serving(spec, output)
        _check_serving(spec)
        if spec.model.source and output is None:
            # An output is the job's, whose own sources were held to the list.
            check_source(spec.model, spec.pod, settings)
        if spec.serving.draft is not None:
            check_draft(spec.serving.draft, spec.model, spec.pod, settings)
        check_account(spec.pod, snapshot.deployment.namespace, settings)
        refuse_not_run_yet(spec)
        check_image(spec, settings)
    except PlimsollError as error:
        return Admission(refused(error), NOT_LOOKED_AT)
    if waits is not None and output is None:
        accepted = Condition("Accepted", "Unknown", waits.reason, waits.message)
        return Admission(accepted, waits, stuck=waits if waits.reason == FAILED else None)
    look = looked_at(snapshot, spec.model.source)
    if look.inspection is None:
        return Admission(look.accepted, look.source_ready, spec, needs_inspection=True, output=output)
    draft = None
    if spec.serving.draft is not None:
        beside = looked_at(replace(snapshot, inspecting=snapshot.inspecting_draft), spec.serving.draft.source)
        draft = beside.inspection
        if draft is None:
            return Admission(beside.accepted, beside.source_ready, spec, look.inspection, output=output)
    found = _sized(snapshot, spec, look.inspection, look.source_ready, output, draft)
    found = replace(found, output=output, draft=draft)
    if waits is None:
        return found
    return replace(found, source_ready=waits, stuck=waits if waits.reason == FAILED else None)


def refused(error: PlimsollError) -> Condition:
    """Accepted, of a spec that `error` keeps from running."""
    reason = "InvalidSpec"
    if isinstance(error, NotAllowedError):
        reason = error.reason
    elif isinstance(error, NotRunYetError | DoesNotFitError):
        reason = "NotSupported" if isinstance(error, NotRunYetError) else "DoesNotFit"
    return Condition("Accepted", "False", reason, str(error))


def looked_at(snapshot: Snapshot, source: str) -> Asked:
    """Where the inspection of the snapshot's source is; `accepted` says what there is to wait for until it is there."""
    # The inspect pod's own trouble, which is what `kubectl get` should show.
    waiting = Condition("Accepted", "Unknown", "Inspecting", _inspecting(snapshot))
    looking = snapshot.inspecting
    if looking is None or looking.found is None:
        said = (_silent(looking.pod) or looking.error) if looking is not None else None
        if said:
            why = f"{source} cannot be read: {said}"
            failed = Condition("SourceReady", "False", "Unreadable", why)
            return Asked(Condition("Accepted", "Unknown", "SourceUnreadable", why), failed)
        was = condition_of(snapshot.deployment.status, "SourceReady")
        if was.get("reason") == "Unreadable" and was.get("observedGeneration") == snapshot.deployment.generation:
            # It is being looked at again: until that says otherwise, what it said stands.
            failed = Condition("SourceReady", "False", "Unreadable", was["message"])
            return Asked(Condition("Accepted", "Unknown", "SourceUnreadable", was["message"]), failed)
        return Asked(waiting, Condition("SourceReady", "Unknown", "Inspecting", _inspecting(snapshot)))
    found = looking.found
    at = f" at revision {found.revision}" if found.revision != found.digest else ""
    text = f"{format_bytes(found.bytes)}{at}, {found.digest}"
    return Asked(waiting, Condition("SourceReady", "True", "Inspected", text), inspection=found)


def _device(snapshot: Snapshot, spec: ModelDeploymentSpec, output: Output | None) -> DeviceMemory | None:
    """None where the line follows from what stays on the nodes, and that is not known yet.

    A revision that is there keeps the line that it was made with: what comes to its node later changes no pod.
    """
    if spec.accelerator.resource != "cpu" or spec.accelerator.memory is not None or snapshot.nodes is None:
        return device_memory(spec, snapshot.nodes)
    name = build.revision(snapshot.deployment.spec, output)
    there = next((one for one in snapshot.replica_sets if one.revision == name and one.budget), None)
    if there is not None:
        return DeviceMemory(int(there.budget["perDevice"]["total"]), KEPT)
    return None if snapshot.taken is None else device_memory(spec, snapshot.nodes, snapshot.taken)


def _sized(
    snapshot: Snapshot, spec: ModelDeploymentSpec, found: Inspection, ready: Condition, output: Output | None,
    draft: Inspection | None,
) -> Admission:  # fmt: skip
    device = _device(snapshot, spec, output)
    if device is None:
        waiting = Condition("Accepted", "Unknown", "Sizing", "The memory that is free on the nodes is being looked at.")
        return Admission(waiting, ready, spec, found, needs_taken=True)
    if device.total is None:
        unknown = Condition(
            "Accepted", "False", "MemoryUnknown", f"How much memory a device has is unknown: {device.why}."
        )
        return Admission(unknown, ready, spec, found)
    on_cpu = spec.accelerator.resource == "cpu"
    facts = DeviceFacts("cpu" if on_cpu else "cuda", device.total, CPU_TABLE if on_cpu else TORCH_TABLE)
    try:
        load = load_of(spec, found.facts, None if draft is None else draft.facts)
        if device.largest is not None:
            _refuse_line(load, found, facts, device.largest)
        fits = budget(found.facts, facts, sharing(load) if on_cpu and spec.accelerator.memory is None else load, RUNS)
        refuse_activations(
            spec.serving.activation_precision, fits.precision, facts.kind, spec.serving.torch_rows
        )  # fmt: skip
    except DoesNotFitError as error:
        accepted = replace(refused(error), message=f"{error} (memory from {device.where})")
        return Admission(accepted, ready, spec, found)
    except PlimsollError as error:
        return Admission(refused(error), ready, spec, found)
    # Floats under auto are not written down: a pod sums up the same, and earlier versions' revisions stay as they are.
    held = spec.kv_cache.precision if fits.cache_precision == "float" else fits.cache_precision
    resolved = spec.model_copy(
        update={
            "precision": fits.precision,
            "accelerator": spec.accelerator.model_copy(update={"memory": device.total}),
            "kv_cache": spec.kv_cache.model_copy(update={"precision": held}),
            "parallelism": spec.parallelism.model_copy(update={"tensor": fits.tensor}),
        }
    )
    text = (
        f"{format_bytes(fits.weights)} weights + {_draft(fits)}"
        f"{format_bytes(fits.context + fits.workspace)} workspace and context + "
        f"{format_bytes(fits.kv_cache)} cache = {format_bytes(fits.in_use)} of {format_bytes(fits.total)} per device; "
        f"{fits.kv_tokens} tokens, {fits.concurrent_requests} requests of {fits.max_length} at once"
    )
    if on_cpu and fits.tensor > 1:
        text += f"; on {fits.tensor} ranks, which take {format_bytes(fits.ranks_bytes)} together"
    if fits.nodes > 1:
        text += f"; a replica is {fits.nodes} pods with {fits.pod_ranks} devices each"
    if stored := as_stored(found.facts, fits.precision):
        text += f"; {fits.precision}: {stored} as stored"
    if chosen := cache_chosen(found.facts, spec.kv_cache.precision, fits.cache_precision):
        text += f"; {chosen}"
    if device.where == KEPT:
        text += f"; the line is from {KEPT}"
    if again := rounded_again(found.facts, fits.precision):
        text += f". {again}"
    accepted = Condition("Accepted", "True", "Fits", text)
    return Admission(accepted, ready, resolved, found, budget=fits, placing=device.placing)


def _draft(fits: Budget) -> str:
    return "" if fits.draft is None else f"{format_bytes(fits.draft.weights)} draft + "


def _refuse_line(load: Load, found: Inspection, facts: DeviceFacts, largest: Card) -> None:
    """Raises DoesNotFitError for a line that no device reaches, with the line that the largest one allows."""
    there = largest.bytes or 0
    has = f"{largest} has {format_bytes(there)}" if there else f"{largest} is shared by an unknown number of pods"
    ways = []
    try:
        budget(found.facts, replace(facts, total=there), load, RUNS)
        ways.append(f"accelerator.memory {there >> 20}Mi")
    except PlimsollError:
        pass
    raise DoesNotFitError(
        f"{format_bytes(facts.total)} is more than any device has that the pod may run on: the largest, {has}",
        field="spec.accelerator.memory", ways=(*ways, "a node with larger devices"),
    )  # fmt: skip


def check_image(spec: ModelDeploymentSpec | QuantizationJobSpec, settings: Settings) -> None:
    """Raises SpecError for a pod on a GPU that would run the image for CPUs."""
    if spec.accelerator.resource == "cpu" or settings.cuda_runtime_image is not None:
        return
    if spec.pod.image is None or spec.pod.image == settings.runtime_image:
        raise SpecError(
            "runs on GPUs, and this operator only has a runtime image for CPUs", field="spec.accelerator.resource",
            value=spec.accelerator.resource,
            fix="Set the chart's runtime.cudaImage to an image built with DEVICE=cuda, or name one in spec.pod.image",
        )  # fmt: skip


def _check_serving(spec: ModelDeploymentSpec) -> None:
    if spec.serving.api_keys_file is not None:
        raise SpecError(
            "is a file of one machine",
            field="spec.serving.apiKeysFile",
            fix="Name a Secret in spec.serving.apiKeysSecret",
        )


def _silent(pod: Pod | None) -> str | None:
    """What is wrong with an inspect pod that ended well and said nothing that can be read."""
    if pod is None or pod.phase != "Succeeded":
        return None
    return "the inspect pod has ended and left no report. Is pod.image a runtime image of this version?"


def _inspecting(snapshot: Snapshot) -> str:
    """What the inspect pod is waiting for, in its own words."""
    pod = snapshot.inspecting.pod if snapshot.inspecting else None
    if pod is None:
        return "An inspect pod is about to read the checkpoint's headers."
    if pod.unschedulable:
        wanted = (snapshot.deployment.spec.get("pod") or {}).get("nodeSelector") or {}
        missing = selected(snapshot.nodes, wanted)
        return f"The inspect pod finds no node: {f'{missing}; ' if missing else ''}{pod.unschedulable}"
    if pod.last_event:
        return f"The inspect pod waits: {words(pod.last_event)}"
    waits = next((c for c in pod.containers if c.state == "waiting" and c.message), None)
    return f"The inspect pod waits: {waits.message}" if waits else "The inspect pod reads the checkpoint's headers."
