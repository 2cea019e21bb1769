"""Experts that move in a GPU's memory, with the memory of this process in its place: what lies where afterwards, and
that nothing else was written. On GPUs benchmarks/engine_check.py and rebalance.py do it with a model running."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.expert_placement import MAP_ROWS
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.parallel.rebalancing import Rebalancer
from qwen3moe_engine.random_model import RandomWeights
from qwen3moe_engine.tensorrt import bindings as bindings_module
from qwen3moe_engine.tensorrt import double_buffer
from qwen3moe_engine.tensorrt.bindings import Bindings
from qwen3moe_engine.tensorrt.expert_slots import DeviceExperts
from qwen3moe_engine.tensorrt.loading import stream_weights
from qwen3moe_engine.tensorrt.plan import Limits
from qwen3moe_engine.tensorrt.random_weights import WeightMaker, fill_weight, fill_weights, random_checkpoint
from qwen3moe_engine.weights import WeightPlan, no_progress, plan_expert, plan_manifest, read_weight
from qwen3moe_plugins.kernels import FP16

REDUNDANT = Layout(ep=2, redundant_experts=4)
NUM_EXPERTS, NUM_LAYERS = 16, 4


class HostMemory:
    """Stands in for `DeviceMemory`: arrays, with guard bytes on either side."""

    GUARD = 256

    def __init__(self):
        self.arrays: dict[int, NDArray[np.uint8]] = {}

    def allocate(self, num_bytes: int, what: str) -> int:
        array = np.full(num_bytes + 2 * self.GUARD, 0xA5, np.uint8)
        address = array.ctypes.data + self.GUARD
        self.arrays[address] = array
        return address

    def close(self):
        for array in self.arrays.values():
            guards = np.concatenate([array[: self.GUARD], array[-self.GUARD :]])
            assert (guards == 0xA5).all(), "written out of bounds"


class HostStream:
    """Stands in for `Stream`."""

    handle = 0

    def to_device(self, target: int, source: int, num_bytes: int) -> None:
        ctypes.memmove(target, source, num_bytes)

    to_host = to_device

    def synchronize(self) -> None:
        pass


class HostEvent:
    """Stands in for `Event`: copies are done when they are asked for."""

    def record(self, stream: HostStream) -> None:
        pass

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


class HostBuffer:
    """Stands in for `PinnedBuffer`."""

    def __init__(self, num_bytes: int):
        self.bytes = np.empty(num_bytes, np.uint8)
        self.address = self.bytes.ctypes.data

    def close(self):
        self.bytes[:] = 0xFF  # no copy may still read it


class HostKernels:
    """Stands in for `KernelLibrary`: `fill`, with other values, which follow from the seed and the element as well."""

    def run(self, op: str, shape, tensors, workspace: int, workspace_size: int, stream: int) -> None:
        assert op == "fill" and shape.dtype == FP16
        rows, columns = np.arange(shape.count // shape.columns), np.arange(shape.columns)
        elements = shape.first + rows[:, None] * shape.row_stride + columns
        values = elements % 251 + shape.seed % 241 + 1000 * shape.high
        flat = values.astype(np.float16).reshape(-1)
        ctypes.memmove(tensors.values, flat.ctypes.data, flat.nbytes)


MAKER = WeightMaker(RandomWeights(7), 4, HostKernels(), HostStream.handle)


class OtherRankDoesTheSame:
    """Stands in for the group, whose sum is twice what this rank counted."""

    size = 2

    def all_reduce(self, x: NDArray) -> NDArray:
        return 2 * x


class Rank:
    """Has a rank's weights as the TensorRT executor does: read, or made."""

    def __init__(self, bench, group_rank: int, are_random: bool):
        self.manifest = load_manifest(bench.export("trained", REDUNDANT, "fp16"))
        checkpoint = open_checkpoint(bench.model("trained").checkpoint)
        given = random_checkpoint(self.manifest) if are_random else checkpoint
        self.group_rank, self.are_random = group_rank, are_random
        self.plans, stream = plan_manifest(self.manifest, given, group_rank), HostStream()
        self.bindings = Bindings(self.manifest, Limits(64, 8, 128, block_size=16), stream, group_rank)
        addresses = self.bindings.addresses
        if are_random:
            fill_weights(self.plans, addresses, MAKER, stream)
        else:
            stream_weights(self.plans, addresses, self.manifest.dtype, stream, no_progress)
        maker = MAKER if are_random else None
        self.experts = DeviceExperts(self.manifest, self.bindings, stream, maker, no_progress)
        self.rebalancer = Rebalancer(self.manifest, self.plans, self.experts, OtherRankDoesTheSame(), group_rank)

    def weights_of(self, plan: WeightPlan, expert: int) -> NDArray:
        """What a slot with the expert holds."""
        wanted = plan_expert(plan, expert, self.group_rank, 2)
        if not self.are_random:
            return read_weight(wanted, self.manifest.dtype)
        made = np.empty(wanted.spec.static_shape, np.float16)
        fill_weight(wanted, made.ctypes.data, MAKER)
        return made

    def view(self, name: str, dtype: type, shape: tuple[int, ...]) -> NDArray:
        """What lies in memory for an input."""
        pointer = ctypes.cast(self.bindings.addresses[name], ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype)))
        return np.ctypeslib.as_array(pointer, shape)

    def count(self, loads: NDArray) -> None:
        for spec, row in zip(self.manifest.of_kind("load"), loads, strict=True):
            self.view(spec.name, np.uint32, (NUM_EXPERTS,))[:] += row.astype(np.uint32)

    def check(self) -> None:
        """Memory is what the placements in force say."""
        for layer, placement in self.rebalancer.placements.items():
            expected = placement.balanced_map(self.group_rank)
            assert (self.view(f"{layer}expert_map", np.int32, (MAP_ROWS, NUM_EXPERTS)) == expected).all()
            for plan in (plan for plan in self.plans if plan.spec.name.startswith(layer) and plan.spec.has_experts):
                found = self.view(plan.spec.name, np.uint16, plan.spec.static_shape)
                for slot, expert in enumerate(placement.by_rank[self.group_rank]):
                    wanted = self.weights_of(plan, expert).view(np.uint16)
                    assert (found[slot] == wanted).all(), (plan.spec.name, slot, expert)


