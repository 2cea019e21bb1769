"""Which rank holds which experts, when some have replicas: a pure decision from how much work each expert has.

Owns: the policy, and what it means for a graph's inputs. Must not know weights, processes or how load is counted.

A rank has `num_slots` slots, each with an expert. Of the ranks that hold an expert one serves a token, by its position,
so that the choice does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Held = tuple[int, ...]  # the experts of a rank, slot by slot
# Positions that are served one by one. Up to 8 replicas get equal shares of them, of 5 and 7 within one in 24. At most
# 32, the lanes of a warp.
MAP_ROWS = 24
EVEN_WITHIN = 0.05  # of the busiest rank's work, for the sake of few moves: an expert of 30B-A3B is 9 MB
SLACK = 0.01  # of an even share, which a rank may keep beyond it: the last pieces that are placed need room


@dataclass(frozen=True)
class Placement:
    """by_rank: the experts that each rank holds. Every expert is somewhere; several slots may hold one."""

    by_rank: tuple[Held, ...]

    def expert_map(self, rank: int) -> NDArray[np.int32]:
        """The slot of each expert on the rank, the first if several hold it, or -1: [E]."""
        slots = np.full(self._num_experts, -1, np.int32)
        for slot, expert in reversed(list(enumerate(self.by_rank[rank]))):
            slots[expert] = slot
        return slots

    def balanced_map(self, rank: int) -> NDArray[np.int32]:
        """For every position modulo MAP_ROWS, the slot of each expert that the rank serves it with, or -1:
        [MAP_ROWS, E]."""
        is_held = np.stack([self.expert_map(other) >= 0 for other in range(len(self.by_rank))])
        turn = np.arange(MAP_ROWS)[:, None] % is_held.sum(axis=0)  # which of its ranks serves, for each expert
        number = is_held[:rank].sum(axis=0)  # the rank's among them
        return np.where(turn == number, self.expert_map(rank), -1).astype(np.int32)

    def load_of_ranks(self, loads: Sequence[int]) -> list[float]:
        """Work of each rank, if an expert's is shared out among the ranks that hold it."""
        num_holders = np.zeros(self._num_experts)
        for held in self.by_rank:
            num_holders[list(set(held))] += 1
        shares = np.asarray(loads) / num_holders
        return [float(shares[sorted(set(held))].sum()) for held in self.by_rank]

    @property
    def _num_experts(self) -> int:
        return 1 + max(map(max, self.by_rank))


def place_experts(loads: Sequence[int], num_ranks: int, num_slots: int, old: Placement | None = None) -> Placement:
    """As even as two greedy rules make it: a spare slot goes to the expert with the most work for each replica; then
    the largest pieces of work are placed first, each on the rank with the least so far, and not beside its like if it
    can be. What a rank holds in `old` stays there, though, while that keeps its work within SLACK of an even share: few
    experts move. The same for the same loads, which are counts of tokens."""
    counts = [1] * len(loads)
    for _ in range(num_ranks * num_slots - len(loads)):
        # a second replica on a rank is of no use, unless all ranks have one of everything
        worth = [(count < num_ranks, load / count) for load, count in zip(loads, counts, strict=True)]
        counts[max(range(len(loads)), key=lambda expert: (worth[expert], -expert))] += 1
    pieces = sorted((-loads[expert] / count, expert) for expert, count in enumerate(counts) for _ in range(count))
    held: list[list[int]] = [[] for _ in range(num_ranks)]
    before = old.by_rank if old is not None else [()] * num_ranks
    most = (1 + SLACK) * sum(loads) / num_ranks
    work = [0.0] * num_ranks
    for negative, expert in pieces:
        free = [rank for rank in range(num_ranks) if len(held[rank]) < num_slots]
        may_stay = [
            rank
            for rank in free
            if expert in before[rank] and expert not in held[rank] and work[rank] - negative <= most
        ]
        rank = min(may_stay or free, key=lambda rank: (expert in held[rank], work[rank], len(held[rank]), rank))
        held[rank].append(expert)
        work[rank] -= negative
    return Placement(tuple(tuple(sorted(experts)) for experts in held))


def rearrange(old: Placement, loads: Sequence[int]) -> Placement:
    """The first of three placements whose busiest rank has at most EVEN_WITHIN more work than an even share, or than in
    the last: as it is; most stay; any may move. Who stays on a rank keeps the slot."""
    num_ranks, num_slots = len(old.by_rank), len(old.by_rank[0])
    most = (1 + EVEN_WITHIN) * sum(loads) / num_ranks
    if max(old.load_of_ranks(loads)) <= most:
        return old  # as mostly: the others take a millisecond each
    near = place_experts(loads, num_ranks, num_slots, old)
    if max(near.load_of_ranks(loads)) > most:
        best = place_experts(loads, num_ranks, num_slots)
        most = (1 + EVEN_WITHIN) * max(best.load_of_ranks(loads))
        near = next(choice for choice in (old, near, best) if max(choice.load_of_ranks(loads)) <= most)
    return settle(old, near)


def settle(old: Placement, new: Placement) -> Placement:
    """`new`, with experts that stay on a rank in the slots they had, so that only those that come are moved."""
    return Placement(tuple(_settle(before, after) for before, after in zip(old.by_rank, new.by_rank, strict=True)))


def _settle(before: Held, after: Held) -> Held:
    coming = list(after)
    kept: list[int | None] = []
    for expert in before:
        stays = expert in coming
        if stays:
            coming.remove(expert)
        kept.append(expert if stays else None)
    return tuple(expert if expert is not None else coming.pop(0) for expert in kept)
