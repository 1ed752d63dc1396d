"""How much of the machine the engine may take, and what the one budget function makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
import torch

from plimsoll.api.budget import CONTEXT_BYTES, RUNS, Load, budget
from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import DoesNotFitError, NotRunYetError, SpecError
from plimsoll.api.model import ModelFacts, RopeFacts
from plimsoll.api.quantity import format_bytes
from plimsoll.api.rope import check_length, default_length, override_rope
from plimsoll.api.sizes import Precision
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.kernels.table import Kernels

DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

UNASKED_CACHE_BYTES = 4 * 2**30
"""Most that becomes cache on a machine that sets no limit, for a user who named no size."""

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryPlan:
    """What to allocate. `predicted` holds the budget's bytes by term."""

    precision: str
    rope: RopeFacts
    model_len: int
    num_blocks: int
    predicted: Mapping[str, int]


def find_device(name: str) -> torch.device:
    """The device of `EngineConfig.device`. Raises SpecError for one that is not there."""
    cards = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if cards else "cpu"
    kind, _, number = name.partition(":")
    if name == "cpu" or (kind == "cuda" and cards and (int(number) if number.isdigit() else 0) < cards):
        return torch.device("cuda", int(number or 0)) if kind == "cuda" else torch.device("cpu")
    there = ["cpu", *(f"cuda:{index}" for index in range(cards))]
    raise SpecError("is not a device of this machine", field="device", value=name, fix=f"One of {', '.join(there)}")


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """How weights and cache are held. Raises SpecError or NotRunYetError for what this device does not run."""
    if precision == "auto":
        precision = "float16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bfloat16"
    if precision in ("w8a16", "w4a16"):
        raise NotRunYetError("is sized by `plan` and not run by this version", field="precision", value=precision,
                             fix=f"Use one of {', '.join(sorted(RUNS))}")  # fmt: skip
    fit = {name: dtype for name, dtype in DTYPES.items() if name != "float16" or device.type != "cpu"}
    for name, dtype in fit.items():
        if name == precision:
            return dtype
    raise SpecError(f"does not run on {device.type}", field="precision", value=precision,
                    fix=f"Use one of auto, {', '.join(fit)}")  # fmt: skip


def plan_memory(config: EngineConfig, facts: ModelFacts, kernels: Kernels, dtype: torch.dtype) -> MemoryPlan:
    """Closes the budget for this machine.

    Raises:
        SpecError: an option is incoherent, or the model cannot take positions as far as `max_model_len`.
        DoesNotFitError: the sum is larger than what there is.
    """
    rope = override_rope(facts, config.rope_type, config.rope_factor)
    check_length(facts, rope, config.max_model_len, "max_model_len")
    load = Load(
        precision=next(name for name, known in DTYPES.items() if known == dtype),
        ratio=config.kv_ratio,
        cache_bytes=config.kv_cache_bytes,
        block_size=config.block_size,
        max_length=config.max_model_len,
        max_batched_tokens=config.max_batched_tokens,
        max_running=config.max_running,
        trained_length=default_length(facts, rope),
    )
    device, limited = device_facts(config, kernels)
    found = budget(facts, device, load)
    if not limited and config.kv_cache_bytes is None and found.kv_cache > UNASKED_CACHE_BYTES:
        found = budget(facts, device, replace(load, cache_bytes=UNASKED_CACHE_BYTES))
    available = available_bytes(kernels.device)
    if found.in_use > available:
        raise DoesNotFitError(
            f"takes {format_bytes(found.in_use)}, and others leave {format_bytes(available)} of this machine's memory",
            field="memory", fix="Stop them, or lower memory or kv_cache_bytes",
        )  # fmt: skip
    return MemoryPlan(found.precision, rope, found.max_length, found.blocks, found.per_device())


def device_facts(config: EngineConfig, kernels: Kernels) -> tuple[DeviceFacts, bool]:
    """The device the budget is closed on, and whether somebody set its total: the user, a container or a card."""
    limit = config.memory or memory_limit(kernels.device)
    total = limit or psutil.virtual_memory().available // 2
    kind: Literal["cpu", "cuda"] = "cuda" if kernels.device.type == "cuda" else "cpu"
    facts = DeviceFacts(
        kind=kind,
        total=total,
        activation_bytes=kernels.dtype.itemsize,
        row_tile=kernels.row_tile,
        scratch_bytes=kernels.scratch_bytes,
    )
    return facts, limit is not None


def memory_limit(device: torch.device) -> int | None:
    """Bytes of the card, or what the container may take; None where nothing limits this process."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min(_cgroup_limits(CGROUP_ROOT, PROC_CGROUP), default=None)


def available_bytes(device: torch.device) -> int:
    """Bytes this process could have now, what it holds already included."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        # Asking has made the driver's context, which the budget counts as ours.
        return int(free) + CONTEXT_BYTES["cuda"]
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def resident_bytes(device: torch.device) -> int:
    """Bytes this process holds: of the card on CUDA, of the machine else."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def _cgroup_limits(root: Path, own: Path) -> list[int]:
    """Memory limits of this process's cgroup and those above it; version 2 and version 1 alike."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        folder = base / path.lstrip("/")
        # A container without a cgroup namespace sees its host's path and only its own folder: the root is its own.
        for group in (folder, *folder.parents):
            limit = _limit(group)
            if limit is not None:
                found.append(limit)
            if group == base:
                break
    return found


def _limit(group: Path) -> int | None:
    """Bytes one cgroup allows; None where it sets no limit. Version 1 says so with a number beyond any machine."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (group / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < psutil.virtual_memory().total:
            return int(text)
    return None
