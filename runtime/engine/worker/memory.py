"""How much of the machine the engine may take, and what the one budget function makes of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast, get_args

import psutil
import torch

from plimsoll.api.budget import CONTEXT_BYTES, RUNS, Load, Rejection, budget, short_context
from plimsoll.api.device import DeviceFacts, DeviceKind
from plimsoll.api.draft import DraftBudget
from plimsoll.api.errors import DoesNotFitError, PlimsollError, SpecError
from plimsoll.api.load import UNTESTED, Fields, refuse_unrun
from plimsoll.api.model import ModelFacts, RopeFacts
from plimsoll.api.names import Names
from plimsoll.api.precision import HeldCache, Precision
from plimsoll.api.quantity import format_bytes
from plimsoll.api.rope import override_rope
from plimsoll.api.ways_out import MIB
from plimsoll.runtime.config import EngineConfig, engine_load, names_of
from plimsoll.runtime.kernels.forecast import foreseen_libraries
from plimsoll.runtime.kernels.table import Kernels
from plimsoll.runtime.machine.cgroup import free_bytes, host_line

DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
#: What `EngineConfig` calls what is refused because it is not run yet.
FIELDS = Fields("precision", "tensor")
#: Precisions whose linear layers are held in codes, and the rest as `auto` holds it.
CODED: tuple[Precision, ...] = ("w8a16", "w4a16")


@dataclass(frozen=True)
class MemoryPlan:
    """What to allocate. `predicted` holds the budget's bytes by term."""

    precision: Precision
    tensor: int
    """Ranks that hold the model together."""
    rope: RopeFacts
    model_len: int
    num_blocks: int
    max_batched_tokens: int
    predicted: Mapping[str, int]
    rank_weights: tuple[int, ...]
    """Bytes of each rank's weights."""
    rank_bytes: tuple[int, ...]
    """Bytes that each rank takes in all."""
    cache_precision: HeldCache = "float"
    """How keys and values are held; auto is as weights that are no codes."""
    host_blocks: int = 0
    """Of the host tier."""
    rejected: tuple[Rejection, ...] = ()
    """What `auto` passed over, and why."""
    note: str | None = None
    """What a person should know of a context that memory has cut short."""
    draft: DraftBudget | None = None


def find_device(name: str) -> torch.device:
    """The device of `EngineConfig.device`. Raises SpecError for one that is not there."""
    cards = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if cards else "cpu"
    kind, _, number = name.partition(":")
    if name == "cpu" or (kind == "cuda" and cards and (int(number) if number.isdigit() else 0) < cards):
        return torch.device("cuda", int(number or 0)) if kind == "cuda" else torch.device("cpu")
    there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(cards))])
    if kind != "cuda" or cards:
        fix = f"One of {there}"
    elif torch.version.cuda is None:
        fix = f"Here: {there}. This torch is built for CPUs; install one for CUDA, or take an image built for it"
    else:
        fix = f"Here: {there}. No driver shows this process a GPU; see what nvidia-smi says, and what the pod asks for"
    raise SpecError("is not a device of this machine", field="device", value=name, fix=fix)


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """How cache is held, and weights that are no codes.

    Raises SpecError or NotRunYetError for what this device does not run.
    """
    if precision != "auto" and precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise SpecError("is unknown", field="precision", value=precision, fix=f"Use one of auto, {known}")
    kind: DeviceKind = "cuda" if device.type == "cuda" else "cpu"
    refuse_unrun(precision, 1, kind, FIELDS)
    if precision == "auto" or precision in CODED:
        precision = "float16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bfloat16"
    return DTYPES[cast(Precision, precision)]


