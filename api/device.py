"""Facts of a device, and of the kernels that will run on it: what the budget needs to know of where a model lies."""

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]
ActivationRows = Literal["int8", "bfloat16"]


@dataclass(frozen=True)
class TableFacts:
    """What a table of kernels makes of a model's bytes."""

    activation_bytes: int | None = None
    """Bytes of an activation where they differ from the weights' (4 where weights are narrower than arithmetic)."""
    row_tile: int = 1
    """Rows of a packed weight are padded to a multiple of this."""
    scratch_bytes: int = 0
    """What its operations take beside their results, at most: the budget's `kernels` term."""
    head_group: int | None = None
    """Columns that share a scale of a head in codes of 8 bits, which it becomes where linear weights are codes; None:
    it stays whole."""
    activation_rows: ActivationRows | None = None
    """What rows of activations become by default where they meet codes; None: they stay as they are."""
    sampler_rows: int = 128
    """Rows of logits that the sampler's copies of a slice of 16 rows amount to. By torch: edited, divided, filtered,
    summed, and four of them sorted whole."""


TORCH_TABLE = TableFacts(scratch_bytes=64 << 20)
"""Plain torch: activations as wide as the weights. Scratch: keys and values gathered from the cache, masks included;
enough while one sequence's own are less than this."""

HEAD_GROUP = 32
"""As llama.cpp's Q8_0 has it, in which most 4-bit files bring their head: so it loses nothing."""

CUDA_BUILD_BYTES = 288 << 20
"""What a torch built for CUDA takes of a CPU's memory beyond one built for CPUs, GPU or not: an empty process held 516
MiB and 238 (torch 2.13, CUDA 13.0); `benchmarks/memory.py` holds the sum against a loaded one."""

HOST_BYTES_PER_DEVICE = 4 << 30
"""Host memory of a process that works on a GPU. Its tensors pass through the host one at a time, so it is the process
that counts: Python, torch and CUDA's host side. Not measured: no GPU has run this yet."""

WIDE_SCRATCH_BYTES = 16 << 20
"""Unpacked weights, narrowed activations and products, where wide products go through torch's bfloat16."""


DRAWING_ROWS = 96
"""`sampler_rows` where a kernel draws: a slice edited, and what each thread takes for a row (16 bytes a token,
`csrc/sample.c`) or what log-probabilities of a slice take after that."""

ROUNDED_BYTES = 4 << 20
"""Rows of a product as the native table rounds them, at once (`csrc/room.h`)."""


def native_table(panel: int, wide: bool = False, quick_bytes: bool = False) -> TableFacts:
    """The native table of a CPU: float32 activations, weights in panels of `panel` rows.

    Args:
        wide: products of many rows leave the table for torch's bfloat16.
        quick_bytes: the processor multiplies rows of 8 bits faster than rows of bfloat16.
    """
    scratch = ROUNDED_BYTES + (WIDE_SCRATCH_BYTES if wide else 0)
    return TableFacts(
        activation_bytes=4, row_tile=panel, scratch_bytes=scratch, head_group=HEAD_GROUP,
        activation_rows="int8" if quick_bytes and not wide else "bfloat16", sampler_rows=DRAWING_ROWS,
    )  # fmt: skip


@dataclass(frozen=True)
class DeviceFacts:
    """One device, or one container's share of a host's memory, with the kernels that run there.

    `total` bytes are what a rank may take in all, the driver's and libraries' share included.
    """

    kind: DeviceKind
    total: int
    table: TableFacts = TableFacts()
    libraries: int = 0
    """Bytes that libraries hold beyond what any process of ours does (`CONTEXT_BYTES`)."""
