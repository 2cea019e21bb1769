"""qwen3moe_moe of experts with replicas: who serves a token, and the counting of load.

A row of the map alone is a plain call, which test_moe.py holds against torch: a token's output must have the bits of
the plain call with its position's row. Counts are exact.

Legend: as in test_moe.py; R rows of expert_map.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from test_moe import QWEN3_30B, TINY, Call, Model, make_tokens, make_weights, reference_routing  # noqa: E402

from qwen3moe_plugins.kernels import KernelError, MoETensors  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

HALF_HELD = Model(QWEN3_30B.E, QWEN3_30B.k, 512, 192, E_local=80)
TOKENS = [1, 2, 3, 4, 16, 17, 65, 300, 2048, 40000]


def make_map(model, R, seed=5):
    """[R, E]: slots in any order, of which experts that are held at all serve about half of the rows."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.full((model.E,), -1, dtype=torch.int32)
    held = torch.randperm(model.E, generator=generator)[: min(model.E, model.num_local)]
    slots[held] = torch.randperm(model.num_local, generator=generator)[: len(held)].to(torch.int32)
    serves = torch.rand(R, model.E, generator=generator) < 0.5
    return torch.where(serves, slots, -1).cuda()


class BalancedCall(Call):
    """num_counted: tokens ahead of the padding, in three sequences, one of them empty."""

    def __init__(self, model, R, T, num_counted):
        generator = torch.Generator("cuda").manual_seed(T)
        self.model, self.num_counted = model, num_counted
        self.positions = torch.randint(0, 5000, (T,), dtype=torch.int32, device="cuda", generator=generator)
        third = num_counted // 3
        self.cu_seqlens = torch.tensor([0, third, third, num_counted], dtype=torch.int32, device="cuda")
        self.load = torch.arange(model.E, dtype=torch.int32, device="cuda")  # what was counted before
        weights = make_weights(model.num_local, model.H, model.I, torch.bfloat16)
        super().__init__(model, *make_tokens(model, T, torch.bfloat16), *weights, make_map(model, R))
        self.shape.map_rows, self.shape.num_seqs = R, 3
        more = (self.positions, self.cu_seqlens, self.load)
        self.tensors = MoETensors(*(tensor.data_ptr() for tensor in (*self.inputs, self.out, *more)))

    def expected(self):
        """Output and load."""
        hidden, logits, gate_up, down, expert_map = self.inputs
        out = torch.empty_like(hidden)
        for row, row_map in enumerate(expert_map):
            plain = Call(self.model, hidden, logits, gate_up, down, row_map.contiguous())()
            of_row = self.positions % len(expert_map) == row
            out[of_row] = plain[of_row]
        _, experts = reference_routing(logits, self.model.k, self.model.norm_topk_prob)
        slots = expert_map[self.positions.long() % len(expert_map)].gather(1, experts)
        served = experts[: self.num_counted][slots[: self.num_counted] >= 0]
        counts = torch.bincount(served, minlength=self.model.E)
        return out, counts


@pytest.mark.parametrize("T", TOKENS)
@pytest.mark.parametrize("R", [1, 2, 24, 32])
@pytest.mark.parametrize("model", [TINY, HALF_HELD], ids=["tiny", "half held"])
def test_tokens_are_served_by_position_and_counted(model, R, T):
    call = BalancedCall(model, R, T, num_counted=T - T // 3)
    expected, counts = call.expected()
    before = call.load.clone()
    assert torch.equal(call(), expected)
    assert torch.equal(call.load, before + counts)
    assert (counts.sum() > 0 or T < 8) and call.load.dtype == torch.int32


@pytest.mark.parametrize("T", [2, 64, 3000])
def test_a_graph_goes_on_counting(T):
    call = BalancedCall(HALF_HELD, 24, T, num_counted=T)
    _, counts = call.expected()
    call()
    torch.cuda.synchronize()
    call.load.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for number in range(1, 101):
        graph.replay()
        if number == 50:
            call.cu_seqlens.zero_()  # all are padding
    assert torch.equal(call.load, 50 * counts)


def test_nothing_is_counted_without_a_load():
    call = BalancedCall(TINY, 24, 64, num_counted=64)
    expected, _ = call.expected()
    before = call.load.clone()
    call.tensors.load = call.tensors.cu_seqlens = None
    assert torch.equal(call(), expected)
    assert torch.equal(call.load, before)


def test_what_is_missing_is_named():
    call = BalancedCall(TINY, 24, 4, num_counted=4)
    call.shape.map_rows = 33
    with pytest.raises(KernelError, match="map_rows"):
        call()
    call.shape.map_rows = 24
    call.tensors.cu_seqlens = None
    with pytest.raises(KernelError, match="cu_seqlens is null"):
        call()
    call.tensors.positions = None
    with pytest.raises(KernelError, match="positions is null"):
        call()
