"""Which blocks of the KV pool belong to whom.

Owns: the free list and the arithmetic from tokens to blocks. Must not know requests.
"""

from __future__ import annotations

from collections import deque


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


class BlockManager:
    """Hands out the block numbers 0 to num_blocks - 1."""

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def can_hold(self, num_tokens: int) -> bool:
        return num_blocks_for(num_tokens, self.block_size) <= self.num_free

    def allocate(self, num_tokens: int) -> list[int]:
        """Blocks for `num_tokens`; ask `can_hold` first."""
        assert self.can_hold(num_tokens), (num_tokens, self.num_free)
        return [self._free.popleft() for _ in range(num_blocks_for(num_tokens, self.block_size))]

    def release(self, block_ids: list[int]) -> None:
        assert not set(block_ids) & set(self._free), block_ids
        self._free.extend(block_ids)
