"""The budget: what one rank holds, to the byte, before anything runs.

    free   = total - context - weights - workspace
    cache  = ratio * free, in whole blocks

`plan` prints it, `up` refuses by it, and the engine sizes its pool with it, so that they cannot disagree.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from plimsoll.api.device import DeviceFacts
from plimsoll.api.errors import DoesNotFitError, SpecError
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import CODE_BITS, CachePrecision, Precision
from plimsoll.api.quantity import format_bytes
from plimsoll.api.quantization import PRECISION_OF_BITS
from plimsoll.api.second_rounding import refused_under_auto, stored_blocks
from plimsoll.api.shard import tensor_sizes
from plimsoll.api.sizes import block_bytes, weight_bytes, workspace_terms
from plimsoll.api.ways_out import MANIFEST, MIB, Fit, Names, described, ways_out

#: What lies on a device before the first tensor. CUDA: driver context and library handles, as measured by peers at
#: 0.5 to 0.6 GiB. CPU: interpreter, torch and compiled kernels of the engine process, by `benchmarks/memory.py`.
CONTEXT_BYTES: Mapping[str, int] = {"cuda": 600 * MIB, "cpu": 288 * MIB}
#: What the endpoint takes beside the engine, in a process of its own: interpreter, tokenizer, requests. Not part of the
#: line; a pod's memory limit is both. With a vocabulary of 151,643 tokens, 159 MiB were measured when idle, and 347 MiB
#: under the worst requests.
SERVER_BYTES = 384 * MIB
#: Tokens of the largest step where nobody says otherwise: what fills the arithmetic of a card, or of a few cores.
BATCHED_TOKENS: Mapping[str, int] = {"cuda": 8192, "cpu": 2048}
#: The fewest tokens of context that are served where no length is set: a chat's template, a question and an answer of a
#: few sentences do not fit into less.
LEAST_CONTEXT = 512
#: From the least degraded to the most, what `auto` goes through.
AUTO_PRECISIONS: tuple[Precision, ...] = ("bfloat16", "w8a16", "w4a16")
#: What this version's engine runs; the rest can be sized.
RUNS: frozenset[str] = frozenset({"float32", "bfloat16", "float16", "w8a16", "w4a16"})


@dataclass(frozen=True)
class Load:
    """What a user wants loaded onto each device. Lengths in tokens, sizes in bytes."""

    precision: Precision | Literal["auto"] = "auto"
    cache_precision: CachePrecision = "auto"
    ratio: float = 0.8
    cache_bytes: int | None = None
    """Absolute size of the cache; overrides `ratio`."""
    block_size: int = 64
    max_length: int | None = None
    """Longest prompt and answer together; None takes the trained length, or what the cache holds if that is less."""
    tensor: int | Literal["auto"] = 1
    max_batched_tokens: int | None = None
    """Tokens of the largest step; None takes `BATCHED_TOKENS`."""
    max_running: int = 64
    trained_length: int | None = None
    """Overrides the model's own, where positions are stretched."""


@dataclass(frozen=True)
class Rejection:
    """An option that `auto` passed over."""

    option: str
    reason: str


@dataclass(frozen=True)
class Budget:
    """The loaded line: bytes per device of the fullest rank, and what they hold."""

    precision: Precision
    cache_precision: CachePrecision
    tensor: int
    total: int
    context: int
    weights: int
    workspace: int
    workspace_terms: Mapping[str, int]
    kv_cache: int
    block_bytes: int
    block_size: int
    blocks: int
    max_length: int
    rejected: tuple[Rejection, ...] = ()

    @property
    def in_use(self) -> int:
        return self.context + self.weights + self.workspace + self.kv_cache

    @property
    def headroom(self) -> int:
        """Bytes left alone."""
        return self.total - self.in_use

    @property
    def kv_tokens(self) -> int:
        return self.blocks * self.block_size

    @property
    def concurrent_requests(self) -> int:
        """Requests of `max_length` that the cache holds at once."""
        return self.blocks // -(-self.max_length // self.block_size)

    def per_device(self) -> dict[str, int]:
        """The terms under the names that status, `plan -o json` and the engine share."""
        return {
            "total": self.total, "context": self.context, "weights": self.weights,
            "workspace": self.workspace, "kvCache": self.kv_cache, "headroom": self.headroom,
        }  # fmt: skip


