from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qwen3moe_engine.block_manager import ROOT_HASH, BlockManager, hash_block, num_blocks_for

NUM_BLOCKS = 12


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_num_blocks_for(num_tokens, num_blocks):
    assert num_blocks_for(num_tokens, 16) == num_blocks
    assert num_blocks_for(np.array([num_tokens]), 16).tolist() == [num_blocks]


class AnyOrder(RuleBasedStateMachine):
    """Allocations, registrations, sharing and releases in any order, against a model of sequences as block lists."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(NUM_BLOCKS, block_size=2)
        self.held: list[tuple[bytes, list[int]]] = []  # the chain's name so far, and its blocks
        self.names: dict[bytes, int] = {}

    @rule(count=st.integers(0, NUM_BLOCKS))
    def allocate(self, count):
        if count > self.blocks.num_free:
            with pytest.raises(AssertionError):
                self.blocks.allocate(count)
            return
        num_free = self.blocks.num_free
        ids = self.blocks.allocate(count)
        assert len(set(ids)) == count and self.blocks.num_free == num_free - count
        self.held.append((ROOT_HASH, ids))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 50), tokens=st.lists(st.integers(0, 1), min_size=2, max_size=2))
    def register_next(self, which, tokens):
        parent, ids = self.held[which % len(self.held)]
        position = next((i for i, block in enumerate(ids) if not self.blocks.is_registered(block)), None)
        if position is None:
            return
        name = hash_block(parent, tokens)
        self.blocks.register(ids[position], name)
        self.held[which % len(self.held)] = (name, ids)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 50))
    def release(self, which):
        _, ids = self.held.pop(which % len(self.held))
        self.blocks.release(ids)

    @rule(tokens=st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), max_size=3))
    def share(self, tokens):
        hashes, parent = [], ROOT_HASH
        for block in tokens:
            hashes.append(parent := hash_block(parent, block))
        found, num_free = self.blocks.find_prefix(hashes), self.blocks.num_free
        idle = self.blocks.num_idle(found)
        self.blocks.share(found)
        assert self.blocks.num_free == num_free - idle
        self.held.append((hashes[len(found) - 1] if found else ROOT_HASH, found))

    @invariant()
    def every_block_is_in_its_place(self):
        self.blocks.check_invariants(ids for _, ids in self.held)


TestAnyOrder = AnyOrder.TestCase


def test_a_block_is_released_once():
    blocks = BlockManager(num_blocks=4, block_size=8)
    ids = blocks.allocate(3)
    blocks.release(ids)
    with pytest.raises(AssertionError, match="held by nobody"):
        blocks.release(ids)
    with pytest.raises(AssertionError):
        blocks.allocate(5)


def chain(*blocks: list[int]) -> list[bytes]:
    hashes: list[bytes] = []
    for tokens in blocks:
        hashes.append(hash_block(hashes[-1] if hashes else ROOT_HASH, tokens))
    return hashes


def test_a_hash_names_everything_up_to_its_block():
    assert chain([1, 2], [3, 4])[1] != chain([9, 2], [3, 4])[1]
    assert chain([1, 2], [3, 4]) == chain([1, 2], [3, 4])
    assert chain([1, 2])[0] != chain([2, 1])[0]
    assert len({*chain([1], [2], [3]), *chain([12], [3])}) == 5, "tokens are not run together"


def cache_prefix(blocks: BlockManager, hashes: list[bytes]) -> list[int]:
    """Computed and released."""
    ids = blocks.allocate(len(hashes))
    for block_id, block_hash in zip(ids, hashes, strict=True):
        blocks.register(block_id, block_hash)
    blocks.release(ids)
    return ids


def test_released_blocks_are_found_until_they_are_evicted():
    blocks, hashes = BlockManager(num_blocks=6, block_size=2), chain([1, 2], [3, 4], [5, 6])
    ids = cache_prefix(blocks, hashes)
    assert (blocks.num_free, blocks.num_cached, blocks.find_prefix(hashes)) == (6, 3, ids)
    blocks.allocate(4)  # three that hold nothing, and the end of the prefix
    assert blocks.find_prefix(hashes) == ids[:2] and blocks.num_evictions == 1
    blocks.share(ids[:2])
    assert blocks.num_free == 0


def test_least_recently_used_goes_first():
    blocks = BlockManager(num_blocks=3, block_size=2)
    names = [chain([token, token]) for token in range(3)]
    ids = [cache_prefix(blocks, name)[0] for name in names]
    blocks.share([ids[0]])
    blocks.release([ids[0]])
    assert blocks.allocate(2) == [ids[1], ids[2]]
    assert blocks.find_prefix(names[0]) == [ids[0]]


def test_of_equal_blocks_the_first_is_found_and_the_other_freed():
    blocks, name = BlockManager(num_blocks=4, block_size=2), chain([1, 2])[0]
    first, second = blocks.allocate(2)
    blocks.register(first, name)
    blocks.register(second, name)
    blocks.release([first, second])
    assert blocks.find_prefix([name]) == [first] and blocks.num_cached == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda blocks: blocks._num_holders.__setitem__(0, 2),
        lambda blocks: blocks._free.pop(),
        lambda blocks: blocks._free.append(0),
        lambda blocks: blocks._cached.__setitem__(blocks._free.pop(), None),
        lambda blocks: blocks._hash_of.__setitem__(blocks._free[0], b"name"),
        lambda blocks: blocks._block_of.clear(),
    ],
)
def test_the_checker_sees(damage):
    blocks = BlockManager(num_blocks=4, block_size=2)
    held = blocks.allocate(2)
    blocks.register(held[0], b"first")
    blocks.check_invariants([held])
    damage(blocks)
    with pytest.raises(AssertionError):
        blocks.check_invariants([held])
