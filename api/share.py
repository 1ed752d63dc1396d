"""The part of each stored tensor that a rank reads, in the order in which it reads them. Pure arithmetic."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from plimsoll.api.families.family import Linear
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import FUSED, SUMMED, has_bias, norm_sizes, role_shape, stored_linears
from plimsoll.api.model import LayerSpec, ModelFacts
from plimsoll.api.shard import Run, Shard

Piece = tuple[int, int, int]
"""(first row, last row + 1) of a stored tensor, and the row of the fused weight where they go."""
Step = tuple[int, int, int, Run]
"""A piece, or a part of one, and the run of rows that are read together with it."""


@dataclass(frozen=True)
class Share:
    """Rows and columns that a rank reads of the stored tensor `name`."""

    name: str
    pieces: tuple[Piece, ...]
    """In the order of the file."""
    of: int
    """Columns of the stored tensor; 1 for a vector."""
    columns: Run | None = None
    """None is all, and a vector's."""
    vector: bool = False

    @property
    def rows(self) -> int:
        """Rows that are read."""
        return sum(stop - start for start, stop, _ in self.pieces)

    @property
    def width(self) -> int:
        """Columns that are read."""
        return self.of if self.columns is None else self.columns[1] - self.columns[0]

    @cached_property
    def windows(self) -> tuple[Run, ...]:
        """The rows that are read, in as few runs as there are."""
        found: list[Run] = []
        for start, stop, _ in self.pieces:
            if found and found[-1][1] == start:
                found[-1] = found[-1][0], stop
            else:
                found.append((start, stop))
        return tuple(found)

    def steps(self, most: int) -> Iterator[Step]:
        """The pieces in parts of at most `most` elements of whole rows: all ranks make the same steps where they read
        the same rows, however many columns are theirs."""
        height = max(1, most // max(1, self.of))
        for window in self.windows:
            for first, last, target in self.pieces:
                if window[0] <= first < window[1]:
                    for start in range(first, last, height):
                        yield start, min(start + height, last), target + start - first, window


def shares(facts: ModelFacts, shard: Shard) -> Mapping[str, Share]:
    """What the rank of `shard` reads, by name. A tied head is not among them.

    Biases that are added after a sum over ranks are read by the rank that leads alone.
    """
    names, found = find_family(facts.architecture).names, list[Share]()
    vocabulary = ((*shard.vocab, 0),)
    found.append(Share(f"{names.embedding}.weight", vocabulary, facts.hidden_size))
    for index, spec in enumerate(facts.layers):
        prefix = names.layer.format(index)
        for role, size in norm_sizes(facts, spec).items():
            found += _norm(prefix + names.norms[role], size, spec.norm.bias)
        for matrix in FUSED:
            found += _fused(facts, shard, spec, prefix, stored_linears(names, spec, matrix))
    found += _norm(names.final_norm, facts.hidden_size, facts.final_norm.bias)
    if not facts.tie_embeddings:
        found.append(Share(f"{names.head}.weight", vocabulary, facts.hidden_size))
    return {share.name: share for share in found}


def _norm(module: str, size: int, bias: bool) -> list[Share]:
    return [Share(f"{module}.{kind}", ((0, size, 0),), 1, vector=True) for kind in ("weight", "bias")[: 1 + bias]]


def _fused(facts: ModelFacts, shard: Shard, spec: LayerSpec, prefix: str, linears: Sequence[Linear]) -> Iterator[Share]:
    """What is read of the linears of one fused weight, one below the other."""
    target, biases = 0, list[Share]()
    for linear in linears:
        roles = [role for role in linear.roles if role != "gate" or spec.gated]
        pieces = _grouped(facts, shard) if linear.layout == "grouped" else _stacked(facts, shard, roles)
        pieces = tuple((start, stop, target + row) for start, stop, row in pieces)
        target += sum(stop - start for start, stop, _ in pieces)
        of, columns = role_shape(facts, roles[0])[1], shard.columns(facts, roles[0])
        yield Share(f"{prefix}{linear.module}.weight", pieces, of, None if columns == (0, of) else columns)
        if has_bias(spec, roles[0]) and (shard.leads or roles[0] not in SUMMED):
            biases.append(Share(f"{prefix}{linear.module}.bias", pieces, 1, vector=True))
    yield from biases


def _stacked(facts: ModelFacts, shard: Shard, roles: Sequence[str]) -> tuple[Piece, ...]:
    """Pieces of roles whose rows lie one below the other."""
    found, above, target = list[Piece](), 0, 0
    for role in roles:
        start, stop = shard.rows(facts, role)
        if found and found[-1][1] == above + start:
            found[-1] = found[-1][0], above + stop, found[-1][2]
        else:
            found.append((above + start, above + stop, target))
        above, target = above + role_shape(facts, role)[0], target + stop - start
    return tuple(found)


def _grouped(facts: ModelFacts, shard: Shard) -> tuple[Piece, ...]:
    """Pieces of rows that lie as [kv_heads, group + 2, head_dim]: to all queries, then all keys, then all values."""
    dim, group = facts.head_dim, facts.num_heads // facts.num_kv_heads
    (first, last), (low, high) = shard.queries, shard.keys
    found = list[Piece]()
    for key in range(low, high):
        above = key * (group + 2)
        start, stop = max(first, key * group), min(last, (key + 1) * group)
        found.append((above + start - key * group, above + stop - key * group, start - first))
        for extra in (0, 1):
            row = above + group + extra
            found.append((row, row + 1, last - first + extra * (high - low) + key - low))
    return tuple((start * dim, stop * dim, row * dim) for start, stop, row in found)
