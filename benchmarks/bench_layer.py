"""Times a decode step of Qwen3-30B-A3B's kernels in a row, without TensorRT: where the time of a step goes.

    python benchmarks/bench_layer.py path/to/libqwen3moe_kernels.so [--batches 1 8] [--contexts 1024 8192]

A CUDA graph holds what a step launches: 48 layers with weights of their own (61 GB, pseudo-random, made on the device),
the last norm, the LM head and the greedy sampler, fp16. An operator's time is what the step gains by leaving it out: so
overlap with its neighbours counts as theirs. The bound is each weight and key that the step needs, once, at 4.3 TB/s.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from qwen3moe_plugins.kernels import (
    FP16,
    FillShape,
    FillTensors,
    KernelLibrary,
    LinearShape,
    LinearTensors,
    MoEShape,
    MoETensors,
    PagedAttentionShape,
    PagedAttentionTensors,
    RMSNormShape,
    RMSNormTensors,
    SampleShape,
    SampleTensors,
)
from qwen3moe_plugins.library import load_cublaslt

LAYERS, H, HEADS, KV_HEADS, D, E, TOP_K, I, VOCAB = 48, 2048, 32, 4, 128, 128, 8, 768, 151936  # noqa: E741
BLOCK_SIZE, EPS = 64, 1e-6
BYTES_PER_SECOND = 4.3e12  # measured on an H200
OPS = ("norms", "qkv", "attention", "output", "router", "moe", "logits and sampler")


class Weights:
    """Of all layers, and their key/value caches for `batch` sequences of `context` tokens."""

    def __init__(self, library: KernelLibrary, batch: int, context: int):
        self.library, self.num_filled = library, 0
        self.layers = [self.layer(batch * -(-context // BLOCK_SIZE)) for _ in range(LAYERS)]
        self.norm, self.logits = self.fill(1.0, H), self.fill(H**-0.5, VOCAB, H)
        self.cos_sin = torch.randn(context, D, device="cuda")
        self.slots = torch.arange(E, dtype=torch.int32, device="cuda")

    def fill(self, scale: float, *shape: int) -> torch.Tensor:
        """Uniform with standard deviation `scale`."""
        tensor = torch.empty(shape, dtype=torch.float16, device="cuda")
        limit = 3**0.5 * scale
        count = tensor.numel()
        as_one_row = FillShape(count, count, count, 0, self.num_filled, FP16, -limit, limit)
        stream = torch.cuda.current_stream().cuda_stream
        self.library.run("fill", as_one_row, FillTensors(tensor.data_ptr()), 0, 0, stream)
        self.num_filled += 1
        return tensor

    def layer(self, num_blocks: int) -> dict[str, torch.Tensor]:
        return {
            "norm": self.fill(1.0, H),
            "qkv": self.fill(H**-0.5, (HEADS + 2 * KV_HEADS) * D, H),
            "q_norm": self.fill(1.0, D),
            "k_norm": self.fill(1.0, D),
            "kv_cache": self.fill(1.0, num_blocks, 2, KV_HEADS, BLOCK_SIZE, D),
            "output": self.fill((HEADS * D) ** -0.5, H, HEADS * D),
            "second_norm": self.fill(1.0, H),
            "router": self.fill(H**-0.5, E, H),
            "gate_up": self.fill(H**-0.5, E, 2 * I, H),
            "down": self.fill(I**-0.5, E, H, I),
        }


class Step:
    """What a step launches, as (operator, call) in order. Layers share activations and scratch memory."""

    def __init__(self, library: KernelLibrary, weights: Weights, batch: int, context: int):
        self.library, self.weights, self.batch, self.context = library, weights, batch, context
        self.calls: list[tuple[str, Callable[[], None]]] = []
        self.keep: list[torch.Tensor] = []
        self.workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        self.block_table = torch.randperm(batch * -(-context // BLOCK_SIZE), device="cuda").int().view(batch, -1)
        self.cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
        self.context_lens = torch.full((batch,), context, dtype=torch.int32, device="cuda")
        self.positions = self.context_lens - 1
        self.hidden = torch.randn(batch, H, device="cuda").half()
        self.normed, self.out, self.projected, *self.residuals = (torch.zeros_like(self.hidden) for _ in range(5))
        self.qkv, self.attended = self.empty((HEADS + 2 * KV_HEADS) * D), self.empty(HEADS * D)
        self.router_logits, self.logits = self.empty(E), self.empty(VOCAB, torch.float32)
        self.tokens = torch.full((batch,), -1, dtype=torch.int32, device="cuda")
        self.residual: torch.Tensor | None = None
        self.sums: list[torch.Tensor] = []  # by layer: of the stream, what is normed for the experts
        x = self.hidden
        for layer in weights.layers:
            self.layer(x, layer)
            x, self.sums = self.out, [*self.sums, self.residual]
        self.norm(x, weights.norm)
        self.linear("logits and sampler", self.normed, weights.logits, self.logits)
        self.sample()

    def layer(self, x: torch.Tensor, layer: dict[str, torch.Tensor]) -> None:
        self.norm(x, layer["norm"])
        self.linear("qkv", self.normed, layer["qkv"], self.qkv)
        self.attention(layer)
        self.linear("output", self.attended, layer["output"], self.projected)
        self.norm(self.projected, layer["second_norm"])
        self.linear("router", self.normed, layer["router"], self.router_logits)
        shape = MoEShape(FP16, self.batch, H, I, E, E, TOP_K, 1)
        experts = (layer["gate_up"], layer["down"], self.weights.slots)
        self.add("moe", "moe", shape, MoETensors, (self.normed, self.router_logits, *experts, self.out))

    def next_residual(self) -> torch.Tensor:
        """Where the residual stream goes next: never where it is."""
        self.residual = self.residuals[0] if self.residual is not self.residuals[0] else self.residuals[1]
        return self.residual

    def empty(self, width: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.empty(self.batch, width, dtype=dtype, device="cuda")

    def add(
        self,
        name: str,
        op: str,
        shape: ctypes.Structure,
        tensors_type: type[ctypes.Structure],
        operands: tuple[torch.Tensor | None, ...],
    ) -> None:
        size = self.library.workspace_size(op, shape)
        assert size <= self.workspace.numel()
        tensors = tensors_type(*(None if tensor is None else tensor.data_ptr() for tensor in operands))

        def call() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            self.library.run(op, shape, tensors, self.workspace.data_ptr(), size, stream)

        self.calls.append((name, call))

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Of x, or its sum with the residual stream, into self.normed."""
        shape, residual = RMSNormShape(FP16, self.batch, H, EPS), self.residual
        total = self.next_residual() if residual is not None else None
        self.residual = x if residual is None else total
        self.add("norms", "rms_norm", shape, RMSNormTensors, (x, residual, weight, self.normed, total))

    def linear(self, name: str, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        shape = LinearShape(FP16, int(out.dtype == torch.float32), *x.shape, len(weight))
        self.add(name, "linear", shape, LinearTensors, (x, weight, out))

    def attention(self, layer: dict[str, torch.Tensor]) -> None:
        blocks = self.block_table.shape[1]
        shape = PagedAttentionShape(
            FP16, self.batch, self.batch, HEADS, KV_HEADS, D, self.batch * blocks, BLOCK_SIZE, blocks, self.context,
            D**-0.5, EPS,
        )  # fmt: skip
        operands = (
            self.qkv, layer["q_norm"], layer["k_norm"], self.weights.cos_sin, self.positions, layer["kv_cache"],
            self.block_table, self.cu_seqlens, self.context_lens, self.attended,
        )  # fmt: skip
        self.add("attention", "paged_attention", shape, PagedAttentionTensors, operands)

    def sample(self) -> None:
        zeros = torch.zeros(4, self.batch, device="cuda")
        draws = torch.zeros(2, self.batch, dtype=torch.int64, device="cuda")
        self.keep += [zeros, draws]
        operands = (self.logits, zeros[0], zeros[1], zeros[2], zeros[3], draws[0], draws[1], self.tokens)
        self.add("logits and sampler", "sample", SampleShape(self.batch, VOCAB), SampleTensors, operands)

    def run_once(self) -> None:
        """Kernel by kernel. Counts the distinct experts that the layers' tokens choose, summed over layers."""
        self.num_experts, layers = 0, zip(self.weights.layers, self.sums, strict=True)
        for name, call in self.calls:
            call()
            if name == "moe":
                layer, total = next(layers)
                normed = torch.nn.functional.rms_norm(total, (H,), layer["second_norm"], EPS)
                self.num_experts += (normed @ layer["router"].T).topk(TOP_K).indices.unique().numel()
        torch.cuda.synchronize()

    def bound_ms(self) -> dict[str, float]:
        elements = {
            "norms": 0,
            "qkv": LAYERS * H * (HEADS + 2 * KV_HEADS) * D,
            "attention": LAYERS * self.batch * self.context * 2 * KV_HEADS * D,
            "output": LAYERS * H * HEADS * D,
            "router": LAYERS * H * E,
            "moe": self.num_experts * 3 * H * I,
            "logits and sampler": VOCAB * H,
        }
        return {op: 1e3 * 2 * count / BYTES_PER_SECOND for op, count in elements.items()}


def step_ms(step: Step, without: str | None = None) -> float:
    """The median replay of the step's graph, one operator left out; the first third of 0.3 s is warm-up."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for op, call in step.calls:
            if op != without:
                call()
    times: list[float] = []
    while sum(times) < 300 or len(times) < 20:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[len(times) // 3 :])


@dataclass(frozen=True)
class Result:
    """ms of a step, and of each operator: what leaving it out saves."""

    step: float
    ops: dict[str, float]


def bench(library: KernelLibrary, weights: Weights, batch: int, context: int) -> tuple[Step, Result]:
    step = Step(library, weights, batch, context)
    step.run_once()  # a product by cuBLASLt must run once before it is captured
    assert bool(step.logits.isfinite().all()) and torch.equal(step.tokens.long(), step.logits.argmax(dim=1))
    whole = step_ms(step)
    return step, Result(whole, {op: whole - step_ms(step, without=op) for op in OPS})


def report(step: Step, result: Result) -> None:
    bounds = step.bound_ms()
    bound = sum(bounds.values())
    print(f"\n| batch {step.batch}, context {step.context} | ms | us a layer | bound ms | of the bound |")
    print("|---|---|---|---|---|")
    for op in OPS:
        per_layer = "" if op == OPS[-1] else f"{1e3 * result.ops[op] / LAYERS:.1f}"
        print(f"| {op} | {result.ops[op]:.3f} | {per_layer} | {bounds[op]:.3f} | |")
    overlap = result.step - sum(result.ops.values())
    print(f"| not of one operator alone | {overlap:.3f} | {1e3 * overlap / LAYERS:.1f} | | |")
    print(f"| step | {result.step:.3f} | | {bound:.3f} | {100 * bound / result.step:.0f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libqwen3moe_kernels.so")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192])
    arguments = parser.parse_args()
    load_cublaslt()
    library = KernelLibrary(arguments.library)
    weights = Weights(library, max(arguments.batches), max(arguments.contexts))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, fp16")
    for batch, context in itertools.product(arguments.batches, arguments.contexts):
        report(*bench(library, weights, batch, context))


if __name__ == "__main__":
    main()