@pytest.fixture(params=[False, True], ids=["read", "made"])
def ranks(bench, monkeypatch, request):
    monkeypatch.setattr(bindings_module, "DeviceMemory", HostMemory)
    monkeypatch.setattr(double_buffer, "PinnedBuffer", HostBuffer)
    monkeypatch.setattr(double_buffer, "Event", HostEvent)
    opened = [Rank(bench, group_rank, request.param) for group_rank in range(2)]
    yield opened
    for rank in opened:
        rank.bindings.close()


def test_memory_is_what_the_placement_says(ranks):
    rng = np.random.default_rng(0)
    addresses = [dict(rank.bindings.addresses) for rank in ranks]
    for _ in range(3):
        loads = rng.integers(0, 1000, (NUM_LAYERS, NUM_EXPERTS)) ** 2
        num_moved = []
        for rank in ranks:
            rank.count(loads)
            num_moved.append(rank.rebalancer.run())
            rank.check()
            assert (rank.rebalancer.loads == 2 * loads).all()
        assert min(num_moved) > 0
        assert ranks[0].rebalancer.placements == ranks[1].rebalancer.placements
    assert [rank.bindings.addresses for rank in ranks] == addresses, "CUDA graphs hold them"


def test_counters_may_wrap(ranks):
    rank = ranks[0]
    rank.count(np.full((NUM_LAYERS, NUM_EXPERTS), 2**32 - 5))
    rank.rebalancer.run()
    loads = np.arange(NUM_LAYERS * NUM_EXPERTS).reshape(NUM_LAYERS, NUM_EXPERTS)
    rank.count(loads)
    rank.rebalancer.run()
    assert (rank.rebalancer.loads == 2 * loads).all()


@pytest.mark.parametrize("loads", [np.zeros(NUM_EXPERTS), np.full(NUM_EXPERTS, 1000)], ids=["idle", "even"])
def test_nothing_moves_for_nothing(ranks, loads):
    for rank in ranks:
        before = dict(rank.rebalancer.placements)
        rank.count(np.broadcast_to(loads.astype(np.int64), (NUM_LAYERS, NUM_EXPERTS)))
        assert rank.rebalancer.run() == 0
        assert rank.rebalancer.placements == before
        rank.check()
