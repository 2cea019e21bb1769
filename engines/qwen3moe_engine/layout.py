"""How a model is spread over ranks.

Owns: the degrees, and which stage, layers and place in its group a rank has. Must not know weights, graphs or
processes.

A group is the ranks that reduce with one another: one size of it serves tensor parallelism (every matrix is split) or
expert parallelism (experts are dealt out whole). A pipeline is a chain of such groups, one a stage, each with its own
layers. Rank r is place r % group_size of stage r // group_size.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3moe_plugins.errors import InputError

ATTENTION = ("split", "replicated")


@dataclass(frozen=True)
class Layout:
    """tp, ep: ranks of a group, of which one at most is above 1. pp: stages. attention: under `ep`, `split` by heads as
    under `tp`, or `replicated`: every rank attends for all heads, which saves a reduction a layer and costs memory.
    redundant_experts: of a layer, under `ep`: slots beyond one for each expert, for replicas of the busiest."""

    tp: int = 1
    ep: int = 1
    pp: int = 1
    attention: str = "split"
    redundant_experts: int = 0

    def __post_init__(self) -> None:
        degrees = {"--tp": self.tp, "--ep": self.ep, "--pp": self.pp}
        for name, degree in degrees.items():
            if degree < 1:
                raise InputError(name, got=degree, expected="at least 1", remedy="give a number of ranks")
        if self.tp > 1 and self.ep > 1:
            got, remedy = f"--tp {self.tp} with --ep {self.ep}", "use either: --ep splits attention as --tp does"
            raise InputError("layout", got=got, expected="one kind of group", remedy=remedy)
        if self.attention not in ATTENTION or (self.attention == "replicated" and self.ep == 1):
            got, expected = f"--attention {self.attention} without --ep", "--attention replicated with --ep only"
            raise InputError("layout", got=got, expected=expected, remedy="give --ep or leave --attention away")

        if self.redundant_experts < 0 or (self.redundant_experts and self.ep == 1):
            got, expected = f"--redundant-experts {self.redundant_experts} without --ep", "0, or a number with --ep"
            raise InputError("layout", got=got, expected=expected, remedy="give --ep or leave it away")

    @property
    def group_size(self) -> int:
        return max(self.tp, self.ep)

    @property
    def world_size(self) -> int:
        return self.group_size * self.pp

    @property
    def attention_degree(self) -> int:
        """Ranks that heads are split over."""
        return 1 if self.attention == "replicated" else self.group_size

    def stage_of(self, rank: int) -> int:
        return rank // self.group_size

    def group_rank_of(self, rank: int) -> int:
        """The rank's place in its group."""
        return rank % self.group_size

    def expert_rank_of(self, group_rank: int) -> int:
        """The place among the ranks that experts are dealt to: 0 where every rank has a part of each."""
        return group_rank if self.ep > 1 else 0

    def layers_of(self, stage: int, num_layers: int) -> range:
        """As even as can be; the first stages have the one more, as the last has the head."""
        each, more = divmod(num_layers, self.pp)
        start = stage * each + min(stage, more)
        return range(start, start + each + (stage < more))

    def __str__(self) -> str:
        parts = [f"{name.upper()}{degree}" for name in ("tp", "ep", "pp") if (degree := getattr(self, name)) > 1]
        attention = " with replicated attention" if self.attention == "replicated" else ""
        redundant = f" and {self.redundant_experts} redundant experts" if self.redundant_experts else ""
        return (" x ".join(parts) or "one rank") + attention + redundant


@dataclass(frozen=True)
class Part:
    """What of the model one graph computes: the same for all ranks of a group."""

    layout: Layout = Layout()
    stage: int = 0

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.layout.pp - 1

    def layers(self, num_layers: int) -> range:
        return self.layout.layers_of(self.stage, num_layers)


SINGLE = Layout()
WHOLE = Part()
