"""Times the kernels of one decoder layer in a row, as a decode step launches them, beside their physical limit.

    python benchmarks/bench_layer.py path/to/libqwen3moe_kernels.so [--batches 1 8 64]

Qwen3-30B-A3B's shape, bf16, 1024 tokens of context each, uniform random routing. A CUDA graph holds the kernels of
several layers with weights of their own; the figure is the median replay over the number of layers. `alone` is the sum
of what the operators take in graphs of one operator each: the difference is what overlapping launches save.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from qwen3moe_plugins.kernels import (
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
from qwen3moe_plugins.library import load_cublaslt

H, HEADS, KV_HEADS, D, E, TOP_K, I = 2048, 32, 4, 128, 128, 8, 768  # noqa: E741
CONTEXT, BLOCK_SIZE, LAYERS = 1024, 32, 6
BYTES_PER_SECOND = 4.3e12  # measured on an H200
OPS = ("norm", "qkv", "attention", "output", "add norm", "router", "moe")


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, scale)


class Layer:
    """The calls of one layer by name, on tensors of their own."""

    def __init__(self, library: KernelLibrary, batch: int):
        self.library, self.keep = library, []
        x, normed, out, summed = (random(batch, H) for _ in range(4))
        qkv, attended = random(batch, (HEADS + 2 * KV_HEADS) * D), random(batch, HEADS * D)
        logits = random(batch, E)
        self.calls: dict[str, Callable[[], None]] = {
            "norm": self.norm(x, None, normed),
            "qkv": self.linear(normed, random(qkv.shape[1], H, scale=H**-0.5), qkv),
            "attention": self.attention(qkv, attended),
            "output": self.linear(attended, random(H, HEADS * D, scale=D**-0.5), out),
            "add norm": self.norm(x, out, normed, summed),
            "router": self.linear(normed, random(E, H, scale=H**-0.5), logits),
            "moe": self.moe(normed, logits, out),
        }
        assert tuple(self.calls) == OPS

    def call(self, op: str, shape, tensors, **operands: torch.Tensor | None) -> Callable[[], None]:
        self.keep.append(operands)
        pointers = tensors(**{name: None if x is None else x.data_ptr() for name, x in operands.items()})
        size = self.library.workspace_size(op, shape)
        workspace = torch.zeros(max(size, 1), dtype=torch.uint8, device="cuda")

        def run() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            self.library.run(op, shape, pointers, workspace.data_ptr(), size, stream)

        return run

    def norm(self, x, residual, out, residual_out=None) -> Callable[[], None]:
        shape = RMSNormShape(BF16, len(x), H, 1e-6)
        operands = dict(x=x, residual=residual, weight=random(H), out=out, residual_out=residual_out)
        return self.call("rms_norm", shape, RMSNormTensors, **operands)

    def linear(self, x, weight, out) -> Callable[[], None]:
        shape = LinearShape(BF16, 0, *x.shape, len(weight))
        return self.call("linear", shape, LinearTensors, x=x, weight=weight, out=out)

    def attention(self, qkv, out) -> Callable[[], None]:
        batch, blocks = len(qkv), CONTEXT // BLOCK_SIZE
        shape = PagedAttentionShape(
            BF16, batch, batch, HEADS, KV_HEADS, D, batch * blocks, BLOCK_SIZE, blocks, CONTEXT, D**-0.5, 1e-6
        )
        table = torch.randperm(batch * blocks, device="cuda").int().view(batch, blocks)
        return self.call(
            "paged_attention", shape, PagedAttentionTensors, qkv=qkv, q_norm_weight=random(D), k_norm_weight=random(D),
            cos_sin_cache=torch.randn(CONTEXT, D, device="cuda"),
            positions=torch.full((batch,), CONTEXT - 1, dtype=torch.int32, device="cuda"),
            kv_cache=random(batch * blocks, 2, KV_HEADS, BLOCK_SIZE, D), block_table=table,
            cu_seqlens=torch.arange(batch + 1, dtype=torch.int32, device="cuda"),
            context_lens=torch.full((batch,), CONTEXT, dtype=torch.int32, device="cuda"), out=out,
        )  # fmt: skip

    def moe(self, x, logits, out) -> Callable[[], None]:
        self.logits = logits
        shape = MoEShape(BF16, len(x), H, I, E, E, TOP_K, 1)
        gate_up, down = random(E, 2 * I, H, scale=H**-0.5), random(E, H, I, scale=I**-0.5)
        slots = torch.arange(E, dtype=torch.int32, device="cuda")
        operands = dict(hidden=x, router_logits=logits, gate_up=gate_up, down=down, expert_map=slots, out=out)
        return self.call("moe", shape, MoETensors, **operands)

    def bound_us(self, batch: int) -> float:
        experts = self.logits.topk(TOP_K).indices.unique().numel()
        weights = H * (HEADS + 2 * KV_HEADS) * D + H * HEADS * D + H * E + experts * 3 * H * I
        return 1e6 * 2 * (weights + batch * CONTEXT * 2 * KV_HEADS * D) / BYTES_PER_SECOND


def median_us(layers: list[Layer], ops: tuple[str, ...], repeats: int = 30) -> float:
    """Of one layer's `ops`: the median replay of a graph of them over all layers."""
    runs = [layer.calls[op] for layer in layers for op in ops]
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / len(layers))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libqwen3moe_kernels.so")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    arguments = parser.parse_args()
    load_cublaslt()
    library = KernelLibrary(arguments.library)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, us a layer")
    print(f"| batch | {' | '.join(OPS)} | alone | layer | bound |\n|{'---|' * (len(OPS) + 4)}")
    for batch in arguments.batches:
        layers = [Layer(library, batch) for _ in range(LAYERS)]
        alone = [median_us(layers, (op,)) for op in OPS]
        layer = median_us(layers, OPS)
        bound = statistics.mean(each.bound_us(batch) for each in layers)
        cells = " | ".join(f"{time:.1f}" for time in (*alone, sum(alone), layer, bound))
        print(f"| {batch} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
