"""Experts on the move: a rank counts what tokens ask of them, and takes others in where that evens out the work.

Owns: the counts, the placements in force, and what changes hands. Must not know which runtime holds the weights: it is
told where to write. Every rank of a group decides by itself, from one rank's counts, and so the same.

Legend: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.expert_placement import Placement, place_experts, settle
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.sharding import placement_of
from qwen3moe_engine.weights import WeightPlan, rank_constants, read_expert

Write = Callable[[str, int, NDArray], None]  # an expert's weight into a slot of the input of that name
Bind = Callable[[str, NDArray], None]  # a new content for an input


class Rebalancer:
    """Of one rank. plans: of its weights."""

    def __init__(self, manifest: Manifest, plans: Sequence[WeightPlan], group: SharedGroup, group_rank: int):
        self._manifest, self._group, self._group_rank = manifest, group, group_rank
        first = placement_of(manifest.dims.num_experts, manifest.part.layout)
        self._layers = [spec.name.removesuffix("replicas") for spec in manifest.of_kind("replicas")]
        self.placements: dict[str, Placement] = dict.fromkeys(self._layers, first)
        self._plans = {
            layer: [plan for plan in plans if plan.spec.name.startswith(layer) and plan.spec.has_experts]
            for layer in self._layers
        }
        self.loads = np.zeros((len(self._layers), manifest.dims.num_experts), np.int64)

    def count(self, router_logits: Sequence[NDArray], num_tokens: int) -> None:
        """Adds a step's tokens: [T, E] for each sparse layer, of which the first `num_tokens` are not padding."""
        top_k, num_experts = self._manifest.dims.top_k, self._manifest.dims.num_experts
        for row, logits in zip(self.loads, router_logits, strict=True):
            chosen = np.argpartition(-logits[:num_tokens], top_k - 1, axis=1)[:, :top_k]
            row += np.bincount(chosen.reshape(-1), minlength=num_experts)

    def run(self, write: Write, bind: Bind) -> int:
        """Places experts by what was counted since the last time, and begins to count anew. Returns how many experts
        came to this rank. Every rank of the group calls it between the same two steps."""
        loads = self._group.all_gather(self.loads)[: len(self.loads)]
        self.loads = np.zeros_like(self.loads)
        return sum(self._move(*item, write, bind) for item in zip(self._layers, loads.tolist(), strict=True))

    def _move(self, layer: str, loads: list[int], write: Write, bind: Bind) -> int:
        old = self.placements[layer]
        num_ranks, num_slots = len(old.by_rank), len(old.by_rank[0])
        new = settle(old, place_experts(loads, num_ranks, num_slots))
        if max(new.load_of_ranks(loads)) >= max(old.load_of_ranks(loads)):
            return 0  # nothing to gain
        here = zip(old.by_rank[self._group_rank], new.by_rank[self._group_rank], strict=True)
        coming = [(slot, after) for slot, (before, after) in enumerate(here) if before != after]
        for plan in self._plans[layer]:
            for slot, expert in coming:
                weight = read_expert(plan, expert, self._manifest.dtype, self._group_rank, num_ranks)
                write(plan.spec.name, slot, weight)
        for name, value in rank_constants(self._manifest, self._group_rank, new).items():
            if name.startswith(layer):
                bind(name, value)
        self.placements[layer] = new
        return len(coming)
