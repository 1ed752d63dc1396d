"""Whether the nodes have the GPUs that a quantization job asks its pod for, and which nodes these are."""

from collections.abc import Sequence
from dataclasses import replace

from plimsoll.api.errors import DoesNotFitError
from plimsoll.api.job_budget import JobLoad, JobNeeds, job_needs
from plimsoll.api.job_ways import ON_GPUS, check_device
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantity import format_bytes
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.api.ways_out import MIB
from plimsoll.operator.build.placing import Placing
from plimsoll.operator.plan.cards import Card, card, cards, placing
from plimsoll.operator.plan.devices import able_nodes
from plimsoll.operator.snapshot import Node


def job_placing(
    nodes: Sequence[Node] | None, spec: QuantizationJobSpec, facts: ModelFacts, load: JobLoad, needs: JobNeeds
) -> Placing | None:
    """Which nodes' devices hold the search; None for a job on a CPU.

    Where no node has a device, one may still join: the pod waits for it.

    Raises DoesNotFitError where the line is below what a device needs, no node has as many devices, or all are smaller.
    """
    if not spec.on_gpus:
        return None
    line, resource = spec.accelerator.memory, spec.accelerator.resource
    if line is not None:
        check_device(facts, needs, line, load, ON_GPUS)
    # A node that is not ready today comes back, and the pod may wait for it.
    able = [] if nodes is None else able_nodes(spec, nodes, usable=False)
    there = [node for node in able if node.allocatable.get(resource, 0) > 0]
    if there:
        _check_count(there, spec, facts, load)
    seen = cards([node for node in there if node.allocatable[resource] >= load.devices], resource)
    _check_size(seen, spec, facts, load, needs)
    return placing(resource, line or needs.device, seen)


def _check_count(there: Sequence[Node], spec: QuantizationJobSpec, facts: ModelFacts, load: JobLoad) -> None:
    resource, wanted = spec.accelerator.resource, load.devices
    most = max(there, key=lambda node: node.allocatable[resource])
    has = most.allocatable[resource]
    if has >= wanted:
        return
    # Fewer devices hold larger shares.
    rooms = [size for size in (card(most, resource).bytes, spec.accelerator.memory) if size is not None]
    fits = all(job_needs(facts, replace(load, devices=has)).device <= room for room in rooms)
    raise DoesNotFitError(
        f"asks one pod for {wanted} {resource}, and the node with most that could take the pod, {most.name}, has {has}",
        field="spec.parallelism.workers",
        ways=(*([f"parallelism.workers {has}"] if fits else []), f"a node with {wanted}"),
    )  # fmt: skip


def _check_size(
    seen: Sequence[Card], spec: QuantizationJobSpec, facts: ModelFacts, load: JobLoad, needs: JobNeeds
) -> None:
    """Nodes whose labels say nothing may have devices of any size."""
    if not seen or any(one.bytes is None for one in seen):
        return
    largest, line = max(seen, key=lambda one: one.bytes or 0), spec.accelerator.memory
    room = largest.bytes or 0
    if line is not None and needs.device <= room < line:
        raise DoesNotFitError(
            f"{format_bytes(line)} is more than any device has that the pod may run on: the largest, {largest}, has "
            f"{format_bytes(room)}",
            field="spec.accelerator.memory", ways=(f"accelerator.memory {room // MIB}Mi", "a node with larger devices"),
        )  # fmt: skip
    check_device(facts, needs, room, load, ON_GPUS, f"the largest, {largest},")
