"""How many CPUs this process may use, and telling torch."""

import math
import os

from plimsoll.runtime.machine.cgroup import cpu_quotas

# OpenMP reads it when torch loads it, so it is said before. A thread that waits by spinning takes its CPU from the
# server beside the engine, and is stopped itself when its part of a step comes; one that sleeps at once is woken too
# late for the next of a step's two hundred operations. So it spins for the pause between two of them, and no longer.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def apply_threads(wanted: int | None) -> int:
    """Sets the threads of torch, and of every kernel that shares its OpenMP. None follows `cpu_limit`. Returns them."""
    import torch

    threads = wanted or cpu_limit()
    torch.set_num_threads(threads)
    return threads


def cpu_limit() -> int:
    """Whole CPUs this process may keep busy, at least 1: its affinity mask and the cgroup quotas above it.

    A quota of 1.5 CPUs gives 1: with two threads the kernel would stop both for half of every period.
    """
    return max(1, min([_affinity(), *(math.floor(quota) for quota in cpu_quotas())]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
