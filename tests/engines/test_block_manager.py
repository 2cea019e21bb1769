from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3moe_engine.block_manager import BlockManager, num_blocks_for


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_num_blocks_for(num_tokens, num_blocks):
    assert num_blocks_for(num_tokens, 16) == num_blocks


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=60))
def test_no_block_has_two_owners_and_none_leaks(actions):
    """Any order of allocations and releases."""
    blocks, held = BlockManager(num_blocks=12, block_size=8), []
    for allocate, number in actions:
        if allocate and blocks.can_hold(number):
            held.append(blocks.allocate(number))
            assert len(held[-1]) == num_blocks_for(number, 8)
        elif not allocate and held:
            blocks.release(held.pop(number % len(held)))
        owned = [block for ids in held for block in ids]
        assert len(owned) == len(set(owned)) and set(owned) <= set(range(12))
        assert blocks.num_free == 12 - len(owned)
        assert blocks.can_hold(blocks.num_free * 8) and not blocks.can_hold(blocks.num_free * 8 + 1)


def test_a_block_is_released_once():
    blocks = BlockManager(num_blocks=4, block_size=8)
    ids = blocks.allocate(20)
    blocks.release(ids)
    with pytest.raises(AssertionError):
        blocks.release(ids)
    with pytest.raises(AssertionError):
        blocks.allocate(33)
