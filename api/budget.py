"""The budget: what each rank holds, to the byte, before anything runs.

    free    = total - context - weights - workspace - host tier (on a CPU)
    cache   = ratio * free
    blocks  = the least over ranks of cache // bytes of a block

`plan` prints it, `up` refuses by it, and the engine sizes its pool with it, so that they cannot disagree.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

from plimsoll.api.blocks import block_bits
from plimsoll.api.budget_sum import LEAST_CONTEXT as LEAST_CONTEXT
from plimsoll.api.budget_sum import Sum
from plimsoll.api.cache_loss import auto_caches
from plimsoll.api.device import DeviceFacts
from plimsoll.api.draft import DraftBudget, draft_budget, draft_workspace
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.loaded_line import Budget as Budget
from plimsoll.api.loaded_line import Load as Load
from plimsoll.api.loaded_line import Rejection as Rejection
from plimsoll.api.model import ModelFacts
from plimsoll.api.names import MANIFEST, Names
from plimsoll.api.precision import ActivationPrecision, HeldCache, Precision
from plimsoll.api.quantity import format_bytes
from plimsoll.api.quantization import PRECISION_OF_BITS
from plimsoll.api.rank_budget import Part, RankBudget, parts
from plimsoll.api.second_rounding import blocks_rounded, refused_under_auto
from plimsoll.api.sizes import block_bytes, workspace_terms
from plimsoll.api.ways_out import MIB, described, ways_out

#: What each rank's process takes before the first tensor. CUDA: driver context and library handles, as measured by
#: peers at 0.5 to 0.6 GiB. CPU: interpreter, torch and compiled kernels of the process, by `benchmarks/memory.py`.
CONTEXT_BYTES: Mapping[str, int] = {"cuda": 600 * MIB, "cpu": 272 * MIB}
#: What a rank of a CPU that follows takes less: it has no requests, no scheduler and no sampler. By the same benchmark.
FOLLOWER_SAVES = 4 * MIB
#: What the endpoint takes beside the engine, in a process of its own: interpreter, tokenizer, requests. Not part of the
#: line; a pod's memory limit is both. With a vocabulary of 151,643 tokens, 159 MiB were measured when idle, and 347 MiB
#: under the worst requests.
SERVER_BYTES = 384 * MIB
#: Tokens of the largest step by default: what fills the arithmetic of a card, or of a few cores.
BATCHED_TOKENS: Mapping[str, int] = {"cuda": 8192, "cpu": 2048}
#: The largest group that `auto` tries: what most machines have, and where most models stop to gain.
MOST_AUTO_TENSOR = 8
#: From the least degraded to the most, what `auto` goes through.
AUTO_PRECISIONS: tuple[Precision, ...] = ("bfloat16", "w8a16", "w4a16")
#: What this version's engine runs; the rest can be sized.
RUNS: frozenset[str] = frozenset({"float32", "bfloat16", "float16", "w8a16", "w4a16"})


def budget(
    facts: ModelFacts,
    device: DeviceFacts,
    load: Load,
    runs: frozenset[str] | None = None,
    cache_limit: int | None = None,
    names: Names = MANIFEST,
    devices: Sequence[int] = (),
) -> Budget:
    """The budget of `load` on one `device` a rank.

    Args:
        runs: precisions that `auto` may choose, on one GPU or on ranks of a CPU; None sizes them all, and several GPUs.
        cache_limit: most bytes of a device that become cache where `load` names no absolute size; one request still
            fits.
        names: what the user calls the fields that a refusal suggests to change.
        devices: bytes of each device that the machine has, where that is known. A group takes the first of them, and
            the smallest of these is the line of each rank, below `device.total`.

    Raises:
        SpecError: the wish is incoherent; the field, the value and the fix are named.
        DoesNotFitError: it does not fit; the sum is shown, and what would fit.
    """
    _check(load)
    if devices and load.tensor != "auto" and load.tensor > len(devices):
        raise SpecError(
            "is more than the devices of this machine", field="spec.parallelism.tensor", value=load.tensor,
            fix=f"At most {len(devices)}",
        )  # fmt: skip
    sizer = _Sizer(facts, device, runs, tuple(devices), load.draft)
    rejected: list[Rejection] = []
    tried: list[Sum] = []
    found = sizer.closed(load, rejected, tried)
    if found is not None:
        if cache_limit is not None and load.cache_bytes is None and found.kv_cache > cache_limit:
            enough = max(cache_limit, found.needed_blocks * found.fullest.block_bytes)
            found = sizer.sum(replace(found.load, cache_bytes=enough))
        return found.budget(tuple(rejected), tuple(devices[: len(found.ranks)]))
    nearest = min(tried, key=lambda one: one.least)
    text = nearest.shortage
    if len({(one.load.precision, one.load.tensor) for one in tried}) > 1:
        spread = f" on {nearest.load.tensor} devices" if load.tensor == "auto" and nearest.load.tensor != 1 else ""
        named = f"precision {nearest.load.precision}" if load.precision == "auto" else "the option"
        text = f"{named}{spread}, the smallest that auto may take, {text}{sizer.unsplit(load, nearest)}"
    raise DoesNotFitError(text, ways=_ways(sizer, load, nearest, names))


class _Sizer:
    """Sizes wishes for one model on one kind of device. What a wish does not change is summed once."""

    def __init__(
        self,
        facts: ModelFacts,
        device: DeviceFacts,
        runs: frozenset[str] | None,
        devices: tuple[int, ...],
        draft: ModelFacts | None,
    ) -> None:
        self.facts, self.device, self.runs, self.devices = facts, device, runs, devices
        self.draft = None if draft is None else cache(partial(draft_budget, draft, device))
        self.parts: Callable[[Precision, int], tuple[Part, ...]] = cache(
            lambda precision, tensor: parts(facts, precision, device, tensor)
        )
        self.ranks = cache(self._ranks)

    def closed(
        self, load: Load, rejected: list[Rejection], tried: list["Sum"], total: int | None = None
    ) -> "Sum | None":
        """The first option that fits; what was passed over on the way goes into `rejected` and `tried`.

        Raises SpecError where no option can hold this model at all.
        """
        unheld: SpecError | None = None
        cannot: set[Precision] = set()
        for precision, tensor in self.options(load):
            spread = f", tensor {tensor}" if load.tensor == "auto" and tensor > 1 else ""
            option = f"precision {precision}{spread}"
            if precision in cannot:
                continue
            refused = refused_under_auto(self.facts, precision) if load.precision == "auto" else None
            if refused:
                rejected.append(Rejection(option, refused))
                cannot.add(precision)
                continue
            try:
                found = self.sum(replace(load, precision=precision, tensor=tensor), total)
            except SpecError as error:
                unheld = unheld or error
                rejected.append(Rejection(option, error.message))
                if tensor == 1:
                    # Not on any number of devices.
                    cannot.add(precision)
                continue
            if found.fits:
                return found
            tried.append(found)
            rejected.append(Rejection(option, found.shortage))
            if load.cache_precision != "auto" or found.fullest.fixed >= found.total:
                continue
            for held, coarse in auto_caches(self.facts):
                if coarse is None:
                    found = self.sum(replace(found.load, cache_precision=held), total)
                    if found.fits:
                        return found
                    tried.append(found)
                rejected.append(Rejection(f"{option}, cache {held}", coarse or found.shortage))
        if unheld and not tried:
            raise unheld
        return None

    def options(self, load: Load) -> Iterator[tuple[Precision, int]]:
        """(precision, tensor size): the fewest devices first; on as many, from the least degraded precision on."""
        precisions = AUTO_PRECISIONS if load.precision == "auto" else (load.precision,)
        if load.precision == "auto" and self.facts.quantization is not None:
            # As it is stored: floats would take more and give nothing back.
            precisions = (PRECISION_OF_BITS[self.facts.quantization.bits],)
        elif load.precision == "auto" and (bits := block_bits(self.facts)) is not None:
            # Blocks as they are stored are the file's own values. Ranks that would cut a block hold them as floats.
            precisions = (PRECISION_OF_BITS[bits], "bfloat16")
        elif load.precision == "auto" and self.runs is not None:
            precisions = tuple(name for name in precisions if name in self.runs) or ("float32",)
        # On GPUs more than one is not run yet.
        alone = self.runs is not None and self.device.kind == "cuda"
        most = 1 if alone else min(MOST_AUTO_TENSOR, len(self.devices) or MOST_AUTO_TENSOR)
        each = range(load.nodes, max(most, load.nodes) + 1, load.nodes)
        tensors = each if load.tensor == "auto" else (load.tensor,)
        for tensor in tensors:
            for precision in precisions:
                yield precision, tensor

    def unsplit(self, load: Load, nearest: "Sum") -> str:
        """Why `auto` did not take more devices, where the model does not split over as many; else nothing."""
        for precision, tensor in self.options(replace(load, precision=nearest.load.precision)):
            try:
                self.parts(precision, tensor)
            except SpecError as error:
                return f". On {tensor} devices: {error.message}. {error.fix}"
        return ""

    def sum(self, load: Load, total: int | None = None) -> "Sum":
        """One concrete option, added up, on devices of `total` bytes where that is given."""
        facts, device = self.facts, self.device
        precision, tensor = cast(Precision, load.precision), cast(int, load.tensor)
        if total is None:
            total = min(device.total, *self.devices[:tensor]) if self.devices else device.total
        trained = load.trained_length or facts.max_position
        step, longest = load.max_batched_tokens or BATCHED_TOKENS[device.kind], load.max_length or trained
        size, held = load.block_size, load.held_cache
        rows = load.activation_precision
        ranks = self.ranks(precision, tensor, step, load.max_running, longest, load.nodes, size, held, rows)
        draft = None if self.draft is None else self.draft(precision, held, size, longest)
        if draft is not None:
            ranks = (_with_draft(ranks[0], draft, device), *ranks[1:])
        slots = _host_blocks(load, ranks)
        if slots and device.kind == "cpu":
            ranks = tuple(replace(rank, host=slots * rank.host_block) for rank in ranks)
        shares = [_share(load, total - rank.fixed) for rank in ranks]
        blocks = min(share // rank.block_bytes for share, rank in zip(shares, ranks, strict=True))
        return Sum(load, step, ranks, total, blocks, min(shares), trained, slots, draft)

    def _ranks(
        self, precision: Precision, tensor: int, step: int, running: int, longest: int, nodes: int, size: int,
        held: HeldCache, rows: ActivationPrecision,
    ) -> tuple[RankBudget, ...]:  # fmt: skip
        """What does not depend on the device's size, of each rank: a refusal looks at dozens of sizes."""
        facts, device, found = self.facts, self.device, []
        for part in self.parts(precision, tensor):
            shard = None if tensor == 1 else part.shard
            terms = workspace_terms(facts, precision, device, step, running, longest, shard, nodes, rows)
            block = block_bytes(facts, size, precision, held, shard)
            context = context_bytes(device, part.shard.rank)
            found.append(RankBudget(part.shard, 0, context, part.weights, terms, block))
        return tuple(found)


