"""What replicas and the counting of load cost qwen3moe_moe: BalancedMoE beside MoE, at Qwen3-30B-A3B's shape, every
expert here in both.

    python benchmarks/bench_moe_load.py path/to/libqwen3moe_kernels.so

Timed as in bench_moe.py, in turns, so that a drift of the GPU meets both; MoE twice, as the difference between the two
is what this says nothing about.
"""

from __future__ import annotations

import statistics
import sys

import torch
from bench_moe import TOP_K, E, H, I, median_us  # which puts plugins/ into sys.path

from qwen3moe_plugins.kernels import BF16, KernelLibrary, MoEShape, MoETensors

TOKENS = [1, 2, 4, 16, 64, 256, 1024, 8192]
MAP_ROWS, ROUNDS = 24, 5


def capture(library, hidden, logits, weights, is_balanced):
    """A CUDA graph of one call, and the tensors that it keeps alive."""
    shape = MoEShape(BF16, len(hidden), H, I, E, E, TOP_K, 1)
    operands = [hidden, logits, *weights, torch.arange(E, dtype=torch.int32, device="cuda"), torch.empty_like(hidden)]
    if is_balanced:
        shape.map_rows, shape.num_seqs = MAP_ROWS, len(hidden)
        operands[4] = operands[4].repeat(MAP_ROWS, 1)
        positions = torch.arange(len(hidden), dtype=torch.int32, device="cuda")
        cu_seqlens = torch.arange(len(hidden) + 1, dtype=torch.int32, device="cuda")
        operands += [positions, cu_seqlens, torch.zeros(E, dtype=torch.int32, device="cuda")]
    operands.append(torch.empty(library.workspace_size("moe", shape), dtype=torch.uint8, device="cuda"))
    tensors = MoETensors(*(operand.data_ptr() for operand in operands[:-1]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        library.run("moe", shape, tensors, operands[-1].data_ptr(), len(operands[-1]), stream)
    return graph, operands


def main() -> None:
    library = KernelLibrary(sys.argv[1])
    torch.manual_seed(0)
    gate_up = torch.empty(E, 2 * I, H, dtype=torch.bfloat16, device="cuda").normal_(0, H**-0.5)
    down = torch.empty(E, H, I, dtype=torch.bfloat16, device="cuda").normal_(0, I**-0.5)
    print(f"MoE, E {E}, top {TOP_K}, H {H}, I {I}, bf16, {torch.cuda.get_device_name()}, us\n")
    print("| tokens | MoE | MoE again | BalancedMoE |\n|---|---|---|---|")
    for T in TOKENS:
        hidden = torch.randn(T, H, dtype=torch.bfloat16, device="cuda")
        logits = torch.randn(T, E, dtype=torch.bfloat16, device="cuda")
        kinds = [capture(library, hidden, logits, (gate_up, down), is_balanced) for is_balanced in (False, False, True)]
        times = [[median_us(graph.replay, 30) for graph, _ in kinds] for _ in range(ROUNDS)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        assert int(kinds[2][1][8].sum()) == ROUNDS * 30 * T * TOP_K
        print(f"| {T} | {' | '.join(f'{median:.2f}' for median in medians)} |", flush=True)


if __name__ == "__main__":
    main()
