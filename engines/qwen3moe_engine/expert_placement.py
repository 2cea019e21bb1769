"""Which rank holds which experts, when some have replicas: a pure decision from how much work each expert has.

Owns: the policy, and what it means for a graph's inputs. Must not know weights, processes or how load is counted.

Physical experts are the replicas of all experts, in the order of the experts they are of; slots are places for them,
`num_slots` on each rank. A token is served by replica (position % count) of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Held = tuple[int, ...]  # the experts of a rank, slot by slot


@dataclass(frozen=True)
class Placement:
    """by_rank: the experts that each rank holds. Every expert is somewhere; several slots may hold one."""

    by_rank: tuple[Held, ...]

    def physical(self) -> list[tuple[int, int, int]]:
        """Of each physical expert the expert, its rank and its slot there."""
        places = [(e, rank, slot) for rank, held in enumerate(self.by_rank) for slot, e in enumerate(held)]
        return sorted(places)

    def expert_map(self, rank: int) -> NDArray[np.int32]:
        """The slot of each physical expert on the rank, or -1."""
        return np.array([slot if there == rank else -1 for _, there, slot in self.physical()], np.int32)

    def replicas(self) -> NDArray[np.int32]:
        """Of each physical expert the expert, its number among the replicas, and how many there are: [3, physical]."""
        experts = np.array([expert for expert, _, _ in self.physical()], np.int32)
        counts = np.bincount(experts)
        first = np.cumsum(counts) - counts
        return np.stack([experts, np.arange(len(experts)) - first[experts], counts[experts]]).astype(np.int32)

    def load_of_ranks(self, loads: Sequence[int]) -> list[float]:
        """Work of each rank, if an expert's is shared out among its replicas."""
        counts = np.bincount([expert for held in self.by_rank for expert in held])
        return [sum(loads[expert] / int(counts[expert]) for expert in held) for held in self.by_rank]


def place_experts(loads: Sequence[int], num_ranks: int, num_slots: int) -> Placement:
    """As even as two greedy rules make it: a spare slot goes to the expert with the most work for each replica; then
    the largest pieces of work are placed first, each on the rank with the least so far, and not beside its like if it
    can be. The same for the same loads, which are counts of tokens."""
    counts = [1] * len(loads)
    for _ in range(num_ranks * num_slots - len(loads)):
        # a second replica on a rank is of no use, unless all ranks have one of everything
        worth = [(count < num_ranks, load / count) for load, count in zip(loads, counts, strict=True)]
        counts[max(range(len(loads)), key=lambda expert: (worth[expert], -expert))] += 1
    pieces = sorted((-loads[expert] / count, expert) for expert, count in enumerate(counts) for _ in range(count))
    held: list[list[int]] = [[] for _ in range(num_ranks)]
    work = [0.0] * num_ranks
    for negative, expert in pieces:
        free = [rank for rank in range(num_ranks) if len(held[rank]) < num_slots]
        rank = min(free, key=lambda rank: (expert in held[rank], work[rank], len(held[rank]), rank))
        held[rank].append(expert)
        work[rank] -= negative
    return Placement(tuple(tuple(sorted(experts)) for experts in held))


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
