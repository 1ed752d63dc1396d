"""One wish with nothing left to choose, added up: what each rank takes, how many blocks are left, whether it fits."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from plimsoll.api.draft import DraftBudget
from plimsoll.api.loaded_line import Budget, Load, Rejection
from plimsoll.api.precision import Precision
from plimsoll.api.quantity import format_bytes
from plimsoll.api.rank_budget import RankBudget

#: The fewest tokens of context that are served where no length is set: a chat's template, a question and an answer of a
#: few sentences do not fit into less.
LEAST_CONTEXT = 512


@dataclass(frozen=True)
class Sum:
    """One concrete option, added up."""

    load: Load
    step: int
    """Tokens of the largest step."""
    sizes: tuple[RankBudget, ...]
    """What each rank takes beside its cache."""
    total: int
    """Bytes of each device."""
    blocks: int
    kv_cache: int
    """Bytes of cache of the rank that has the least room for it."""
    trained_length: int
    host_blocks: int = 0
    draft: DraftBudget | None = None

    @cached_property
    def ranks(self) -> tuple[RankBudget, ...]:
        """Each rank with its cache."""
        return tuple(replace(rank, total=self.total, blocks=self.blocks) for rank in self.sizes)

    @property
    def fullest(self) -> RankBudget:
        return max(self.ranks, key=lambda rank: rank.in_use)

    @property
    def length(self) -> int:
        """Tokens the cache must hold for one request: the wish, or when there is none the least that serves."""
        return self.load.max_length or min(self.trained_length, LEAST_CONTEXT)

    @property
    def needed_blocks(self) -> int:
        return -(-self.length // self.load.block_size)

    @property
    def least(self) -> int:
        """Bytes of a device that it takes with a cache for one request."""
        return max(rank.fixed + self.needed_blocks * rank.block_bytes for rank in self.sizes)

    @property
    def fits(self) -> bool:
        """Whether each rank stays below its line, with the whole share that was given to the cache."""
        return self.blocks >= self.needed_blocks and all(
            rank.fixed + self.kv_cache <= self.total for rank in self.sizes
        )

    @property
    def shortage(self) -> str:
        """The sum, as a sentence."""
        full = self.fullest
        host = f" + {format_bytes(full.host)} host tier" if full.host else ""
        draft = f" + {format_bytes(full.draft)} draft" if full.draft else ""
        rest = format_bytes(full.context + full.workspace)
        text = (
            f"needs {format_bytes(full.weights)} weights{draft} + {rest} workspace and context{host} = "
            f"{format_bytes(full.fixed)} of {format_bytes(full.total)} per device"
        )
        if full.fixed >= full.total:
            return text
        need = self.needed_blocks * full.block_bytes
        share = "asked for" if self.load.cache_bytes is not None else f"left at ratio {self.load.ratio:g}"
        held = "" if self.load.held_cache == "float" else f" in {self.load.cache_precision}"
        takes = f"a cache of {self.length} tokens{held} takes {format_bytes(need)}"
        return f"{text}; {takes} and {format_bytes(self.kv_cache)} is {share}"

    def budget(self, rejected: tuple[Rejection, ...], devices: tuple[int, ...]) -> Budget:
        """The same as a budget that closes.

        Args:
            rejected: what was passed over on the way.
            devices: bytes of each rank's device, where that is known.
        """
        blocks, size = self.blocks, self.load.block_size
        return Budget(
            precision=cast(Precision, self.load.precision),
            cache_precision=self.load.held_cache,
            ranks=self.ranks,
            block_size=size,
            blocks=blocks,
            max_length=self.load.max_length or min(self.trained_length, blocks * size),
            nodes=self.load.nodes,
            devices=devices,
            rejected=rejected,
            host_blocks=self.host_blocks,
            draft=self.draft,
        )
