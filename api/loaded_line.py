"""What a budget is asked for, and what one that closes holds: the loaded line of each rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from plimsoll.api.draft import DraftBudget
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import ActivationPrecision, CachePrecision, HeldCache, Precision
from plimsoll.api.rank_budget import RankBudget


@dataclass(frozen=True)
class Load:
    """What a user wants loaded onto each device. Lengths in tokens, sizes in bytes."""

    precision: Precision | Literal["auto"] = "auto"
    cache_precision: CachePrecision = "auto"
    ratio: float = 0.8
    cache_bytes: int | None = None
    """Absolute size of the cache; overrides `ratio`."""
    host_bytes: int = 0
    """Of host memory for a second tier of cache blocks, of each rank. On a CPU that is memory of the device itself."""
    block_size: int = 64
    max_length: int | None = None
    """Longest prompt and answer together; None takes the trained length, or what the cache holds if that is less."""
    tensor: int | Literal["auto"] = 1
    nodes: int = 1
    """Pods that the ranks are spread over evenly; `tensor` is a multiple of it."""
    max_batched_tokens: int | None = None
    """Tokens of the largest step; None takes `BATCHED_TOKENS`."""
    max_running: int = 64
    activation_precision: ActivationPrecision = "auto"
    """Of rows that meet weights in codes."""
    trained_length: int | None = None
    """Overrides the model's own, where positions are stretched."""
    draft: ModelFacts | None = None
    """Of the draft model that guesses."""

    @property
    def held_cache(self) -> HeldCache:
        """What a sum holds the cache in: floats where `auto` has not taken codes."""
        return "float" if self.cache_precision == "auto" else self.cache_precision


@dataclass(frozen=True)
class Rejection:
    """An option that `auto` passed over."""

    option: str
    reason: str


@dataclass(frozen=True)
class Budget:
    """The loaded line of each rank, and what they hold together. Terms without a rank are those of the fullest one."""

    precision: Precision
    cache_precision: HeldCache
    ranks: tuple[RankBudget, ...]
    block_size: int
    blocks: int
    """Of cache, the same on each rank."""
    max_length: int
    nodes: int = 1
    """Pods that the ranks are spread over, as many on each."""
    devices: tuple[int, ...] = ()
    """Bytes of each rank's device, where `budget` was given them."""
    rejected: tuple[Rejection, ...] = ()
    host_blocks: int = 0
    """Of the host tier, the same on each rank."""
    draft: DraftBudget | None = None
    """Of the draft model that guesses."""

    @property
    def tensor(self) -> int:
        return len(self.ranks)

    @property
    def fullest(self) -> RankBudget:
        """The rank that decides: rank 0 is never less full than another."""
        return max(self.ranks, key=lambda rank: rank.in_use)

    @property
    def total(self) -> int:
        return self.fullest.total

    @property
    def context(self) -> int:
        return self.fullest.context

    @property
    def weights(self) -> int:
        return self.fullest.weights

    @property
    def workspace(self) -> int:
        return self.fullest.workspace

    @property
    def workspace_terms(self) -> Mapping[str, int]:
        return self.fullest.workspace_terms

    @property
    def kv_cache(self) -> int:
        return self.fullest.cache

    @property
    def block_bytes(self) -> int:
        return self.fullest.block_bytes

    @property
    def in_use(self) -> int:
        return self.fullest.in_use

    @property
    def headroom(self) -> int:
        """Bytes left alone."""
        return self.fullest.headroom

    @property
    def pod_ranks(self) -> int:
        """Ranks of one pod, which are its devices."""
        return self.tensor // self.nodes

    @property
    def host_bytes(self) -> int:
        """Bytes of the host tier of the fullest rank."""
        return self.host_blocks * self.fullest.host_block

    @property
    def pod_host_bytes(self) -> int:
        """Bytes of the host tiers of one pod's ranks together, of the largest pod."""
        each, sizes = self.pod_ranks, [rank.host_block for rank in self.ranks]
        return self.host_blocks * max(sum(sizes[at : at + each]) for at in range(0, self.tensor, each))

    @property
    def pod_bytes(self) -> int:
        """Bytes that the ranks of one pod may take together, of the largest pod: all pods of a group are alike."""
        each = self.pod_ranks
        return max(sum(rank.total for rank in self.ranks[at : at + each]) for at in range(0, self.tensor, each))

    @property
    def ranks_bytes(self) -> int:
        """Bytes that all ranks together may take: on CPUs, of one pod's memory."""
        return sum(rank.total for rank in self.ranks)

    @property
    def ranks_in_use(self) -> int:
        """Bytes that all ranks together take."""
        return sum(rank.in_use for rank in self.ranks)

    @property
    def kv_tokens(self) -> int:
        return self.blocks * self.block_size

    @property
    def concurrent_requests(self) -> int:
        """Requests of `max_length` that the cache holds at once."""
        return self.blocks // -(-self.max_length // self.block_size)

    def per_device(self) -> dict[str, int]:
        """The terms under the names that status, `plan -o json` and the engine share.

        `draft` is there where a draft model is, `hostCache` where a host tier lies on the line, which is on CPUs.
        """
        return {
            "total": self.total, "context": self.context, "weights": self.weights,
            "workspace": self.workspace, "kvCache": self.kv_cache,
            **({"draft": self.fullest.draft} if self.fullest.draft else {}),
            **({"hostCache": self.fullest.host} if self.fullest.host else {}), "headroom": self.headroom,
        }  # fmt: skip

    def per_rank(self) -> list[dict[str, int]]:
        """Each rank's share of the model and its terms, under the names that `plan -o json` and status share."""
        return [rank.described() for rank in self.ranks]
