"""Blocks of the paged KV cache: who holds which, and which hold a prefix that somebody may want again.

Every block is in exactly one of three states:

    free      no content worth keeping
    cached    content is known by its hash, no sequence holds it; least recently used goes first when room is needed
    in use    one or more sequences hold it; its content may be known by its hash as well

A block's hash chains over everything before it (as in vLLM's prefix cache), so equal hashes mean equal prefixes.
A cached block that has to give way is saved to the host tier (`HostBlocks`), where there is one.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.engine.core.host_blocks import HostBlocks

ROOT = b"plimsoll"
"""Parent of a sequence's first block."""


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """SHA-256 over the parent's hash and the block's token ids: two prefixes never share one by accident."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


def salted_root(salt: str) -> bytes:
    """Parent of the first block of a sequence whose cached blocks only those of the same `salt` may use."""
    return hashlib.sha256(ROOT + salt.encode()).digest() if salt else ROOT


class OutOfBlocksError(PlimsollError):
    """More blocks were asked for than are free or cached; the scheduler checks first, so this is a bug."""


class BlockManager:
    """Reference-counted blocks with a prefix cache.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens a block holds.
        prefix_caching: off, a block without owners is simply free.
        host: keeps what cached blocks hold when they give way; None forgets it.
    """

    def __init__(
        self, num_blocks: int, block_size: int, prefix_caching: bool = True, host: HostBlocks | None = None
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.host = host
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        # Insertion order is age since last use: the first is evicted first.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks neither in use nor cached."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that hold a known prefix and that no sequence uses."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out now."""
        return len(self._free) + len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, hashes: Sequence[bytes]) -> list[int | None]:
        """Blocks whose content is the longest known run of `hashes`, None for one that only the host tier has; takes
        nothing."""
        found: list[int | None] = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None and (self.host is None or digest not in self.host):
                break
            found.append(block)
        return found

    def room_after(self, prefix: Sequence[int]) -> int:
        """Blocks that can still be allocated once `prefix` is held: warm blocks count as room only until held."""
        return self.num_available - sum(1 for block in prefix if not self._refs[block])

    def hold(self, blocks: Iterable[int]) -> None:
        """Adds an owner to blocks that `find_prefix` returned."""
        for block in blocks:
            if not self._refs[block]:
                del self._cached[block]
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one owner and no known content: free ones first, then the longest unused cached ones."""
        if count > self.num_available:
            raise OutOfBlocksError(f"{count} blocks asked for, {self.num_available} available")
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _none = self._cached.popitem(last=False)
                digest = self._forget(block)
                if self.host is not None:
                    self.host.save(block, digest)
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def is_shared(self, block: int) -> bool:
        """Whether a block has several owners, or its content is known by a hash."""
        return self._refs[block] > 1 or self._hash_of[block] is not None

    def publish(self, block: int, digest: bytes) -> None:
        """Makes known that a held block's content is, or by the end of this step will be, `digest`.

        When another block is known for it already, this one stays private: a hash names one block.
        """
        if self.prefix_caching and self._hash_of[block] is None and digest not in self._block_of:
            self._hash_of[block] = digest
            self._block_of[digest] = block

    def unpublish(self, blocks: Iterable[int]) -> None:
        """Takes back what `publish` said, for content that turned out not to be there."""
        for block in blocks:
            if self._hash_of[block] is None:
                continue
            self._forget(block)
            if not self._refs[block]:
                del self._cached[block]
                self._free.append(block)

    def release(self, blocks: Sequence[int]) -> list[int]:
        """Drops one owner of each block; returns those that are free of owners and content now.

        The end of a prefix is evicted before its beginning: a chain without its beginning is worth nothing.
        """
        freed = []
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            if self._hash_of[block] is None:
                self._free.append(block)
                freed.append(block)
            else:
                self._cached[block] = None
        return freed

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Holds the books against the block tables of all sequences; raises AssertionError where they differ."""
        owners = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a sequence holds a block twice: {table}"
            for block in table:
                owners[block] += 1
        assert owners == self._refs, "reference counts differ from the block tables"
        free, cached = set(self._free), set(self._cached)
        used = {block for block, refs in enumerate(self._refs) if refs}
        assert len(free) == len(self._free), "a block is free twice"
        assert len(free) + len(cached) + len(used) == self.num_blocks, "free, cached and used do not add up"
        assert free | cached | used == set(range(self.num_blocks)), "a block is in no state, or in two"
        known = {block: digest for block, digest in enumerate(self._hash_of) if digest is not None}
        assert {digest: block for block, digest in known.items()} == self._block_of, "hashes and blocks disagree"
        assert len(known) == len(self._block_of), "one hash names two blocks"
        assert cached <= known.keys(), "a cached block has no hash"
        assert not free & known.keys(), "a free block has a hash"
        if self.host is not None:
            self.host.check_integrity()

    def _forget(self, block: int) -> bytes:
        digest = self._hash_of[block]
        assert digest is not None
        del self._block_of[digest]
        self._hash_of[block] = None
        return digest
