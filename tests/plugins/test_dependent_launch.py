"""Kernels that start before those ahead of them have ended give the bits that they give one at a time.

A chain of layers shares its activations and scratch memory, as TensorRT's plans do. Its truth is a run with a device
synchronisation behind every operator. A missing wait reads what is not there yet, or overwrites what is still read:
between runs every activation is NaN, so either shows in the bits.
"""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

from qwen3moe_plugins.kernels import (  # noqa: E402
    BF16,
    KernelLibrary,
    LinearShape,
    LinearTensors,
    MoEShape,
    MoETensors,
    PagedAttentionShape,
    PagedAttentionTensors,
    RMSNormShape,
    RMSNormTensors,
)
from qwen3moe_plugins.library import KERNELS, load_cublaslt  # noqa: E402

pytestmark = pytest.mark.gpu

# Qwen3-30B-A3B's layer with fewer experts: what overlaps depends on how many blocks a kernel has and how large.
H, HEADS, KV_HEADS, D, E, TOP_K, I = 2048, 32, 4, 128, 16, 8, 768  # noqa: E741
LAYERS, BLOCK_SIZE, REPLAYS = 3, 16, 300
# Tokens on each path of Linear (gemv up to 16, then cuBLASLt) and MoE (gemv up to 2, routed by the plan up to 16, wgmma
# from 100 or so), with contexts that are split over blocks and not.
BATCHES = [(1, 1000), (2, 50), (8, 300), (16, 17), (40, 100), (200, 33)]


@pytest.fixture(scope="module")
def kernels(built_library) -> KernelLibrary:
    load_cublaslt()
    return KernelLibrary(os.environ.get("QWEN3MOE_KERNELS") or built_library(KERNELS))


class Chain:
    """Layers of a decode step: every sequence has one new token and `context_len` in all."""

    def __init__(self, kernels, batch, context_len):
        self.kernels, self.batch, self.context_len = kernels, batch, context_len
        self.generator = torch.Generator("cuda").manual_seed(batch)
        self.max_blocks = -(-context_len // BLOCK_SIZE)
        self.inputs = self.random(batch, H), self.random(LAYERS, batch * self.max_blocks, 2, KV_HEADS, BLOCK_SIZE, D)
        self.x, self.kv_cache = (torch.empty_like(tensor) for tensor in self.inputs)
        widths = [H, H, H, H, (HEADS + 2 * KV_HEADS) * D, HEADS * D, E]
        self.activations = [torch.empty(batch, width, dtype=torch.bfloat16, device="cuda") for width in widths]
        self.workspace = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
        self.block_table = torch.randperm(batch * self.max_blocks).int().view(batch, -1).cuda()
        self.cu_seqlens = torch.arange(batch + 1, dtype=torch.int32).cuda()
        self.context_lens = torch.full((batch,), context_len, dtype=torch.int32).cuda()
        self.positions = self.context_lens - 1
        self.cos_sin, self.slots = torch.randn(context_len, D).cuda(), torch.arange(E, dtype=torch.int32).cuda()
        self.weights = []
        self.calls = [call for layer in range(LAYERS) for call in self.layer(layer)]
        torch.cuda.synchronize()  # weights and metadata are there before a kernel starts early

    def random(self, *shape, scale=1.0):
        values = torch.randn(shape, generator=self.generator, device="cuda") * scale
        return values.to(torch.bfloat16)

    def weight(self, *shape):
        self.weights.append(self.random(*shape, scale=shape[-1] ** -0.5 if len(shape) > 1 else 1.0))
        return self.weights[-1]

    def layer(self, idx):
        normed, out, first_sum, second_sum, qkv, attended, logits = self.activations
        yield self.norm(self.x if idx == 0 else out, None if idx == 0 else second_sum, normed, first_sum)
        yield self.linear(normed, self.weight((HEADS + 2 * KV_HEADS) * D, H), qkv)
        yield self.attention(qkv, self.kv_cache[idx], attended)
        yield self.linear(attended, self.weight(H, HEADS * D), out)
        yield self.norm(out, self.x if idx == 0 else first_sum, normed, second_sum)
        yield self.linear(normed, self.weight(E, H), logits)
        yield self.moe(normed, logits, out)

    def call(self, op, shape, tensors, operands):
        pointers = tensors(*(None if tensor is None else tensor.data_ptr() for tensor in operands))
        size = self.kernels.workspace_size(op, shape)
        assert size <= self.workspace.numel()
        return lambda: self.kernels.run(
            op, shape, pointers, self.workspace.data_ptr(), size, torch.cuda.current_stream().cuda_stream
        )

    def norm(self, x, residual, out, residual_out):
        shape = RMSNormShape(BF16, self.batch, H, 1e-6)
        operands = (x, residual, self.weight(H), out, residual_out if residual is not None else None)
        return self.call("rms_norm", shape, RMSNormTensors, operands)

    def linear(self, x, weight, out):
        return self.call("linear", LinearShape(BF16, 0, *x.shape, len(weight)), LinearTensors, (x, weight, out))

    def attention(self, qkv, kv_cache, out):
        shape = PagedAttentionShape(
            BF16, self.batch, self.batch, HEADS, KV_HEADS, D, len(kv_cache), BLOCK_SIZE, self.max_blocks,
            self.context_len, D**-0.5, 1e-6,
        )  # fmt: skip
        operands = (
            qkv, self.weight(D), self.weight(D), self.cos_sin, self.positions, kv_cache, self.block_table,
            self.cu_seqlens, self.context_lens, out,
        )  # fmt: skip
        return self.call("paged_attention", shape, PagedAttentionTensors, operands)

    def moe(self, x, logits, out):
        shape = MoEShape(BF16, self.batch, H, I, E, E, TOP_K, 1)
        operands = (x, logits, self.weight(E, 2 * I, H), self.weight(E, H, I), self.slots, out)
        return self.call("moe", shape, MoETensors, operands)

    def poison(self):
        for mine, given in zip((self.x, self.kv_cache), self.inputs, strict=True):
            mine.copy_(given)
        for tensor in self.activations:
            tensor.fill_(torch.nan)
        self.workspace.fill_(0xFF)

    def results(self):
        return [tensor.clone() for tensor in (*self.activations, self.kv_cache)]


def same_bits(results, expected):
    return all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize(("batch", "context_len"), BATCHES)
def test_chain_gives_the_bits_of_one_kernel_at_a_time(kernels, batch, context_len):
    chain = Chain(kernels, batch, context_len)
    chain.poison()
    for call in chain.calls:
        call()
        torch.cuda.synchronize()
    expected = chain.results()
    assert all(tensor.isfinite().all() for tensor in expected)

    chain.poison()
    for call in chain.calls:
        call()
    assert same_bits(chain.results(), expected), "launched one behind the other"

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in chain.calls:
            call()
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(REPLAYS):
        chain.poison()
        graph.replay()
        for tensor, bits in zip((*chain.activations, chain.kv_cache), expected, strict=True):
            differing += tensor.view(torch.int16).ne(bits.view(torch.int16)).any()
    assert differing.item() == 0, "replays of a graph"
