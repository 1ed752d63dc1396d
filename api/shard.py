"""What each rank of a tensor-parallel group holds of a model. Pure arithmetic.

Query heads, key-value heads, the feed-forward width and the vocabulary are split into runs, one a rank, as even as
whole units allow. Nothing is padded: a rank with fewer heads computes fewer. Where there are more ranks than key-value
heads, a key-value head lies on several ranks, and its queries are split among them. Norms lie on every rank; biases
that are added after a sum over ranks lie on rank 0.

Layout as in Megatron-LM (Shoeybi et al. 2019): q, k, v, gate and up by rows, o and down by columns.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from plimsoll.api.blocks import stored_blocks
from plimsoll.api.errors import SpecError
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import role_shape, stored_linears
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import Precision, held_codes

Run = tuple[int, int]
"""[first, last + 1)."""

MOST_RANKS = 64
"""The largest group that is looked at."""
CODES_IN_A_WORD = 8
"""Of 4 bits: no word is cut, even where a row has one scale."""
COLUMN_UNITS = (32, 16, 8, 4, 2, 1)
"""A feed-forward width is split in runs of whole vector registers, as wide as `MOST_RANKS` ranks allow."""


@dataclass(frozen=True)
class Shard:
    """What rank `rank` of `tensor` holds."""

    rank: int
    tensor: int
    queries: Run
    keys: Run
    inner: Run
    """Rows of gate and up, columns of down."""
    vocab: Run
    """Rows of embedding and head."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Its own query heads, key-value heads and width of the feed-forward."""
        queries, keys, inner = self.queries, self.keys, self.inner
        return queries[1] - queries[0], keys[1] - keys[0], inner[1] - inner[0]

    def facts(self, whole: ModelFacts) -> ModelFacts:
        """The model as this rank computes it: `whole` with its own heads and width. The vocabulary stays."""
        heads, keys, inner = self.counts
        return replace(whole, num_heads=heads, num_kv_heads=keys, intermediate_size=inner)

    def rows(self, whole: ModelFacts, role: str) -> Run:
        """Rows of the linear of `role` that it holds: all of o's and down's."""
        dim = whole.head_dim
        if role == "q":
            return self.queries[0] * dim, self.queries[1] * dim
        if role in ("k", "v"):
            return self.keys[0] * dim, self.keys[1] * dim
        if role in ("gate", "up"):
            return self.inner
        return 0, role_shape(whole, role)[0]

    def columns(self, whole: ModelFacts, role: str) -> Run:
        """Columns of the linear of `role` that it holds: a part of o's and down's, all of the others'."""
        if role == "o":
            return self.rows(whole, "q")
        if role == "down":
            return self.inner
        return 0, role_shape(whole, role)[1]

    @property
    def leads(self) -> bool:
        """Whether it is the rank that adds biases, samples and answers."""
        return self.rank == 0


def shards(facts: ModelFacts, tensor: int, precision: Precision) -> tuple[Shard, ...]:
    """What each rank of a group of `tensor` holds, rank 0 never less than another.

    Raises:
        SpecError: `parallelism.tensor` is a size that this model does not split into; sizes that do are named.
    """
    heads, inner = _head_unit(facts, precision), _inner_unit(facts, precision)
    reason = _refused(facts, tensor, heads, inner)
    if reason:
        sizes = _listed(tensor_sizes(facts, precision))
        raise SpecError(reason, field="spec.parallelism.tensor", value=tensor, fix=f"Sizes that work: {sizes}")
    found = _heads(facts, tensor, heads)
    assert found is not None
    queries, keys = found
    inners, words = _split(facts.intermediate_size, tensor, inner), _split(facts.vocab_size, tensor, 1)
    return tuple(
        Shard(rank, tensor, *parts) for rank, parts in enumerate(zip(queries, keys, inners, words, strict=True))
    )


def undivided(facts: ModelFacts) -> Shard:
    """All of the model, on one rank."""
    return Shard(
        0, 1, (0, facts.num_heads), (0, facts.num_kv_heads), (0, facts.intermediate_size), (0, facts.vocab_size)
    )


def vocab_widths(facts: ModelFacts, tensor: int) -> tuple[int, ...]:
    """Rows of embedding and head on each rank of a group of `tensor`."""
    return tuple(stop - start for start, stop in _split(facts.vocab_size, tensor, 1))


def tensor_sizes(facts: ModelFacts, precision: Precision = "bfloat16") -> tuple[int, ...]:
    """Sizes of a tensor-parallel group that this model splits into, up to `MOST_RANKS`."""
    heads, inner = _head_unit(facts, precision), _inner_unit(facts, precision)
    return tuple(size for size in range(1, MOST_RANKS + 1) if not _refused(facts, size, heads, inner))


