"""Experts with replicas: where they are placed, and that moving them while a model runs changes no token."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_check import TOLERANCE

from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.expert_placement import EVEN_WITHIN, MAP_ROWS, Placement, place_experts, rearrange, settle
from qwen3moe_engine.layout import SINGLE, Layout
from qwen3moe_engine.opened_export import OpenedExport
from qwen3moe_engine.sharding import check_layout, placement_of
from qwen3moe_export.config import load_config
from qwen3moe_export.layout import split_sizes
from qwen3moe_plugins.errors import InputError

REDUNDANT = Layout(ep=2, redundant_experts=4)
WITHIN = EVEN_WITHIN + 1e-9  # and the rounding of sums


@st.composite
def cases(draw):
    """Loads, ranks and slots, with room for every expert."""
    loads = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=24))
    num_ranks = draw(st.integers(1, 6))
    return loads, num_ranks, -(-len(loads) // num_ranks) + draw(st.integers(0, 3))


@given(cases())
def test_every_slot_is_used_and_every_expert_is_somewhere(case):
    loads, num_ranks, num_slots = case
    placement = place_experts(loads, num_ranks, num_slots)
    assert [len(held) for held in placement.by_rank] == [num_slots] * num_ranks
    assert {expert for held in placement.by_rank for expert in held} == set(range(len(loads)))
    assert sum(placement.load_of_ranks(loads)) == pytest.approx(sum(loads))


@given(cases())
def test_inputs_of_the_graph(case):
    """At any position each expert is served by one rank that holds it, from one slot; its ranks have equal shares."""
    loads, num_ranks, num_slots = case
    placement = place_experts(loads, num_ranks, num_slots)
    maps = np.stack([placement.balanced_map(rank) for rank in range(num_ranks)])
    assert maps.shape == (num_ranks, MAP_ROWS, len(loads))
    assert ((maps >= 0).sum(axis=0) == 1).all()
    for rank, held in enumerate(placement.by_rank):
        for expert in range(len(loads)):
            slots = set(maps[rank, :, expert].tolist()) - {-1}
            assert slots <= {placement.expert_map(rank)[expert]}
            assert all(held[slot] == expert for slot in slots)
            assert bool(slots) == (expert in held)
    shares = (maps >= 0).sum(axis=1)
    num_holders = (shares > 0).sum(axis=0)
    assert (shares.max(axis=0) - np.where(shares > 0, shares, MAP_ROWS).min(axis=0) <= 1).all()
    assert (shares.max(axis=0) == -(-MAP_ROWS // num_holders)).all()


@given(cases(), st.randoms())
def test_who_stays_keeps_the_slot(case, random):
    loads, num_ranks, num_slots = case
    old = place_experts(loads, num_ranks, num_slots)
    random.shuffle(loads)
    new = place_experts(loads, num_ranks, num_slots)
    settled = settle(old, new)
    for before, after, wanted in zip(old.by_rank, settled.by_rank, new.by_rank, strict=True):
        assert sorted(after) == sorted(wanted)
        num_moved = sum(left != right for left, right in zip(before, after, strict=True))
        assert num_moved == sum(max(0, wanted.count(e) - before.count(e)) for e in set(wanted))


@given(cases(), st.randoms())
def test_as_even_as_can_be_or_nearly(case, random):
    loads, num_ranks, num_slots = case
    old = place_experts(loads, num_ranks, num_slots)
    assert rearrange(old, loads) == old
    random.shuffle(loads)
    new = rearrange(old, loads)
    assert {expert for held in new.by_rank for expert in held} == set(range(len(loads)))
    assert [len(held) for held in new.by_rank] == [num_slots] * num_ranks
    best = place_experts(loads, num_ranks, num_slots)
    assert max(new.load_of_ranks(loads)) <= (1 + WITHIN) * max(best.load_of_ranks(loads))
    assert settle(old, new) == new, "who stays keeps the slot"


def test_few_experts_move_for_little():
    """Work as Zipf has it, which then drifts by a tenth: a new placement would move a third of the experts."""
    rng = np.random.default_rng(0)
    rates = 1e4 / np.arange(1, 129) ** 0.8
    old = place_experts(rates.astype(int).tolist(), num_ranks=2, num_slots=72)
    for _ in range(5):
        rates = rates * np.exp(rng.normal(0, 0.1, 128))
        loads = rng.poisson(rates).tolist()
        new, anew = rearrange(old, loads), settle(old, place_experts(loads, 2, 72))
        assert num_moves(old, new) <= 24 < 48 <= num_moves(old, anew)
        old = new


def num_moves(old: Placement, new: Placement) -> int:
    pairs = zip(old.by_rank, new.by_rank, strict=True)
    return sum(left != right for before, after in pairs for left, right in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("num_experts", "ep", "redundant"), [(16, 2, 4), (128, 8, 0), (128, 6, 4), (10, 4, 2), (4, 2, 8)]
)
def test_neighbours_lie_together_to_begin_with(num_experts, ep, redundant):
    placement = placement_of(num_experts, Layout(ep=ep, redundant_experts=redundant))
    assert {len(held) for held in placement.by_rank} == {(num_experts + redundant) // ep}
    assert {expert for held in placement.by_rank for expert in held} == set(range(num_experts))
    for held in placement.by_rank:
        assert set(np.diff(held).tolist()) <= {1, 1 - num_experts}


def test_a_busy_expert_gets_the_replicas():
    """One expert has half of the work of eight on four ranks: alone it would hold its rank up."""
    loads = [700, 100, 100, 100, 100, 100, 100, 100]
    assert max(Placement(((0, 1), (2, 3), (4, 5), (6, 7))).load_of_ranks(loads)) == 800
    balanced = place_experts(loads, num_ranks=4, num_slots=3)
    assert [expert for held in balanced.by_rank for expert in held].count(0) == 4
    assert max(balanced.load_of_ranks(loads)) == 375  # 1400 / 4 and at most a piece more


def test_places_that_do_not_divide(bench):
    sizes = split_sizes(load_config(bench.model("trained").checkpoint))
    check_layout(REDUNDANT, sizes)
    with pytest.raises(InputError, match="--ep: got 2, expected one of 1"):
        check_layout(Layout(ep=2, redundant_experts=3), sizes)
    with pytest.raises(InputError, match="--redundant-experts 4 without --ep"):
        Layout(tp=2, redundant_experts=4)


def test_the_form_for_tensorrt_8(bench):
    """Counters are written in place there, as the KV cache is."""
    model = onnx.load(bench.export("trained", REDUNDANT, "fp16") / "model.trt8.onnx")
    balanced = [node for node in model.graph.node if node.op_type == "BalancedMoE"]
    assert [list(node.output) for node in balanced] == [[node.output[0]] for node in balanced]
    assert [node.input[7] for node in balanced] == [f"model.layers.{layer}.mlp.load" for layer in range(4)]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 17, "qwen3moe": 1}


def test_tokens_stay_the_same_while_experts_move(bench):
    """Every three steps of the mixed batches and of 20 continuations, each of which skews the work in its own way."""
    found = bench.compare("trained", REDUNDANT, rebalance_steps=3)
    print(f"{found.num_experts_moved} experts came to rank 0, max error {found.max_error:.2g}")
    assert found.num_experts_moved > 20
    assert found.max_error <= TOLERANCE and found.num_wrong == 0


def test_experts_go_where_work_is_even(bench):
    with bench.ranks("trained", REDUNDANT, rebalance_steps=1) as executor:
        rebalancer, num_layers, top_k = executor.runner.rebalancer, 4, 4
        bench.step(executor, bench.model("trained").prompts[0], 64)
        for _ in range(3):
            before = dict(rebalancer.placements)
            bench.step(executor, bench.model("trained").prompts[0], 64)  # behind moves by the step ahead
            assert rebalancer.loads.sum() == num_layers * top_k * 64
            for layer_loads, (layer, old) in zip(rebalancer.loads.tolist(), before.items(), strict=True):
                new = rebalancer.placements[layer]
                worst, worst_before = (max(placement.load_of_ranks(layer_loads)) for placement in (new, old))
                assert worst < worst_before or new is old
                best = place_experts(layer_loads, 2, 10)
                assert worst <= (1 + WITHIN) * max(best.load_of_ranks(layer_loads))
        assert executor.num_experts_moved > 0


def test_an_export_without_replicas_is_not_rebalanced(bench):
    options = EngineOptions(rebalance_steps=10)
    with pytest.raises(InputError, match="rebalance_steps: got an export for one rank, expected one with"):
        OpenedExport(bench.export("trained", SINGLE), bench.model("trained").checkpoint, options).load()
