"""Facts of a device: what the budget needs to know of where a model will lie."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DeviceFacts:
    """One device, or one container's share of a host's memory.

    `total` bytes are what a rank may take in all, the driver's and libraries' share included.
    """

    kind: Literal["cpu", "cuda"]
    total: int
    name: str = ""
    activation_bytes: int | None = None
    """Bytes of an activation where they differ from the weights' (4 on a CPU without bf16 arithmetic)."""
    row_tile: int = 1
    """Rows of a weight are padded to a multiple of this by the kernels that will read it."""
    scratch_bytes: int = 0
    """What the kernels keep for themselves, as their table says."""


def planned_device(kind: Literal["cpu", "cuda"], total: int) -> DeviceFacts:
    """A device that is not at hand, as our kernels would use it: what it predicts is never less than what runs.

    On a CPU activations are float32 beside narrower weights, and rows come in panels of up to 32 (AVX-512).
    """
    if kind == "cpu":
        return DeviceFacts(kind="cpu", total=total, activation_bytes=4, row_tile=32)
    return DeviceFacts(kind="cuda", total=total)