def plan_memory(
    config: EngineConfig, facts: ModelFacts, kernels: Kernels, dtype: torch.dtype, draft: ModelFacts | None = None,
    *, follows: bool = False,
) -> MemoryPlan:  # fmt: skip
    """Closes the budget for this machine.

    Args:
        dtype: what `find_dtype` makes of the precision.
        draft: facts of `config.draft_model`.
        follows: for a rank that follows: others are taking the memory that rank 0 has seen to be free.

    Raises:
        NotRunYetError: the number of devices is sized and not run yet.
        SpecError: an option is incoherent, the model cannot take positions as far as `max_model_len`, or the
            checkpoint's codes are of other bits than the precision.
        DoesNotFitError: the sum is larger than what there is.
    """
    kind: DeviceKind = "cuda" if kernels.device.type == "cuda" else "cpu"
    if config.host_memory and not config.prefix_caching:
        raise SpecError(
            "keeps blocks by the prefix that they hold, and prefix caching is off", field="spec.kvCache.hostMemory",
            value=format_bytes(config.host_memory), fix="Leave out one of the two",
        )  # fmt: skip
    untested = os.environ.get(UNTESTED) == "1"
    refuse_unrun(config.precision, config.tensor, kind, FIELDS, untested=untested)
    rope, load = override_rope(facts, config.rope_type, config.rope_factor), engine_load(config, facts, kind, draft)
    step = load.max_batched_tokens
    assert step is not None
    total, cache_limit = memory_line(config, kernels.device)
    if kind == "cpu" and config.memory is None:
        # The ranks of this machine share what it has.
        size = cast(int, load.tensor) // load.nodes
        total, cache_limit = total // size, None if cache_limit is None else cache_limit // size
    device = DeviceFacts(kind, total, kernels.facts, foreseen_libraries(kind))
    names = names_of(config)
    found = budget(facts, device, load, RUNS, cache_limit, names)
    available = available_bytes(kernels.device)
    here = sum(rank.in_use for rank in found.ranks[: found.pod_ranks])
    wanted = here if kind == "cpu" else found.in_use
    if wanted > available and not follows:
        raise DoesNotFitError(
            f"takes {format_bytes(wanted)}, and others leave {format_bytes(available)} of this machine's memory",
            field=names.memory, ways=_beside_others(facts, replace(device, total=available), load, names),
        )  # fmt: skip
    if kind == "cuda" and found.pod_host_bytes > free_bytes() and not follows:
        sizes = f"{format_bytes(found.pod_host_bytes)}, and {format_bytes(free_bytes())} of host memory are free"
        raise DoesNotFitError(f"takes {sizes}", field=names.host_bytes, ways=["less", "none"])
    # Sized alike: a card without bfloat16 holds float16 in its place.
    precision = (
        found.precision if found.precision in CODED else next(n for n, known in DTYPES.items() if known == dtype)
    )
    return MemoryPlan(
        precision, found.tensor, rope, found.max_length, found.blocks, step, found.per_device(),
        tuple(rank.weights for rank in found.ranks), tuple(rank.in_use for rank in found.ranks),
        found.cache_precision, found.host_blocks, found.rejected, short_context(found, load, names), found.draft,
    )  # fmt: skip


def _beside_others(facts: ModelFacts, device: DeviceFacts, load: Load, names: Names) -> list[str]:
    """What fits into the memory that others leave: a line as long as that, where the budget closes on it."""
    ways = ["others stopped"]
    try:
        budget(facts, device, replace(load, cache_bytes=None), RUNS)
    except PlimsollError:
        return ways
    line = f"{names.memory} {device.total // MIB}Mi"
    also = f" and {names.ratio} {load.ratio:g} instead of an absolute size" if load.cache_bytes is not None else ""
    return [line + also, *ways]


def memory_line(config: EngineConfig, device: torch.device) -> tuple[int, int | None]:
    """(the budget's total, most of it that becomes cache): of the user, the card, or as `host_line` has it."""
    if config.memory is not None:
        return config.memory, None
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory), None
    return host_line()


def available_bytes(device: torch.device) -> int:
    """Bytes this process could have now, what it holds already included."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        # Asking has made the driver's context, which the budget counts as ours.
        return int(free) + CONTEXT_BYTES["cuda"]
    return free_bytes() + int(psutil.Process().memory_info().rss)


def resident_bytes(device: torch.device) -> int:
    """Bytes this process holds: of the card on CUDA, of the machine else."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)