def budget(
    facts: ModelFacts,
    device: DeviceFacts,
    load: Load,
    runs: frozenset[str] | None = None,
    cache_limit: int | None = None,
    names: Names = MANIFEST,
) -> Budget:
    """The budget of `load` on `device`.

    Args:
        runs: precisions that `auto` may choose, on one device; None sizes them all, and tensor sizes up to 8.
        cache_limit: most bytes that become cache where `load` names no absolute size; one request still fits.
        names: what the user calls the fields that a refusal suggests to change.

    Raises:
        SpecError: the wish is incoherent; the field, the value and the fix are named.
        DoesNotFitError: it does not fit; the sum is shown, and what would fit.
    """
    _check(load)
    rejected: list[Rejection] = []
    tried: list[_Sum] = []
    found = _closed(facts, device, load, runs, rejected, tried)
    if found is not None:
        if cache_limit is not None and load.cache_bytes is None and found.kv_cache > cache_limit:
            enough = max(cache_limit, found.needed_blocks * found.block_bytes)
            found = _sum(facts, device, replace(found.load, cache_bytes=enough))
        return found.budget(tuple(rejected))
    nearest = min(tried, key=lambda one: one.least)
    text = nearest.shortage
    if len(tried) > 1:
        text = f"precision {nearest.load.precision}, the smallest that auto may take, {text}"
    raise DoesNotFitError(text, ways=_ways(facts, device, load, runs, nearest, names))


def _closed(
    facts: ModelFacts, device: DeviceFacts, load: Load, runs: frozenset[str] | None,
    rejected: list[Rejection], tried: list["_Sum"],
) -> "_Sum | None":  # fmt: skip
    """The first option that fits; what was passed over on the way goes into `rejected` and `tried`.

    Raises SpecError where no option can hold this model at all.
    """
    unheld: SpecError | None = None
    for precision, tensor in _options(facts, load, runs):
        option = f"precision {precision}" + (f", tensor {tensor}" if load.tensor == "auto" and tensor > 1 else "")
        refused = refused_under_auto(facts, precision) if load.precision == "auto" else None
        if refused:
            rejected.append(Rejection(option, refused))
            continue
        try:
            found = _sum(facts, device, replace(load, precision=precision, tensor=tensor))
        except SpecError as error:
            unheld = unheld or error
            rejected.append(Rejection(option, error.message))
            continue
        if found.fits:
            return found
        tried.append(found)
        rejected.append(Rejection(option, found.shortage))
    if unheld and not tried:
        raise unheld
    return None


