"""Which part of every weight a rank holds, as a rule from names.

Owns: the rule, and which degrees a model's sizes allow. Must not know files, graphs or processes.

As in Megatron: a matrix whose output is split is split by rows, the one that takes that output by columns, and the sum
over the group makes up for it. Biases of the latter, norms and routers are on every rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen3moe_engine.expert_placement import Placement
from qwen3moe_engine.layout import Layout
from qwen3moe_plugins.errors import InputError

AXES = ("rows", "columns", "experts")


@dataclass(frozen=True)
class ShardSpec:
    """A tensor in `count` equal parts along `axis`: its rows, its columns, or, of one for each expert, the experts.

    Of a group of more ranks than parts, neighbours share a part. A count of 1 is the whole.
    """

    axis: str = "rows"
    count: int = 1

    def part_of(self, group_rank: int, group_size: int) -> int:
        """Which part the rank holds."""
        assert group_size % self.count == 0, (self, group_size)
        return group_rank * self.count // group_size

    def size_of(self, size: int, axis: str) -> int:
        """How much of `size` along `axis` is in one part."""
        return size // self.count if axis == self.axis else size

    def bounds(self, size: int, axis: str, part: int) -> tuple[int, int]:
        """Start and end, along `axis`, of a part of a tensor that has `size` there in all."""
        return (0, size) if axis != self.axis else (part * size // self.count, (part + 1) * size // self.count)


def shard_of(name: str, layout: Layout, num_kv_heads: int) -> ShardSpec:
    """How the published tensor `name` splits; an expert's number may stand as `{}`."""
    group, heads = layout.group_size, layout.attention_degree
    expert = ShardSpec("experts", layout.ep) if layout.ep > 1 else None
    rules = {
        r"(self_attn\.q_proj\.(weight|bias))": ShardSpec("rows", heads),
        r"(self_attn\.[kv]_proj\.(weight|bias))": ShardSpec("rows", min(heads, num_kv_heads)),
        r"(self_attn\.o_proj\.weight)": ShardSpec("columns", heads),
        r"(mlp\.experts\.(\d+|\{\})\.(gate|up)_proj\.weight)": expert or ShardSpec("rows", layout.tp),
        r"(mlp\.experts\.(\d+|\{\})\.down_proj\.weight)": expert or ShardSpec("columns", layout.tp),
        r"(mlp\.(gate|up)_proj\.weight)": ShardSpec("rows", group),
        r"(mlp\.down_proj\.weight)": ShardSpec("columns", group),
        r"(embed_tokens\.weight|lm_head\.weight)": ShardSpec("rows", group),
        r"([a-z_]*norm\.weight|mlp\.gate\.weight|self_attn\.o_proj\.bias)": ShardSpec(),
    }
    found = [shard for pattern, shard in rules.items() if re.search(rf"(^|\.){pattern}$", name)]
    assert len(found) == 1, (name, found)
    return found[0]


def placement_of(num_experts: int, layout: Layout) -> Placement:
    """Where experts lie to begin with, on the ranks that they are dealt to, one if every rank has them all: neighbours
    together; redundant slots have the first experts of the next rank."""
    num_slots = (num_experts + layout.redundant_experts) // layout.ep
    starts = [rank * num_experts // layout.ep for rank in range(layout.ep)]
    return Placement(tuple(tuple((start + slot) % num_experts for slot in range(num_slots)) for start in starts))


@dataclass(frozen=True)
class SplitSizes:
    """The sizes of a model that splitting divides. Those that it has none of are None."""

    num_heads: int
    num_kv_heads: int
    vocab_size: int
    num_layers: int
    num_experts: int | None
    expert_width: int | None
    mlp_width: int | None

    def divisors(self, option: str, layout: Layout) -> list[int]:
        """Degrees of --tp, --ep or --pp that the sizes allow, ascending."""
        if option == "--pp":
            return list(range(1, self.num_layers + 1))
        num_slots = None if self.num_experts is None else self.num_experts + layout.redundant_experts
        sizes = [self.vocab_size, self.mlp_width, num_slots if option == "--ep" else self.expert_width]
        heads, kv_heads = (self.num_heads, self.num_kv_heads) if layout.attention == "split" else (None, None)
        limit = min(size for size in (*sizes, heads) if size is not None)
        return [
            degree
            for degree in range(1, limit + 1)
            if all(size % degree == 0 for size in (*sizes, heads) if size is not None)
            and (kv_heads is None or kv_heads % degree == 0 or degree % kv_heads == 0)
        ]


def check_layout(layout: Layout, sizes: SplitSizes) -> None:
    """Raises InputError, with the degrees that would do, if the model does not split so."""
    if layout.ep > 1 and sizes.num_experts is None:
        raise InputError("--ep", got="a model without experts", expected="experts to deal out", remedy="use --tp")
    for option, degree in (("--tp", layout.tp), ("--ep", layout.ep), ("--pp", layout.pp)):
        allowed = sizes.divisors(option, layout)
        if degree > 1 and degree not in allowed:
            choice = ", ".join(map(str, allowed)) if len(allowed) <= 16 else f"1 to {allowed[-1]}"
            raise InputError(
                option, got=degree, expected=f"one of {choice}", remedy="the model's sizes divide by no other degree"
            )
