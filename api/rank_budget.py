"""What each rank of a tensor-parallel group holds, in bytes, and where ranks differ, in words. Pure arithmetic."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from plimsoll.api.device import DeviceFacts
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import Precision
from plimsoll.api.quantity import format_bytes
from plimsoll.api.shard import Run, Shard, shards, undivided
from plimsoll.api.sizes import weight_bytes


@dataclass(frozen=True)
class RankBudget:
    """One rank's line: bytes on its own device. `blocks` of cache are the same on each rank."""

    shard: Shard
    total: int
    context: int
    weights: int
    workspace_terms: Mapping[str, int]
    block_bytes: int
    blocks: int = 0
    host: int = 0
    """Bytes of the host tier on this line: 0 on a GPU, where the tier lies in the pod's memory and not the card's."""
    draft: int = 0
    """Bytes of a draft's weights."""
    draft_block: int = 0
    """Bytes of `block_bytes` that are a draft's."""

    @property
    def rank(self) -> int:
        return self.shard.rank

    @cached_property
    def workspace(self) -> int:
        """Bytes of all working memory together."""
        return sum(self.workspace_terms.values())

    @property
    def cache(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def fixed(self) -> int:
        """All but the cache."""
        return self.context + self.weights + self.draft + self.workspace + self.host

    @property
    def host_block(self) -> int:
        """Bytes of a block in the host tier: the model's part alone. A draft computes its own again."""
        return self.block_bytes - self.draft_block

    @property
    def in_use(self) -> int:
        return self.fixed + self.cache

    @property
    def headroom(self) -> int:
        """Bytes left alone."""
        return self.total - self.in_use

    def described(self) -> dict[str, int]:
        """Its share of the model and its terms, under the names that `plan -o json` and status share."""
        shard = self.shard
        return {
            "rank": self.rank, "heads": length(shard.queries), "kvHeads": length(shard.keys),
            "width": length(shard.inner), "vocabulary": length(shard.vocab), "total": self.total,
            "context": self.context, "weights": self.weights, "workspace": self.workspace,
            "collectives": self.workspace_terms["collectives"], "kvCache": self.cache,
            **({"draft": self.draft} if self.draft else {}),
            **({"hostCache": self.host} if self.host else {}), "inUse": self.in_use, "headroom": self.headroom,
        }  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A rank's part of the model, in bytes: what only precision, tensor size and kernels decide."""

    shard: Shard
    weights: int


def parts(facts: ModelFacts, precision: Precision, device: DeviceFacts, tensor: int) -> tuple[Part, ...]:
    """The part of each rank of a group of `tensor`.

    Raises:
        SpecError: the precision cannot hold this model (`held_codes`), or it does not split so (`shards`).
    """
    if tensor == 1:
        return (Part(undivided(facts), weight_bytes(facts, precision, device)),)
    found = shards(facts, tensor, precision)
    # Most ranks are alike, and a sum over the layers of a quantized checkpoint is long.
    held: dict[tuple[object, ...], int] = {}
    made = []
    for shard in found:
        alike = (shard.leads, *map(length, (shard.queries, shard.keys, shard.inner, shard.vocab)))
        if alike not in held:
            held[alike] = weight_bytes(facts, precision, device, shard)
        made.append(Part(shard, held[alike]))
    return tuple(made)


def length(run: Run) -> int:
    """Things in a run."""
    return run[1] - run[0]


def uneven(ranks: Sequence[RankBudget], facts: ModelFacts, devices: Sequence[int] = ()) -> tuple[str, ...]:
    """Sentences on what makes one rank of a group fuller than another, a draft on rank 0 included.

    Args:
        devices: bytes of each rank's device, where a machine has devices of several sizes.
    """
    found = []
    if len(set(devices)) > 1:
        sizes = [format_bytes(size) for size in sorted(set(devices))]
        found.append(f"devices of {_listed(sizes)} are in one group: each rank is sized for the smallest, {sizes[0]}")
    kinds: tuple[tuple[str, int, Callable[[Shard], Run]], ...] = (
        ("key-value heads", facts.num_kv_heads, lambda shard: shard.keys),
        ("attention heads", facts.num_heads, lambda shard: shard.queries),
        ("columns of the feed-forward", facts.intermediate_size, lambda shard: shard.inner),
    )
    for name, count, run in kinds:
        counts = [length(run(one.shard)) for one in ranks]
        most = max(counts)
        if min(counts) == most:
            continue
        full = [one.rank for one, held in zip(ranks, counts, strict=True) if held == most]
        if len(full) == 1:
            found.append(f"rank {full[0]} holds {most} of {count} {name}: it decides the budget")
        else:
            words = f"ranks {_runs(full)} hold {most} of {count} {name} each, and the others fewer"
            found.append(f"{words}: rank {full[0]} decides the budget")
        break
    if len(ranks) > 1 and ranks[0].draft:
        takes = f"{format_bytes(ranks[0].draft)} and {format_bytes(ranks[0].draft_block)} of each block of the cache"
        found.append(f"rank 0 alone runs the draft, which takes {takes}: it decides the budget")
    return tuple(found)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), words[-1]])


def _runs(ranks: Sequence[int]) -> str:
    """`0 to 3`, `0 and 2`, `0 to 2 and 5`."""
    runs: list[str] = []
    for _, group in itertools.groupby(enumerate(ranks), lambda pair: pair[1] - pair[0]):
        run = [rank for _, rank in group]
        runs += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return _listed(runs)
