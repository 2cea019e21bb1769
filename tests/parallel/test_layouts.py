"""On however many ranks: one rank's logits and tokens, from each rank's share of the checkpoint.

benchmarks/parallel_cpu.py runs every layout on both models; here each kind is run once on one of them, since an export
and the start of the processes take three seconds.
"""

from __future__ import annotations

import math
import re

import pytest
from layout_check import TOLERANCE

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.layout import Layout

CASES = [
    ("trained", Layout(tp=4)),
    ("trained", Layout(ep=2, attention="replicated")),
    ("trained", Layout(pp=3)),
    ("trained", Layout(tp=2, pp=2)),
    ("one_kv_head", Layout(tp=2)),
    ("one_kv_head", Layout(ep=4, attention="replicated")),
    ("one_kv_head", Layout(pp=2)),
    ("one_kv_head", Layout(ep=2, pp=2)),
]


@pytest.mark.parametrize(("name", "layout"), CASES, ids=lambda value: str(value))
def test_many_ranks_are_one(bench, name, layout):
    found = bench.compare(name, layout)
    print(f"{name}, {layout}: max error {found.max_error:.2g}, {found.num_equal} of 20 continuations equal")
    for difference in found.differences:
        print(f"prompt {difference.prompt} differs at token {difference.position}, {difference.gap:.2g} apart: a tie")
    assert found.max_error <= (0 if layout.group_size == 1 else TOLERANCE)
    assert found.num_wrong == 0
    whole = open_checkpoint(bench.model(name).checkpoint)
    num_kv_heads = {"trained": 2, "one_kv_head": 1}[name]
    expected = [share_of(whole, layout, rank, num_kv_heads) for rank in range(layout.world_size)]
    print(f"bytes read by rank {found.bytes_read} of {sum(t.num_bytes for t in whole.tensors.values())}")
    assert list(found.bytes_read) == expected


def share_of(checkpoint, layout: Layout, rank: int, num_kv_heads: int) -> int:
    """Bytes that the rank has to read, by the names of tensors and the sizes of their parts alone."""
    return sum(
        tensor.num_bytes // divisor
        for name, tensor in checkpoint.tensors.items()
        if (divisor := parts_of(name, layout, rank, num_kv_heads, checkpoint.tensors))
    )


def parts_of(name: str, layout: Layout, rank: int, num_kv_heads: int, names) -> int:
    """In how many parts the tensor lies on the ranks; 0 if this rank has none of it."""
    stage, place, size = rank // layout.group_size, rank % layout.group_size, layout.group_size
    is_last = stage == layout.pp - 1
    if (layer := re.match(r"model\.layers\.(\d+)\.", name)) is not None:
        num_layers = 1 + max(int(other.split(".")[2]) for other in names if other.startswith("model.layers."))
        bounds = [math.ceil(num_layers * number / layout.pp) for number in range(layout.pp + 1)]
        if not bounds[stage] <= int(layer[1]) < bounds[stage + 1]:
            return 0
    elif name == "model.embed_tokens.weight":
        return size if stage == 0 or (is_last and "lm_head.weight" not in names) else 0
    else:
        return 0 if not is_last else size if name == "lm_head.weight" else 1
    if (expert := re.search(r"experts\.(\d+)\.", name)) is not None and layout.ep > 1:
        num_experts = 1 + max(int(found[1]) for found in map(re.compile(r".*experts\.(\d+)\.").match, names) if found)
        return int(int(expert[1]) * size // num_experts == place)
    if "norm" in name or name.endswith(("mlp.gate.weight", "o_proj.bias")):
        return 1
    heads = 1 if layout.attention == "replicated" else size
    if re.search(r"\.[kv]_proj\.", name):
        return min(heads, num_kv_heads)
    return heads if "self_attn" in name else size
