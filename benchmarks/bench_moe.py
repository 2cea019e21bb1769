"""Times qwen3moe_moe at Qwen3-30B-A3B's shape, routing uniform and skewed, beside its physical limit and torch.

    python benchmarks/bench_moe.py path/to/libqwen3moe_kernels.so

The bound is the larger of two times on an H200: the weights of the experts that the routing touched, once, at 4.3 TB/s;
and the multiply-adds at 790 TFLOP/s. Each call is a replayed CUDA graph after L2 was filled with other data; the median
counts. L2 is filled by reading: writing would leave 60 MB that our first reads must evict to memory, 14 us of traffic.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from itertools import product

import torch

from qwen3moe_plugins.kernels import BF16, KernelLibrary, MoEShape, MoETensors

E, TOP_K, H, I = 128, 8, 2048, 768  # noqa: E741
SKEW = 2.9  # added to the logits of HOT experts: they get 77 % of the assignments, as neighbours in a prompt agree
HOT = 8
TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
BYTES_PER_SECOND = 4.3e12
FLOPS = 790e12
L2_FLUSH_BYTES = 256 << 20  # several times the 60 MB of an H200


def bound_us(experts: torch.Tensor) -> float:
    """experts [T, k]: the choices of every token."""
    weights = 3 * H * I
    memory = experts.unique().numel() * weights * 2 / BYTES_PER_SECOND
    compute = experts.numel() * weights * 2 / FLOPS
    return 1e6 * max(memory, compute)


def median_us(call, iterations: int) -> float:
    flush = torch.zeros(L2_FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
    times = []
    for _ in range(iterations):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.sum()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(1e3 * start.elapsed_time(stop))
    return statistics.median(times)


def eager_moe(hidden, logits, gate_up, down):
    weights, experts = torch.topk(torch.softmax(logits.float(), dim=-1), TOP_K)
    weights = (weights / weights.sum(dim=-1, keepdim=True)).to(hidden.dtype)
    out = torch.zeros_like(hidden)
    for expert in experts.unique().tolist():
        token, choice = torch.where(experts == expert)
        gate, up = (hidden[token] @ gate_up[expert].T).chunk(2, dim=-1)
        y = (torch.nn.functional.silu(gate) * up) @ down[expert].T
        out.index_add_(0, token, y * weights[token, choice, None])
    return out


def capture(library, hidden, logits, gate_up, down):
    """A CUDA graph of one call, and the tensors that it keeps alive."""
    shape = MoEShape(BF16, len(hidden), H, I, E, E, TOP_K, 1)
    expert_map = torch.arange(E, dtype=torch.int32, device="cuda")
    out = torch.empty_like(hidden)
    workspace = torch.empty(library.workspace_size("moe", shape), dtype=torch.uint8, device="cuda")
    tensors = MoETensors(*(t.data_ptr() for t in (hidden, logits, gate_up, down, expert_map, out)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        library.run("moe", shape, tensors, workspace.data_ptr(), len(workspace), stream)
    return graph, (out, workspace, expert_map)


def main() -> None:
    library = KernelLibrary(sys.argv[1])
    torch.manual_seed(0)
    gate_up = torch.empty(E, 2 * I, H, dtype=torch.bfloat16, device="cuda").normal_(0, H**-0.5)
    down = torch.empty(E, H, I, dtype=torch.bfloat16, device="cuda").normal_(0, I**-0.5)
    print(f"MoE, E {E}, top {TOP_K}, H {H}, I {I}, bf16, {torch.cuda.get_device_name()}\n")
    print("| routing | tokens | us | bound us | % of bound | TFLOP/s | torch eager us |")
    print("|---|---|---|---|---|---|---|")
    for routing, T in product(("uniform", "skewed"), TOKENS):
        hidden = torch.randn(T, H, dtype=torch.bfloat16, device="cuda")
        logits = torch.randn(T, E, dtype=torch.bfloat16, device="cuda")
        if routing == "skewed":
            logits[:, :HOT] += SKEW
        graph, _keep = capture(library, hidden, logits, gate_up, down)
        graph.replay()
        ours = median_us(graph.replay, 50)
        eager = median_us(partial(eager_moe, hidden, logits, gate_up, down), 5)
        bound = bound_us(torch.topk(logits, TOP_K).indices)
        row = (f"{ours:.1f}", f"{bound:.1f}", f"{100 * bound / ours:.0f}", f"{T * TOP_K * 6 * H * I / ours / 1e6:.0f}")
        print(f"| {routing} | {T} | {' | '.join(row)} | {eager:.0f} |", flush=True)


if __name__ == "__main__":
    main()
