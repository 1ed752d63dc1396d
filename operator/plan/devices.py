"""How much memory a device of a deployment has, from what the manifest or the nodes say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.api.accelerator import mig_bytes, most_mig_bytes
from plimsoll.api.budget import SERVER_BYTES
from plimsoll.api.deployment import ModelDeploymentSpec, PodPlacement
from plimsoll.api.quantity import format_bytes
from plimsoll.api.quantization_job import QuantizationJobSpec
from plimsoll.operator.build.placing import Placing
from plimsoll.operator.plan.capacity import selects, tolerates
from plimsoll.operator.plan.cards import Card, cards, placing
from plimsoll.operator.snapshot import Node

MIB = 1 << 20
Spec = ModelDeploymentSpec | QuantizationJobSpec


@dataclass(frozen=True)
class DeviceMemory:
    """`total` bytes of one device, or None with `why` it is not known; `where` says who said so."""

    total: int | None
    where: str = ""
    why: str = ""
    placing: Placing | None = None
    """Of a GPU: which nodes' devices are as large."""
    largest: Card | None = None
    """Where the manifest draws a line above every device there is: the largest of these. `total` is the line all the
    same."""


def device_memory(
    spec: ModelDeploymentSpec, nodes: Iterable[Node] | None, taken: Mapping[str, int] | None = None
) -> DeviceMemory:
    """What the manifest draws as the line. Else the smallest device among nodes that could take the pod; on CPUs the
    most memory that the replicas find beside what stays on the nodes.

    Args:
        taken: bytes by node, as in the snapshot.
    """
    seen = None if nodes is None else tuple(nodes)
    if spec.accelerator.resource != "cpu":
        return _gpu_memory(spec, seen)
    if spec.accelerator.memory is not None:
        return DeviceMemory(spec.accelerator.memory, "spec.accelerator.memory")
    able = able_nodes(spec, seen) if seen is not None else []
    if seen is None or not able:
        return DeviceMemory(None, why=_nowhere(spec, seen))
    stays = taken or {}
    free = {node.name: max(0, node.allocatable.get("memory", 0) - stays.get(node.name, 0)) for node in able}
    size = _largest(list(free.values()), max(1, spec.replicas) * spec.parallelism.nodes)
    name = min((node for node in free if free[node] >= size), key=lambda node: free[node])
    # The ranks of a pod share its memory; `auto` gains nothing by more of them.
    tensor = spec.parallelism.tensor
    ranks = 1 if tensor == "auto" else tensor // spec.parallelism.nodes
    return DeviceMemory(
        max(1, (size - SERVER_BYTES) // ranks),
        f"memory of node {name} that is free beside pods that stay there ({format_bytes(stays.get(name, 0))}), less "
        f"{format_bytes(SERVER_BYTES)} for the endpoint" + (f", shared by {ranks} ranks" if ranks > 1 else ""),
    )


def _largest(free: list[int], pods: int) -> int:
    """The most bytes, in whole MiB, that each of so many pods can ask for and all find a place."""
    low, high = 0, max(free) // MIB
    while low < high:
        middle = (low + high + 1) // 2
        if sum(size // (middle * MIB) for size in free) >= pods:
            low = middle
        else:
            high = middle - 1
    return low * MIB


FIX = "set spec.accelerator.memory"


def _gpu_memory(spec: ModelDeploymentSpec, nodes: tuple[Node, ...] | None) -> DeviceMemory:
    resource, asked = spec.accelerator.resource, spec.accelerator.memory
    profile = most_mig_bytes(resource)
    if asked is not None:
        # A node that is not ready today comes back, and the pod may wait for it.
        seen = cards(able_nodes(spec, nodes, usable=False), resource) if nodes is not None else []
        if profile is not None and asked > profile:
            seen = seen or [Card("", resource, mig_bytes(resource))]
        unlabelled = any(one.bytes is None for one in seen)
        known = [one for one in seen if one.bytes is not None]
        largest = max(known, key=lambda one: one.bytes or 0, default=None)
        too_large = largest is not None and not unlabelled and (largest.bytes or 0) < asked
        return DeviceMemory(
            asked, "spec.accelerator.memory", placing=placing(resource, asked, seen),
            largest=largest if too_large else None,
        )  # fmt: skip
    if nodes is None and profile is None:
        return DeviceMemory(None, why=_nowhere(spec, nodes))
    able = able_nodes(spec, nodes) if nodes is not None else []
    seen = cards(able, resource)
    if profile is not None and not seen:
        size = mig_bytes(resource)
        assert size is not None
        return DeviceMemory(size, f"the name of {resource}", placing=placing(resource, size, seen))
    if not able:
        return DeviceMemory(None, why=_nowhere(spec, nodes))
    if not seen:
        return DeviceMemory(None, why=f"no node that could take the pod has {resource}: {FIX}")
    known = [one for one in seen if one.bytes]
    if known:
        least = min(known, key=lambda one: one.bytes or 0)
        assert least.bytes is not None
        where = f"labels of node {least.node} ({format_bytes(least.bytes)} a device"
        where += f", one of {least.pods} parts of it)" if least.pods > 1 else ")"
        return DeviceMemory(least.bytes, where, placing=placing(resource, least.bytes, seen))
    shared = next((one for one in seen if one.bytes == 0), None)
    if shared is not None:
        why = f"{shared} is shared, and no label {resource}.replicas says by how many pods"
        return DeviceMemory(None, why=f"{why}: let GPU feature discovery set it")
    why = f"nodes with {resource} carry no label {resource}.memory or a known {resource}.product"
    return DeviceMemory(None, why=f"{why}: {FIX}")


def able_nodes(spec: Spec, nodes: Iterable[Node], usable: bool = True) -> list[Node]:
    """Nodes that the pod may be placed on, by its selector, required node affinity and tolerations."""
    found = [node for node in allowed(nodes, spec.pod) if node.usable or not usable]
    tolerations = [one.model_dump(by_alias=True, exclude_none=True) for one in spec.pod.tolerations]
    # Where all are tainted somebody else may add the toleration, as admission does for devices.
    return [node for node in found if tolerates(node.taints, tolerations)] or found


def _nowhere(spec: ModelDeploymentSpec, nodes: tuple[Node, ...] | None) -> str:
    if nodes is None:
        return f"this operator may not see nodes: {FIX}"
    none = "no node is ready" if allowed(nodes, spec.pod) else "no node matches spec.pod.affinity"
    return f"{selected(nodes, spec.pod.node_selector) or (none if nodes else 'no node is ready')}: {FIX}"


def allowed(nodes: Iterable[Node], pod: PodPlacement) -> list[Node]:
    """Nodes that the pod's nodeSelector and required node affinity allow, tainted or not."""
    affinity = {} if pod.affinity is None else pod.affinity.model_dump(by_alias=True, exclude_none=True)
    wish = {"nodeSelector": pod.node_selector, "affinity": affinity}
    return [node for node in nodes if selects(node, wish)]


def matching(nodes: Iterable[Node], wanted: Mapping[str, str]) -> list[Node]:
    """The nodes that carry all the wanted labels."""
    return [node for node in nodes if all(node.labels.get(key) == value for key, value in wanted.items())]


def selected(nodes: Iterable[Node] | None, wanted: Mapping[str, str]) -> str | None:
    """Names the labels that keep every node from being selected; None when some node is."""
    if nodes is None or not wanted:
        return None
    seen = tuple(nodes)
    if matching(seen, wanted):
        return None
    alone = [f"{key}={value}" for key, value in wanted.items() if not matching(seen, {key: value})]
    if alone:
        return f"no node has the label {' or '.join(alone)} that spec.pod.nodeSelector asks for"
    return f"no node has all of {', '.join(f'{key}={value}' for key, value in wanted.items())} (spec.pod.nodeSelector)"