def replication(facts: ModelFacts, tensor: int) -> str | None:
    """What a tensor-parallel group holds more than once, in words; None where every head lies on one rank."""
    if tensor <= facts.num_kv_heads:
        return None
    least, more = divmod(tensor, facts.num_kv_heads)
    devices = f"{least} or {least + 1}" if more else str(least)
    return f"each of the {facts.num_kv_heads} key-value heads lies on {devices} devices"


def _listed(sizes: Sequence[int]) -> str:
    if len(sizes) > 2 and list(sizes) == list(range(sizes[0], sizes[-1] + 1)):
        return f"{sizes[0]} to {sizes[-1]}"
    return ", ".join(map(str, sizes))


def _refused(facts: ModelFacts, tensor: int, heads: int, inner: int) -> str | None:
    if tensor < 1:
        return "must be 1 or more"
    if tensor == 1:
        return None
    if tensor > MOST_RANKS:
        return f"must be at most {MOST_RANKS}"
    if any(spec.qk_norm == "whole" for spec in facts.layers):
        return "the model's norms of queries and keys go over all heads at once, which no rank has"
    grouped = f", {heads} at a time as the groups of its codes need" if heads > 1 else ""
    if tensor * heads > facts.num_heads:
        return f"{facts.num_heads} attention heads cannot be split over {tensor}{grouped}"
    if _heads(facts, tensor, heads) is None:
        both = f"{facts.num_heads} attention heads on {facts.num_kv_heads} key-value heads"
        return f"{both} cannot be split over {tensor}{grouped}"
    if facts.intermediate_size // inner < tensor:
        width = facts.intermediate_size
        unit = f", {inner} columns at a time" if inner > 1 else ""
        return f"a feed-forward width of {width} cannot be split over {tensor}{unit}"
    if facts.vocab_size < tensor:
        return f"a vocabulary of {facts.vocab_size} cannot be split over {tensor}"
    return None


def _split(count: int, ranks: int, unit: int) -> list[Run]:
    """`count` things in `ranks` runs of whole units, the longest first; the last unit may be a short one."""
    units = -(-count // unit)
    ends = [min(count, unit * -(-rank * units // ranks)) for rank in range(ranks + 1)]
    return list(itertools.pairwise(ends))


def _heads(facts: ModelFacts, tensor: int, unit: int) -> tuple[list[Run], list[Run]] | None:
    """(query heads, key-value heads) of each rank; None where they do not split.

    Args:
        unit: query heads between two places where a split is allowed.
    """
    count, group = facts.num_kv_heads, facts.num_heads // facts.num_kv_heads
    if tensor <= count:
        keys = _split(count, tensor, unit // math.gcd(unit, group))
        queries = [(start * group, stop * group) for start, stop in keys]
    else:
        if group % unit:
            return None
        # Key-value heads that lie on more ranks than others are the last ones: rank 0 never has the least.
        owners = [count - 1 - (tensor - 1 - rank) * count // tensor for rank in range(tensor)]
        keys = [(owner, owner + 1) for owner in owners]
        queries = []
        for key in range(count):
            queries += [(key * group + a, key * group + b) for a, b in _split(group, owners.count(key), unit)]
    return (queries, keys) if all(start < stop for start, stop in queries) else None


def _head_unit(facts: ModelFacts, precision: Precision) -> int:
    """Query heads between two places where the columns of o may be split: no group of codes may be cut."""
    return (
        math.lcm(_groups(facts, precision, "output", facts.num_heads * facts.head_dim), facts.head_dim)
        // facts.head_dim
    )


def _inner_unit(facts: ModelFacts, precision: Precision) -> int:
    """Columns of down between two places where they may be split."""
    width = facts.intermediate_size
    plain = next(unit for unit in COLUMN_UNITS if width % unit == 0 and (unit == 1 or width // unit >= MOST_RANKS))
    return math.lcm(_groups(facts, precision, "down", width), plain)


def _groups(facts: ModelFacts, precision: Precision, matrix: str, columns: int) -> int:
    """Columns that share a scale in `matrix` of every layer; 1 where rows have one scale, or none."""
    names, found = find_family(facts.architecture).names, 1
    apart = facts.quantization is not None or stored_blocks(facts) is not None
    for index, spec in enumerate(facts.layers if apart else facts.layers[:1]):
        modules = [names.layer.format(index) + linear.module for linear in stored_linears(names, spec, matrix)]
        codes = held_codes(facts, precision, modules, columns)
        if codes is not None and (codes.supers or codes.group < columns):
            found = math.lcm(found, codes.uncut)
        elif codes is not None and codes.bits == 4:
            found = math.lcm(found, CODES_IN_A_WORD)
    return found