def _with_draft(rank: RankBudget, draft: DraftBudget, device: DeviceFacts) -> RankBudget:
    """`rank` with a draft beside its part of the model."""
    terms = {**rank.workspace_terms, "draft": draft_workspace(draft, rank.workspace_terms["logits"], device)}
    block = rank.block_bytes + draft.block
    return replace(rank, workspace_terms=terms, block_bytes=block, draft=draft.weights, draft_block=draft.block)


def _share(load: Load, free: int) -> int:
    """Bytes of a rank's device that may become cache, `free` being what nothing else takes."""
    return int(load.ratio * max(0, free)) if load.cache_bytes is None else load.cache_bytes


def _host_blocks(load: Load, ranks: Sequence[RankBudget]) -> int:
    """Blocks of the host tier, the same on each rank. Raises SpecError where there is a tier too small for one."""
    if not load.host_bytes:
        return 0
    largest = max(rank.host_block for rank in ranks)
    if load.host_bytes < largest:
        raise SpecError(
            f"holds no block of the cache, which takes {format_bytes(largest)}", field="spec.kvCache.hostMemory",
            value=format_bytes(load.host_bytes), fix="Give some hundred times as much, or leave it out",
        )  # fmt: skip
    return load.host_bytes // largest


def _ways(sizer: _Sizer, load: Load, nearest: Sum, names: Names) -> list[str]:
    """What would fit, in the user's words, the fewest changes first."""
    facts, runs, on_cpu = sizer.facts, sizer.runs, sizer.device.kind == "cpu"

    def closes(change: dict[str, Any]) -> Budget | None:
        fields = {key: value for key, value in change.items() if key != "total"}
        if on_cpu and load.tensor == "auto" and "total" in change:
            # Ranks of a CPU take more memory than one rank with a larger line.
            fields["tensor"] = load.nodes
        try:
            found = sizer.closed(replace(load, **fields), [], [], change.get("total"))
        except SpecError:
            return None
        return None if found is None else found.budget((), ())

    known = AUTO_PRECISIONS if runs is None else tuple(one for one in AUTO_PRECISIONS if one in runs)
    smaller = tuple(one for one in known if _lighter(sizer, nearest.load, one))
    need = nearest.needed_blocks * nearest.fullest.block_bytes
    # A cache is written in whole MiB.
    found = ways_out(load, -(-need // MIB) * MIB, nearest.step, smaller, closes)
    ways = [described(change, fit, load, names, _again(facts, fit)) for change, fit in found]
    if runs is None:
        # Sized, and refused by the engine of this version.
        at = len(ways) - 1 if ways and ways[-1].startswith(names.memory) else len(ways)
        ways[at:at] = list(_unrun(load, closes, not on_cpu))
    return ways


def _again(facts: ModelFacts, found: Budget) -> str:
    """What more to know of a precision that rounds a second time."""
    blocks = blocks_rounded(facts, found.precision)
    return f"{blocks} blocks rounded again" if blocks else ""


def _unrun(load: Load, closes: Callable[[dict[str, Any]], Budget | None], on_gpus: bool) -> Iterator[str]:
    for tensor in range(2, MOST_AUTO_TENSOR + 1):
        # A CPU runs several ranks, and one with a larger line takes less memory than they do.
        if on_gpus and load.tensor == 1 and closes({"tensor": tensor}):
            yield f"parallelism.tensor {tensor} (sized, not run by this version)"
            break


def _lighter(sizer: _Sizer, load: Load, precision: Precision) -> bool:
    """Whether weights at `precision` take less than at that of `load`, and can be held at all."""
    tensor = cast(int, load.tensor)
    try:
        now = sizer.parts(cast(Precision, load.precision), tensor)[0].weights
        return sizer.parts(precision, tensor)[0].weights < now
    except SpecError:
        return False


def short_context(found: Budget, load: Load, names: Names = MANIFEST) -> str | None:
    """What a person should know of a context that memory has cut short; None where it has not."""
    if load.max_length is not None or load.trained_length is None or found.max_length >= load.trained_length:
        return None
    return (
        f"the context is {found.max_length} tokens of the {load.trained_length} that the model was trained for: the "
        "cache holds no more. Give more memory, or the cache a larger share, for a longer context. Set "
        f"{names.max_length} to refuse a start with less"
    )


def context_bytes(device: DeviceFacts, rank: int = 0) -> int:
    """What lies on the device of `rank` before the first tensor."""
    less = FOLLOWER_SAVES if rank and device.kind == "cpu" else 0
    return CONTEXT_BYTES[device.kind] + device.libraries - less


def _check(load: Load) -> None:
    if not 0 < load.ratio <= 1:
        raise SpecError("must be above 0 and at most 1", field="spec.kvCache.ratio", value=load.ratio, fix="Try 0.8")
    size = load.block_size
    if size < 16 or size > 256 or size & (size - 1):
        raise SpecError(
            "must be a power of two from 16 to 256", field="spec.kvCache.blockSize", value=size, fix="Try 64"
        )
    if load.max_length is not None and load.max_length < 1:
        raise SpecError("must be 1 or more", field="spec.context.maxLength", value=load.max_length)
    for name, value in (("maxBatchedTokens", load.max_batched_tokens), ("maxRunningRequests", load.max_running)):
        if value is not None and value < 1:
            raise SpecError("must be 1 or more", field=f"spec.serving.{name}", value=value)
