"""How many CPUs this process may use, and telling torch."""

import math
import os
from pathlib import Path

# OpenMP reads it when torch loads it, so it is said before. A thread that waits by spinning takes its CPU from the
# server beside the engine, and is then stopped itself when its part of a step comes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


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
    return max(1, min([_affinity(), *(math.floor(quota) for quota in _quotas(CGROUP_ROOT, PROC_CGROUP))]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path, own: Path) -> list[float]:
    """CPUs each cgroup from this process's own up to the root allows; version 2 and version 1 alike."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = root
        elif "cpu" in controllers.split(","):
            base = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root / "cpu")
        else:
            continue
        folder = base / path.lstrip("/")
        # A container without a cgroup namespace sees its host's path and only its own folder: the root is its own.
        for group in (folder, *folder.parents):
            quota = _quota(group)
            if quota is not None:
                found.append(quota)
            if group == base:
                break
    return found


def _quota(group: Path) -> float | None:
    """CPUs one cgroup allows, None for no limit. `cpu.max` is "quota period" or "max period", in microseconds."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
