"""The books of the block pool: reference counts, the prefix cache, eviction."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.engine.core.block_manager import ROOT, BlockManager, OutOfBlocksError, chain_hash

A, B, C = (chain_hash(ROOT, [token]) for token in range(3))


def published(blocks: BlockManager, *digests: bytes) -> list[int]:
    table = blocks.allocate(len(digests))
    for block, digest in zip(table, digests, strict=True):
        blocks.publish(block, digest)
    return table


def test_a_chain_hash_depends_on_everything_before_the_block():
    assert chain_hash(ROOT, [1, 2]) == chain_hash(ROOT, [1, 2])
    assert chain_hash(ROOT, [1, 2]) != chain_hash(ROOT, [2, 1])
    assert chain_hash(chain_hash(ROOT, [0]), [1, 2]) != chain_hash(chain_hash(ROOT, [9]), [1, 2])
    assert chain_hash(ROOT, [256]) != chain_hash(ROOT, [1, 0])


def test_a_released_prefix_stays_warm_and_is_found_again():
    blocks = BlockManager(4, 16)
    table = published(blocks, A, B)
    assert blocks.release(table) == []
    assert (blocks.num_free, blocks.num_cached, blocks.num_available) == (2, 2, 4)
    assert blocks.find_prefix([A, B, C]) == table
    assert blocks.find_prefix([B]) == [table[1]]
    assert blocks.find_prefix([C, A]) == []
    assert blocks.room_after(table) == 2
    blocks.hold(table)
    blocks.check_integrity([table])


def test_a_shared_block_is_freed_by_its_last_owner():
    blocks = BlockManager(2, 16, prefix_caching=False)
    table = blocks.allocate(1)
    blocks.hold(table)
    assert blocks.release(table) == []
    blocks.check_integrity([table])
    assert blocks.release(table) == table
    blocks.check_integrity([])
    assert blocks.num_free == 2


def test_the_longest_unused_prefix_is_evicted_first_and_its_end_before_its_beginning():
    blocks = BlockManager(3, 16)
    first, second = published(blocks, A), published(blocks, B, C)
    blocks.release(second)
    blocks.release(first)
    assert blocks.allocate(1) == [second[1]]
    assert blocks.find_prefix([B, C]) == [second[0]]
    assert blocks.allocate(1) == [second[0]]
    assert blocks.find_prefix([A]) == first


def test_one_hash_names_one_block():
    blocks = BlockManager(2, 16)
    first, second = published(blocks, A), published(blocks, A)
    assert blocks.find_prefix([A]) == first
    assert blocks.release(second) == second
    assert blocks.release(first) == []
    blocks.check_integrity([])


def test_what_was_published_can_be_taken_back():
    blocks = BlockManager(2, 16)
    held, unused = published(blocks, A), published(blocks, B)
    blocks.release(unused)
    blocks.unpublish(held + unused)
    assert blocks.find_prefix([A]) == blocks.find_prefix([B]) == []
    assert (blocks.num_free, blocks.num_cached) == (1, 0)
    blocks.check_integrity([held])


def test_asking_for_more_than_there_is_changes_nothing():
    blocks = BlockManager(2, 16)
    with pytest.raises(OutOfBlocksError, match="3 blocks"):
        blocks.allocate(3)
    blocks.check_integrity([])


@pytest.mark.parametrize("damage", ["reference", "twice free", "lost", "hash"])
def test_damaged_books_are_noticed(damage):
    blocks = BlockManager(4, 16)
    table = published(blocks, A)
    if damage == "reference":
        blocks._refs[table[0]] += 1
    elif damage == "twice free":
        blocks._free.append(blocks._free[0])
    elif damage == "lost":
        blocks._free.pop()
    else:
        blocks._hash_of[table[0]] = B
    with pytest.raises(AssertionError):
        blocks.check_integrity([table])


@settings(max_examples=80, deadline=None)
@given(data=st.data(), num_blocks=st.integers(1, 12), caching=st.booleans())
def test_any_trace_keeps_the_books_straight(data, num_blocks, caching):
    """Few distinct hashes, so that sharing, duplicates and eviction all happen."""
    blocks = BlockManager(num_blocks, 16, caching)
    tables: list[list[int]] = []
    digests = [A, chain_hash(A, [1]), chain_hash(A, [2]), B]
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["new", "share", "release", "take back"]))
        if action == "new" and blocks.num_available:
            table = blocks.allocate(data.draw(st.integers(1, blocks.num_available)))
            for block in table:
                blocks.publish(block, data.draw(st.sampled_from(digests)))
            tables.append(table)
        elif action == "share":
            prefix = list(dict.fromkeys(blocks.find_prefix(data.draw(st.permutations(digests)))))
            assert caching or not prefix
            blocks.hold(prefix)
            tables.append(prefix)
        elif action == "release" and tables:
            blocks.release(tables.pop(data.draw(st.integers(0, len(tables) - 1))))
        elif action == "take back" and tables:
            blocks.unpublish(data.draw(st.sampled_from(tables)))
        blocks.check_integrity(tables)
    for table in tables:
        blocks.release(table)
    blocks.check_integrity([])
    assert blocks.num_available == num_blocks
