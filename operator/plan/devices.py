"""How much memory a device of a deployment has, from what the manifest or the nodes say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.api.budget import SERVER_BYTES
from plimsoll.api.deployment import ModelDeploymentSpec
from plimsoll.api.quantity import format_bytes
from plimsoll.operator.plan.capacity import tolerates
from plimsoll.operator.snapshot import Node

MIB = 1 << 20
GIB = 1 << 30
#: Labels of NVIDIA's GPU feature discovery; memory in MiB.
GPU_MEMORY = "nvidia.com/gpu.memory"
GPU_PRODUCT = "nvidia.com/gpu.product"

#: GiB by the start of a product's name as feature discovery spells it; the first match counts. Whole ones of what
#: nvidia-smi reports with ECC: data sheets round up, and say 24 GB of an L4 that has 23,034 MiB.
PRODUCTS: tuple[tuple[str, int], ...] = (
    ("NVIDIA-B200", 178), ("NVIDIA-H200", 140), ("NVIDIA-H100-NVL", 93), ("NVIDIA-H100", 79), ("NVIDIA-GH200", 95),
    ("NVIDIA-A100-SXM4-40GB", 39), ("NVIDIA-A100-PCIE-40GB", 39), ("NVIDIA-A100", 79), ("NVIDIA-L40", 44),
    ("NVIDIA-L4", 22), ("NVIDIA-A40", 44), ("NVIDIA-A30", 23), ("NVIDIA-A10", 22), ("NVIDIA-A16", 15),
    ("NVIDIA-A2", 14),
    ("NVIDIA-RTX-6000-Ada", 47), ("NVIDIA-RTX-A6000", 47), ("NVIDIA-RTX-A5000", 23), ("NVIDIA-RTX-A4000", 15),
    ("NVIDIA-GeForce-RTX-5090", 31), ("NVIDIA-GeForce-RTX-4090", 23), ("NVIDIA-GeForce-RTX-4080", 15),
    ("NVIDIA-GeForce-RTX-3090", 23), ("Tesla-V100-SXM2-32GB", 31), ("Tesla-V100-PCIE-32GB", 31), ("Tesla-V100", 15),
    ("Tesla-T4", 14), ("Tesla-P100", 15), ("Tesla-P40", 22),
)  # fmt: skip


@dataclass(frozen=True)
class DeviceMemory:
    """`total` bytes of one device, or None with `why` it is not known; `where` says who said so."""

    total: int | None
    where: str = ""
    why: str = ""


def device_memory(spec: ModelDeploymentSpec, nodes: Iterable[Node] | None) -> DeviceMemory:
    """What the manifest draws as the line, else the smallest device among nodes that could take the pod."""
    if spec.accelerator.memory is not None:
        return DeviceMemory(spec.accelerator.memory, "spec.accelerator.memory")
    fix = "set spec.accelerator.memory"
    if nodes is None:
        return DeviceMemory(None, why=f"this operator may not see nodes: {fix}")
    seen = tuple(nodes)
    able = [node for node in matching(seen, spec.pod.node_selector) if node.usable]
    tolerations = [one.model_dump(by_alias=True, exclude_none=True) for one in spec.pod.tolerations]
    # Where all are tainted somebody else may add the toleration, as admission does for devices.
    able = [node for node in able if tolerates(node.taints, tolerations)] or able
    if not able:
        return DeviceMemory(None, why=f"{selected(seen, spec.pod.node_selector) or 'no node is ready'}: {fix}")
    if spec.accelerator.resource == "cpu":
        least = min(able, key=lambda node: node.allocatable.get("memory", 0))
        line = max(1, least.allocatable.get("memory", 0) - SERVER_BYTES)
        return DeviceMemory(line, f"allocatable memory of node {least.name}, less {format_bytes(SERVER_BYTES)} beside")
    gpus = [node for node in able if node.allocatable.get(spec.accelerator.resource, 0) > 0]
    if not gpus:
        return DeviceMemory(None, why=f"no node that could take the pod has {spec.accelerator.resource}: {fix}")
    sizes = {node.name: _gpu_bytes(node.labels) for node in gpus}
    known = {name: size for name, size in sizes.items() if size}
    if not known:
        labels = f"{GPU_MEMORY} or a known {GPU_PRODUCT}"
        return DeviceMemory(None, why=f"nodes with {spec.accelerator.resource} carry no label {labels}: {fix}")
    name = min(known, key=lambda node: known[node])
    return DeviceMemory(known[name], f"labels of node {name} ({format_bytes(known[name])} a device)")


def matching(nodes: Iterable[Node], wanted: Mapping[str, str]) -> list[Node]:
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


def _gpu_bytes(labels: Mapping[str, str]) -> int | None:
    given = labels.get(GPU_MEMORY, "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given) * MIB
    product = labels.get(GPU_PRODUCT, "")
    return next((gib * GIB for start, gib in PRODUCTS if product.startswith(start)), None)
