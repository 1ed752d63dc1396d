"""Bytes that ranks take to talk to each other. Pure arithmetic, shared by the budget and by the engine.

On CPUs the ranks of a pod share one memory segment: a header, two slots a rank in which parts of a sum lie, and two
messages of a step. Ranks of several nodes talk through gloo. On GPUs the bytes are NCCL's own.
"""

from plimsoll.api.device import DeviceKind

KIB, MIB = 1 << 10, 1 << 20

HEADER_BYTES = 64 * KIB
"""Counters and flags of the group's segment."""
SLOT_BYTES = MIB
"""What a rank lays down for the others at once. Each has two, so that a fast rank never waits for a slow reader."""
MESSAGE_BYTES = MIB
"""The largest message of a step, from rank 0 to all others."""

PIECE_BYTES = 512 * KIB
"""What ranks on several nodes gather of each at once."""
GLOO_BYTES, GLOO_RANK_BYTES = 8 * MIB, 10 * MIB
"""What gloo takes of a rank's memory, and more of it for each rank of the group: its code, its thread, and the pieces
of all ranks, which it copies. Measured with torch 2.13 on x86: 22 to 25 MiB of 2 ranks, 27 to 30 of 3, 34 to 38 of 4,
55 to 63 of 6."""
LEADER_GLOO_SAVES, LEADER_GLOO_RANK_BYTES = 16 * MIB, 4 * MIB
"""What rank 0 takes less beside its logits, and the least that it takes for each rank: its peak is when it samples, and
not when it adds. Of 4 ranks it had 622 MiB after the longest prompt, and 675 MiB after 32 sampled answers."""

NCCL_CHANNELS = 32
"""Channels between two GPUs of a node: 24 and 32 are published for nodes of eight H100 (NVIDIA/nccl issues 1705 and
1685), and the larger is taken."""
NCCL_CHANNEL_BYTES = 12 * MIB
"""What a channel of a ring takes of a GPU: 10 MiB to receive into and 2 MiB to send from, as NCCL's log of allocations
has it (NVIDIA/nccl issue 1685)."""
NCCL_BYTES = NCCL_CHANNELS * NCCL_CHANNEL_BYTES
"""What a communicator of all ranks takes of each GPU: 384 MiB. Published figures, not measured by this project.
torch.distributed adds none of a GPU: sums are made in place, and its store lies in host memory."""


def segment_bytes(tensor: int) -> int:
    """Bytes of the shared memory segment of a group of `tensor` ranks on CPUs; 0 for a single rank."""
    return 0 if tensor == 1 else HEADER_BYTES + tensor * 2 * SLOT_BYTES + 2 * MESSAGE_BYTES


def collective_bytes(kind: DeviceKind, tensor: int, rank: int, nodes: int = 1, logits: int = 0) -> int:
    """Bytes of `rank`'s device that the collectives of `tensor` ranks on `nodes` nodes take.

    A segment is counted once for its pod, on rank 0, though each rank maps it.

    Args:
        logits: bytes of logits of the whole vocabulary, which rank 0 has while it does not add.
    """
    if kind == "cuda":
        return 0 if tensor == 1 else NCCL_BYTES
    if nodes > 1:
        taken = GLOO_BYTES + tensor * GLOO_RANK_BYTES
        return taken if rank else max(tensor * LEADER_GLOO_RANK_BYTES, taken - LEADER_GLOO_SAVES - logits)
    return segment_bytes(tensor) if rank == 0 else 0
