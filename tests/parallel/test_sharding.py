"""Which part of every tensor a rank reads, whatever the checkpoint's form; and which layouts a model refuses."""

from __future__ import annotations

import numpy as np
import pytest
from layout_check import ONE_KV_HEAD, write_random
from safetensors.numpy import load_file, save_file

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.layout import Layout, Part
from qwen3moe_engine.sharding import SplitSizes, check_layout, placement_of
from qwen3moe_engine.weights import plan_weights, read_weight
from qwen3moe_export.config import parse_config
from qwen3moe_export.layout import split_sizes, weight_specs
from qwen3moe_plugins.errors import InputError

VALUES = ONE_KV_HEAD | {"num_key_value_heads": 2, "tie_word_embeddings": False, "num_hidden_layers": 2}
CONFIG = parse_config(VALUES, "values")
LAYOUTS = [Layout(), Layout(tp=2), Layout(tp=4), Layout(ep=4), Layout(ep=2, attention="replicated")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One model as published, with experts fused as transformers 5 has them, and packed; and its tensors."""
    root = tmp_path_factory.mktemp("forms")
    tensors = load_file(write_random(root / "published", VALUES) / "model.safetensors")
    specs = weight_specs(CONFIG, "fp32")
    whole = {s.name: np.concatenate([tensors[n] for n in s.source_shapes()]).reshape(s.shape) for s in specs}
    fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    fused |= {name: tensor for name, tensor in whole.items() if ".experts." in name}
    save_file(fused, root / "fused.safetensors")
    save_file(whole, root / "packed.safetensors")
    return {
        "published": root / "published",
        "fused": root / "fused.safetensors",
        "packed": root / "packed.safetensors",
    }, tensors


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("form", ["published", "fused", "packed"])
def test_a_rank_reads_its_part(checkpoints, form, layout):
    paths, tensors = checkpoints
    checkpoint, specs = open_checkpoint(paths[form]), weight_specs(CONFIG, "fp32", part=Part(layout))
    placement = placement_of(12, layout).by_rank
    for rank in range(layout.group_size):
        plans = plan_weights(
            specs, checkpoint, group_rank=rank, group_size=layout.group_size, experts=placement[rank % len(placement)]
        )
        for plan in plans:
            found, expected = read_weight(plan, "fp32"), part_of(plan.spec.name, tensors, layout, rank)
            assert np.array_equal(found, expected), (plan.spec.name, rank)
            assert plan.num_bytes_read == expected.nbytes


def part_of(name: str, tensors: dict, layout: Layout, rank: int) -> np.ndarray:
    """The weight of a rank, cut from whole tensors with numpy."""
    size = layout.group_size
    heads = 1 if layout.attention == "replicated" else size
    place = rank if heads > 1 else 0

    def rows(tensor: np.ndarray, count: int, index: int) -> np.ndarray:
        return np.split(tensor, count)[index]

    prefix, _, last = name.rpartition(".")
    if "qkv_proj" in name:
        q, k, v = (tensors[name.replace("qkv", x)] for x in "qkv")
        shared = max(1, heads // 2)  # ranks that share one of the two key/value heads
        kv_count = heads // shared
        return np.concatenate([rows(q, heads, place), *(rows(x, kv_count, place // shared) for x in (k, v))])
    if name.endswith("o_proj.weight"):
        return np.split(tensors[name], heads, axis=1)[place]
    if ".experts." in name:
        split = 1 if layout.ep > 1 else size
        held = range(12) if layout.ep == 1 else np.split(np.arange(12), size)[rank]
        index = 0 if layout.ep > 1 else rank
        if last == "down_proj":
            downs = [tensors[f"{prefix}.{e}.down_proj.weight"] for e in held]
            return np.stack([np.split(down, split, axis=1)[index] for down in downs])
        pairs = [[tensors[f"{prefix}.{e}.{x}_proj.weight"] for x in ("gate", "up")] for e in held]
        return np.stack([np.concatenate([rows(x, split, index) for x in pair]) for pair in pairs])
    if "gate_up_proj" in name:
        return np.concatenate([rows(tensors[name.replace("gate_up", x)], size, rank) for x in ("gate", "up")])
    if name.endswith("mlp.down_proj.weight"):
        return np.split(tensors[name], size, axis=1)[rank]
    return rows(tensors[name], size, rank) if "embed" in name or "lm_head" in name else tensors[name]


def test_experts_of_ranks():
    assert placement_of(6, Layout(ep=3)).by_rank == ((0, 1), (2, 3), (4, 5))
    assert [placement_of(6, Layout(ep=3)).expert_map(rank).tolist() for rank in range(3)] == [
        [0, 1, -1, -1, -1, -1], [-1, -1, 0, 1, -1, -1], [-1, -1, -1, -1, 0, 1],
    ]  # fmt: skip
    assert placement_of(4, Layout(tp=2)).by_rank == ((0, 1, 2, 3),)


def test_layers_of_stages():
    """94 layers on 4 stages: the first have the more."""
    layout = Layout(pp=4)
    ranges = [layout.layers_of(stage, 94) for stage in range(4)]
    assert [len(layers) for layers in ranges] == [24, 24, 23, 23]
    assert [idx for layers in ranges for idx in layers] == list(range(94))


def test_places_of_ranks():
    layout = Layout(tp=2, pp=3)
    assert layout.world_size == 6
    assert [(layout.stage_of(r), layout.group_rank_of(r)) for r in range(6)] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip


SIZES = SplitSizes(32, 4, 151936, 48, 128, 768, None)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(tp=3), "--tp: got 3, expected one of 1, 2, 4, 8, 16, 32;"),
        (Layout(tp=64), "--tp: got 64, expected one of 1, 2, 4, 8, 16, 32;"),
        (Layout(ep=64), "--ep: got 64, expected one of 1, 2, 4, 8, 16, 32;"),
        (Layout(pp=49), "--pp: got 49, expected one of 1 to 48;"),
    ],
    ids=str,
)
def test_a_degree_that_does_not_divide(layout, said):
    with pytest.raises(InputError) as error:
        check_layout(layout, SIZES)
    assert str(error.value).startswith(said)


def test_degrees_that_do():
    for layout in (Layout(tp=8), Layout(ep=32), Layout(ep=64, attention="replicated"), Layout(tp=2, pp=5)):
        check_layout(layout, SIZES)


def test_a_model_without_experts():
    dense = parse_config(VALUES | {"mlp_only_layers": [0, 1]}, "values")
    check_layout(Layout(tp=4), split_sizes(dense))
    with pytest.raises(InputError, match="--ep: got a model without experts"):
        check_layout(Layout(ep=2), split_sizes(dense))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tp": 2, "ep": 2}, "layout: got --tp 2 with --ep 2"),
        ({"tp": 0}, "--tp: got 0, expected at least 1"),
        ({"tp": 2, "attention": "replicated"}, "layout: got --attention replicated without --ep"),
    ],
)
def test_what_is_no_layout(options, said):
    with pytest.raises(InputError, match=said):
        Layout(**options)
