"""Which blocks of the KV pool are held, and whose contents can be shared.

Owns: reference counts, the free list, and the prefix cache: computed full blocks by the hash of everything up to their
last token. Must not know requests.

A block is in one of three places: held by somebody; `_free`, with nothing worth keeping; or `_cached`, held by nobody
but still findable until its turn to be evicted comes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ROOT_HASH = b""  # the parent of a sequence's first block
_HASH_BYTES = 16


IntOrArray = TypeVar("IntOrArray", int, NDArray[np.int32])


def num_blocks_for(num_tokens: IntOrArray, block_size: int) -> IntOrArray:
    return -(-num_tokens // block_size)


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Names a full block by its tokens and all before them, on which its keys and values depend as much.

    Cryptographic, since a collision would serve a request somebody else's context.
    """
    return hashlib.blake2b(parent + array("i", token_ids).tobytes(), digest_size=_HASH_BYTES).digest()


class BlockManager:
    """Hands out the block numbers 0 to num_blocks - 1. All but lookups of whole prefixes is O(1) for each block."""

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.num_evictions = 0
        self._num_holders = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # the last is handed out first
        self._cached: OrderedDict[int, None] = OrderedDict()  # the first is evicted first
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds: what can be allocated."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds and a prefix may find."""
        return len(self._cached)

    def allocate(self, num_blocks: int) -> list[int]:
        """Blocks of undefined contents, held once; ask `num_free` first."""
        assert num_blocks <= self.num_free, (num_blocks, self.num_free)
        return [self._allocate_one() for _ in range(num_blocks)]

    def release(self, block_ids: Sequence[int]) -> None:
        """Gives up one hold on each. The end of a sequence is evicted before its beginning, which more can share."""
        for block_id in reversed(block_ids):
            assert self._num_holders[block_id] > 0, f"block {block_id} is held by nobody"
            self._num_holders[block_id] -= 1
            if self._num_holders[block_id]:
                continue
            if block_id in self._hash_of:
                self._cached[block_id] = None
            else:
                self._free.append(block_id)

    def find_prefix(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of a sequence whose full blocks hash to `hashes`."""
        found = []
        for block_hash in hashes:
            if (block_id := self._block_of.get(block_hash)) is None:
                break
            found.append(block_id)
        return found

    def num_idle(self, block_ids: Sequence[int]) -> int:
        """How many of them nobody holds, so that sharing them leaves so many fewer free."""
        return sum(not self._num_holders[block_id] for block_id in block_ids)

    def share(self, block_ids: Sequence[int]) -> None:
        """Holds blocks that `find_prefix` found."""
        for block_id in block_ids:
            self._cached.pop(block_id, None)
            self._num_holders[block_id] += 1

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Lets others find a held block, now that the last of its tokens is computed. Of equal blocks the first stays
        known; the other is freed when it is released."""
        assert self._num_holders[block_id] > 0, f"block {block_id} is held by nobody"
        if block_hash not in self._block_of:
            assert block_id not in self._hash_of, f"block {block_id} has changed under its holder"
            self._block_of[block_hash] = block_id
            self._hash_of[block_id] = block_hash

    def is_registered(self, block_id: int) -> bool:
        return block_id in self._hash_of

    def check_invariants(self, holders: Iterable[Sequence[int]]) -> None:
        """For tests, O(num_blocks): `holders` are the blocks of everybody who holds any."""
        held = Counter(block_id for block_ids in holders for block_id in block_ids)
        counts = [held[block_id] for block_id in range(self.num_blocks)]
        assert counts == self._num_holders, f"holders {counts}, counted {self._num_holders}"
        everywhere = sorted([*held, *self._free, *self._cached])
        assert everywhere == list(range(self.num_blocks)), f"blocks lost or in two places: {everywhere}"
        assert self._block_of == {name: block_id for block_id, name in self._hash_of.items()}
        assert set(self._cached) <= set(self._hash_of), "a cached block that nobody can find"
        assert not set(self._free) & set(self._hash_of), "a free block that a prefix may find"

    def _allocate_one(self) -> int:
        block_id = self._free.pop() if self._free else self._evict()
        self._num_holders[block_id] = 1
        return block_id

    def _evict(self) -> int:
        block_id, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block_id)]
        self.num_evictions += 1
        return block_id
