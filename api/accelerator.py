"""What a pod may ask the scheduler for, and the memory that the name of a MIG profile promises."""

import re

#: cpu, whole NVIDIA GPUs, and slices of them as the device plugin's MIG strategy `mixed` advertises them.
RESOURCE = r"^(cpu|nvidia\.com/gpu|nvidia\.com/mig-[1-9]g\.[1-9][0-9]{0,3}gb([.-][a-z]+)*)$"
RESOURCE_WORDS = "must be cpu, nvidia.com/gpu or a MIG profile such as nvidia.com/mig-1g.10gb"

GIB = 1 << 30
_PROFILE = re.compile(r"(?:^nvidia\.com/mig-|-MIG-)[1-9]g\.([1-9][0-9]{0,3})gb")
#: Percent of a profile's GB that a slice has in GiB, at least: 4.75 of 1g.5gb, 9.75 of 1g.10gb, 16.0 of an H200's
#: 1g.18gb, the least of those that `nvidia-smi mig -lgip` lists.
_PROFILE_PERCENT = 88


def mig_bytes(name: str) -> int | None:
    """Bytes that a slice has at least, by its resource or its product label; None where `name` is of no MIG profile."""
    found = _PROFILE.search(name)
    return int(found[1]) * GIB * _PROFILE_PERCENT // 100 if found else None


def most_mig_bytes(name: str) -> int | None:
    """Bytes that no slice of this profile exceeds; None where `name` is of no MIG profile."""
    found = _PROFILE.search(name)
    return int(found[1]) * GIB if found else None