def _ways(
    facts: ModelFacts, device: DeviceFacts, load: Load, runs: frozenset[str] | None, nearest: "_Sum", names: Names
) -> list[str]:
    """What would fit, in the user's words, the fewest changes first."""

    def closes(change: dict[str, Any]) -> Budget | None:
        fields = {key: value for key, value in change.items() if key != "total"}
        there = replace(device, total=change.get("total", device.total))
        try:
            found = _closed(facts, there, replace(load, **fields), runs, [], [])
        except SpecError:
            return None
        return None if found is None else found.budget(())

    known = AUTO_PRECISIONS if runs is None else tuple(one for one in AUTO_PRECISIONS if one in runs)
    smaller = tuple(one for one in known if weight_bytes_less(facts, device, nearest.load, one))
    need = nearest.needed_blocks * nearest.block_bytes
    # A cache is written in whole MiB.
    found = ways_out(load, -(-need // MIB) * MIB, nearest.step, smaller, closes)
    ways = [described(change, fit, load, names, _again(facts, fit)) for change, fit in found]
    if runs is None:
        # Sized, and refused by the engine of this version.
        at = len(ways) - 1 if ways and ways[-1].startswith(names.memory) else len(ways)
        ways[at:at] = list(_unrun(facts, load, closes))
    return ways


def _again(facts: ModelFacts, found: Fit) -> str:
    """What more to know of a precision that rounds a second time."""
    blocks = stored_blocks(facts) if found.precision in CODE_BITS else None
    return f"{blocks} blocks rounded again" if blocks else ""


def _unrun(facts: ModelFacts, load: Load, closes: Callable[[dict[str, Any]], Budget | None]) -> Iterator[str]:
    if load.cache_precision == "auto" and closes({"cache_precision": "int8"}):
        yield "kvCache.precision int8 (sized, not run by this version)"
    for tensor in tensor_sizes(facts)[1:4]:
        if load.tensor == 1 and closes({"tensor": tensor}):
            yield f"parallelism.tensor {tensor} (sized, not run by this version)"
            break


def short_context(found: Budget, load: Load) -> str | None:
    """What a person should know of a context that memory has cut short; None where it has not."""
    if load.max_length is not None or load.trained_length is None or found.max_length >= load.trained_length:
        return None
    return (
        f"the context is {found.max_length} tokens of the {load.trained_length} that the model was trained for: the "
        "cache holds no more. Give more memory, or the cache a larger share, for a longer context. Set the context's "
        "length to refuse a start with less"
    )


def _options(facts: ModelFacts, load: Load, runs: frozenset[str] | None) -> Iterator[tuple[Precision, int]]:
    """(precision, tensor size) from the least degraded on; of one precision, the fewest devices first."""
    precisions = AUTO_PRECISIONS if load.precision == "auto" else (load.precision,)
    if load.precision == "auto" and facts.quantization is not None:
        # As it is stored: floats would take more and give nothing back.
        precisions = (PRECISION_OF_BITS[facts.quantization.bits],)
    elif load.precision == "auto" and runs is not None:
        precisions = tuple(name for name in precisions if name in runs) or ("float32",)
    if load.tensor != "auto":
        tensors: tuple[int, ...] = (load.tensor,)
    else:
        # Engines that run run on one device today.
        tensors = tensor_sizes(facts)[:4] if runs is None else (1,)
    for precision in precisions:
        for tensor in tensors:
            yield precision, tensor


@dataclass(frozen=True)
class _Sum:
    """One concrete option, added up."""

    load: Load
    device: DeviceFacts
    weights: int
    terms: Mapping[str, int]
    block_bytes: int
    kv_cache: int
    blocks: int
    trained_length: int

    @property
    def workspace(self) -> int:
        return sum(self.terms.values())

    @property
    def context(self) -> int:
        return context_bytes(self.device)

    @property
    def length(self) -> int:
        """Tokens the cache must hold for one request: the wish, or when there is none the least that serves."""
        return self.load.max_length or min(self.trained_length, LEAST_CONTEXT)

    @property
    def needed_blocks(self) -> int:
        return -(-self.length // self.load.block_size)

    @property
    def step(self) -> int:
        """Tokens of the largest step."""
        return self.load.max_batched_tokens or BATCHED_TOKENS[self.device.kind]

    @property
    def least(self) -> int:
        """Bytes that it takes with a cache for one request."""
        return self.context + self.weights + self.workspace + self.needed_blocks * self.block_bytes

    @property
    def fits(self) -> bool:
        spent = self.context + self.weights + self.workspace + self.kv_cache
        return self.blocks >= self.needed_blocks and spent <= self.device.total

    @property
    def shortage(self) -> str:
        """The sum, as a sentence."""
        fixed = self.context + self.weights + self.workspace
        text = (
            f"needs {format_bytes(self.weights)} weights + {format_bytes(self.context + self.workspace)} workspace and "
            f"context = {format_bytes(fixed)} of {format_bytes(self.device.total)} per device"
        )
        if fixed >= self.device.total:
            return text
        need = self.needed_blocks * self.block_bytes
        share = "asked for" if self.load.cache_bytes is not None else f"left at ratio {self.load.ratio:g}"
        cache = (
            f"a cache of {self.length} tokens takes {format_bytes(need)} and {format_bytes(self.kv_cache)} is {share}"
        )
        return f"{text}; {cache}"

    def budget(self, rejected: tuple[Rejection, ...]) -> Budget:
        return Budget(
            precision=cast(Precision, self.load.precision),
            cache_precision=self.load.cache_precision,
            tensor=cast(int, self.load.tensor),
            total=self.device.total,
            context=self.context,
            weights=self.weights,
            workspace=self.workspace,
            workspace_terms=self.terms,
            kv_cache=self.blocks * self.block_bytes,
            block_bytes=self.block_bytes,
            block_size=self.load.block_size,
            blocks=self.blocks,
            max_length=self.load.max_length or min(self.trained_length, self.blocks * self.load.block_size),
            rejected=rejected,
        )


def _sum(facts: ModelFacts, device: DeviceFacts, load: Load) -> _Sum:
    precision, tensor = cast(Precision, load.precision), cast(int, load.tensor)
    trained = load.trained_length or facts.max_position
    weights = weight_bytes(facts, precision, device, tensor)
    terms = workspace_terms(
        facts, precision, device, tensor,
        load.max_batched_tokens or BATCHED_TOKENS[device.kind], load.max_running, load.max_length or trained,
    )  # fmt: skip
    block = block_bytes(facts, load.block_size, precision, load.cache_precision, tensor)
    free = max(0, device.total - context_bytes(device) - weights - sum(terms.values()))
    cache = int(load.ratio * free) if load.cache_bytes is None else load.cache_bytes
    return _Sum(load, device, weights, terms, block, cache, cache // block, trained)


def context_bytes(device: DeviceFacts) -> int:
    """What lies on it before the first tensor."""
    return CONTEXT_BYTES[device.kind] + device.libraries


def weight_bytes_less(facts: ModelFacts, device: DeviceFacts, load: Load, precision: Precision) -> bool:
    """Whether `precision` takes less than what `load` asks for, and can hold this model at all."""
    try:
        now = weight_bytes(facts, cast(Precision, load.precision), device, cast(int, load.tensor))
        return weight_bytes(facts, precision, device, cast(int, load.tensor)) < now
    except SpecError:
        return False


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
