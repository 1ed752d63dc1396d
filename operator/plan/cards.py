"""What labels of a node say about its GPUs, as NVIDIA's GPU feature discovery writes them.

A resource `R` (`nvidia.com/gpu`, or `nvidia.com/mig-1g.10gb` under the MIG strategy `mixed`) has the labels
`R.product`, `R.memory` (MiB of a whole device), `R.replicas` (pods that share one device) and `R.sharing-strategy`.
Under the MIG strategy `single`, `nvidia.com/gpu` is a slice and its product ends with `-MIG-1g.10gb`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll.api.accelerator import mig_bytes, most_mig_bytes
from plimsoll.operator.build.placing import Placing
from plimsoll.operator.shape import whole
from plimsoll.operator.snapshot import Node

MIB = 1 << 20
GIB = 1 << 30
SHARING = ("time-slicing", "mps")
_SHARED = "-SHARED"

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
class Card:
    """A device of one node, or the part of it that one pod may fill."""

    node: str
    product: str
    bytes: int | None
    """Of one pod's part; None where labels do not say, 0 where it is shared among an unknown number of pods."""
    pods: int = 1
    """How many pods share the device."""
    measured: bool = False
    """A label says the memory; else it follows from the product's name."""

    def __str__(self) -> str:
        shared = f" (shared by {self.pods} pods)" if self.pods > 1 else ""
        return f"{self.product or 'the device'} of node {self.node}{shared}"


def card(node: Node, resource: str) -> Card:
    """The device that `resource` is on this node."""
    labels = node.labels
    product = labels.get(f"{resource}.product", "")
    measured = whole(labels.get(f"{resource}.memory"))
    size = measured * MIB if measured else mig_bytes(product) or mig_bytes(resource) or _by_name(product)
    limits = [size, most_mig_bytes(product), most_mig_bytes(resource)] if size else []
    # A label that was written before the card was cut into slices says what the whole card has.
    size = min((one for one in limits if one is not None), default=None)
    pods = whole(labels.get(f"{resource}.replicas")) or 1
    named = product.endswith(_SHARED) or labels.get(f"{resource}.sharing-strategy") in SHARING
    if pods > 1:
        size = size // pods if size else None
    elif named and f"{resource}.replicas" not in labels:
        size = 0
    return Card(node.name, product, size, pods, bool(measured))


def cards(nodes: Iterable[Node], resource: str) -> list[Card]:
    """One of each node that has `resource`: all devices of a node are taken to be alike."""
    return [card(node, resource) for node in nodes if node.allocatable.get(resource, 0) > 0]


def placing(resource: str, least: int, seen: Sequence[Card]) -> Placing:
    """Where a pod whose budget is `least` bytes of one device holds it, given the devices there are now."""
    large = [one for one in seen if one.bytes is not None and one.bytes >= least]
    parts = [one for one in large if one.pods > 1]
    return Placing(
        resource,
        least,
        shares=_sorted(one.pods for one in parts if one.measured),
        named=_sorted((one.product, one.pods) for one in parts if not one.measured),
        small=_sorted(one.product for one in seen if one.bytes and one.bytes < least and not one.measured),
        unclear=_sorted(one.product for one in seen if one.bytes == 0),
        slices=_sorted((one.product, most) for one in seen if (most := most_mig_bytes(one.product)) is not None),
    )


def _sorted(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


def _by_name(product: str) -> int | None:
    return next((gib * GIB for start, gib in PRODUCTS if product.startswith(start)), None)
