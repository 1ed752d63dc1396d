"""Blocks of the host tier: copies of cached blocks, by hash, in host memory behind the paged KV cache.

A block that the first tier gives up is saved here, and copied back when a later request's prefix, or a preempted
request, needs it. Like vLLM's KV offloading and SGLang's hierarchical cache, with one block as the unit.

Pure bookkeeping. What is to be copied is noted in `copies`, in the order in which it was decided. The runner makes all
copies of a step in that order before the step's forward pass, so each copy reads what the books say is there.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import msgspec

from plimsoll.runtime.engine.core.copy_times import CopyTimes


class Copy(msgspec.Struct, frozen=True, array_like=True):
    """One block to copy between the tiers."""

    block: int
    """Of the first tier."""
    slot: int
    """Of the host tier."""
    out: bool
    """From the first tier to the host; False is the way back."""


class HostBlocks:
    """Which slot of the host tier holds which hash; the least recently saved goes first when room is needed.

    A slot is free, known by its hash, or pinned: known, and about to be read, so that nothing may be saved over it.

    Args:
        num_blocks: slots.
        times: where they say that computing again is quicker, nothing is saved and nothing is found. None: always copy.

    Attributes:
        saved, loaded: blocks copied out and back since the start.
    """

    def __init__(self, num_blocks: int, times: CopyTimes | None = None) -> None:
        self.num_blocks = num_blocks
        self.times = times
        self.saved = 0
        self.loaded = 0
        # The first is overwritten first.
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._pinned: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._copies: list[Copy] = []

    @property
    def num_used(self) -> int:
        """Slots that hold a known block."""
        return self.num_blocks - len(self._free)

    @property
    def pays(self) -> bool:
        """Whether a copy is quicker than what it saves. Changes between two steps only."""
        return self.times is None or self.times.copying_pays

    def __contains__(self, digest: bytes) -> bool:
        """Whether a block of this hash can be loaded."""
        return self.pays and digest in self._slots

    def save(self, block: int, digest: bytes) -> None:
        """Keeps what `block` holds as `digest`. What was saved before and not overwritten is not copied again."""
        if not self.pays:
            return
        if digest in self._slots:
            self._slots.move_to_end(digest)
            return
        if self._free:
            slot = self._free.pop()
        elif self._slots:
            _, slot = self._slots.popitem(last=False)
        else:
            return
        self._slots[digest] = slot
        self._copies.append(Copy(block, slot, True))
        self.saved += 1

    def pin(self, digests: Iterable[bytes]) -> None:
        """Keeps slots that will be loaded from being overwritten by what is saved until then."""
        for digest in digests:
            self._pinned[digest] = self._slots.pop(digest)

    def load(self, blocks: Mapping[bytes, int]) -> None:
        """Copies pinned blocks back, each to the block of the first tier that is given.

        They stay known, and are overwritten before all others: the first tier has them now. The end of a prefix goes
        before its beginning.
        """
        for digest, block in blocks.items():
            slot = self._pinned.pop(digest)
            self._copies.append(Copy(block, slot, False))
            self._slots[digest] = slot
            self._slots.move_to_end(digest, last=False)
            self.loaded += 1

    def drop(self, digests: Iterable[bytes]) -> None:
        """Forgets blocks; hashes that are not known are ignored."""
        for digest in digests:
            slot = self._slots.pop(digest, None)
            if slot is not None:
                self._free.append(slot)

    def clear(self) -> None:
        """Forgets all of them."""
        self.drop(list(self._slots))

    def take_copies(self) -> list[Copy]:
        """What is to be copied before the next forward pass, in order; each is returned once."""
        copies, self._copies = self._copies, []
        return copies

    def check_integrity(self) -> None:
        """Raises AssertionError where a slot is in two states, or in none."""
        assert not self._pinned, "a slot stayed pinned"
        slots = [*self._free, *self._slots.values()]
        assert sorted(slots) == list(range(self.num_blocks)), "free and known slots do not add up"
