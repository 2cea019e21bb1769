"""Experts on the move: ranks count what tokens ask of experts, and take others in where that evens out the work.

Owns: the placements in force, and what changes hands. Must not know which runtime holds the weights: `ExpertSlots` are
its side. Every rank of a group decides by itself, from the sum of all ranks' counts, and so the same.

Legend: L sparse layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.expert_placement import Placement, rearrange
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.sharding import placement_of
from qwen3moe_engine.weights import WeightPlan, plan_expert, rank_constants


@dataclass(frozen=True)
class Arrival:
    """An expert's part of an input that comes into a slot of it. layer: prefix of names."""

    layer: str
    plan: WeightPlan
    slot: int


class ExpertSlots(Protocol):
    """Where a rank's runtime has experts, and counts what they do."""

    def loads(self) -> NDArray[np.uint32]:
        """How many tokens each expert served here since the start, modulo 2^32: [L, E]."""
        ...

    def take_in(self, arrivals: Sequence[Arrival]) -> None:
        """Writes each into its slot, over the expert that was there, between two steps."""
        ...

    def bind(self, constants: dict[str, NDArray[np.int32]]) -> None:
        """New contents for inputs of these names."""
        ...


class Rebalancer:
    """Of one rank. plans: of its weights; slots: its experts. loads: int64 [L, E], what tokens had asked of each expert
    when experts were last placed."""

    def __init__(
        self,
        manifest: Manifest,
        plans: Sequence[WeightPlan],
        slots: ExpertSlots,
        group: SharedGroup,
        group_rank: int,
    ):
        self._manifest, self._slots, self._group, self._group_rank = manifest, slots, group, group_rank
        first = placement_of(manifest.dims.num_experts, manifest.part.layout)
        self._layers = [spec.name.removesuffix("load") for spec in manifest.of_kind("load")]
        self.placements: dict[str, Placement] = dict.fromkeys(self._layers, first)
        self._plans = {
            layer: [plan for plan in plans if plan.spec.name.startswith(layer) and plan.spec.has_experts]
            for layer in self._layers
        }
        self._counted = slots.loads()
        self.loads = np.zeros(self._counted.shape, np.int64)

    def run(self) -> int:
        """Places experts by what was counted since the last time. Returns how many came to this rank. Every rank of the
        group calls it between the same two steps."""
        self.loads = self._count()
        placed = {
            layer: rearrange(self.placements[layer], row.tolist())
            for layer, row in zip(self._layers, self.loads, strict=True)
        }
        moved = {layer: new for layer, new in placed.items() if new != self.placements[layer]}
        arrivals = [arrival for layer, new in moved.items() for arrival in self._arrivals(layer, new)]
        self._slots.take_in(arrivals)
        for layer, new in moved.items():
            constants = rank_constants(self._manifest, self._group_rank, new)
            self._slots.bind({name: value for name, value in constants.items() if name.startswith(layer)})
        self.placements |= moved
        return len({(arrival.layer, arrival.slot) for arrival in arrivals})

    def _count(self) -> NDArray[np.int64]:
        """What tokens asked of each expert since the last time, by all ranks' counts: [L, E]."""
        now = self._slots.loads()
        served = (now - self._counted).astype(np.int64)
        self._counted = now
        return self._group.all_reduce(served)

    def _arrivals(self, layer: str, new: Placement) -> list[Arrival]:
        """What comes to this rank."""
        old, size = self.placements[layer], self._manifest.part.layout.group_size
        here = zip(old.by_rank[self._group_rank], new.by_rank[self._group_rank], strict=True)
        coming = [(slot, after) for slot, (before, after) in enumerate(here) if before != after]
        return [
            Arrival(layer, plan_expert(plan, expert, self._group_rank, size), slot)
            for plan in self._plans[layer]
            for slot, expert in coming
        ]
