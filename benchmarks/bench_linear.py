"""Times qwen3moe_linear at Qwen3-30B-A3B's shapes, beside its physical limit and torch's own product.

    python benchmarks/bench_linear.py path/to/libqwen3moe_kernels.so [--tokens 1 8]

The bound is the larger of two times on an H200: weight, x and out once at 4.3 TB/s, and the multiply-adds at 790
TFLOP/s. A CUDA graph holds one launch for each of several weights, together more than four times the 60 MB L2, so that
every launch finds its weight in memory; the figure is the median replay over the number of launches.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from qwen3moe_plugins.kernels import BF16, KernelLibrary, LinearShape, LinearTensors
from qwen3moe_plugins.library import load_cublaslt

# In features, out features.
PRODUCTS = {"qkv": (2048, 5120), "output": (4096, 2048), "router": (2048, 128), "logits": (2048, 151936)}
TOKENS = [1, 2, 4, 8, 16, 32, 64, 256, 2048, 8192]
MAX_LOGITS = 256
BYTES_PER_SECOND, FLOPS_PER_SECOND = 4.3e12, 790e12  # measured on an H200
WORKING_SET = 300e6  # bytes


def bound_us(num_tokens: int, in_features: int, out_features: int) -> float:
    elements = out_features * in_features + num_tokens * (in_features + out_features)
    flops = 2 * num_tokens * in_features * out_features
    return 1e6 * max(2 * elements / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND)


def median_us(runs: list[Callable[[], object]], repeats: int = 30) -> float:
    """Of one call: the median replay of a graph of all `runs`."""
    for run in runs[:2]:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / len(runs))
    return statistics.median(times)


def ours(library: KernelLibrary, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    shape = LinearShape(BF16, int(out.dtype == torch.float32), *x.shape, len(weight))
    size = library.workspace_size("linear", shape)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    tensors = LinearTensors(x.data_ptr(), weight.data_ptr(), out.data_ptr())

    def run() -> torch.Tensor:
        stream = torch.cuda.current_stream().cuda_stream
        library.run("linear", shape, tensors, workspace.data_ptr(), size, stream)
        return workspace  # kept alive by whoever keeps `run`

    return run


def bench(library: KernelLibrary, name: str, num_tokens: int) -> str:
    in_features, out_features = PRODUCTS[name]
    copies = min(64, max(2, round(WORKING_SET / (2 * in_features * out_features))))
    scale = in_features**-0.5
    weights = [
        torch.empty(out_features, in_features, dtype=torch.bfloat16, device="cuda").normal_(0, scale)
        for _ in range(copies)
    ]
    x = torch.randn(num_tokens, in_features, device="cuda").bfloat16()
    dtype = torch.float32 if name == "logits" else torch.bfloat16
    out = torch.empty(num_tokens, out_features, dtype=dtype, device="cuda")
    time = median_us([ours(library, x, weight, out) for weight in weights])
    torch_time = median_us([lambda weight=weight: torch.nn.functional.linear(x, weight) for weight in weights])
    bound = bound_us(num_tokens, in_features, out_features)
    tflops = 2e-6 * num_tokens * in_features * out_features / time
    figures = f"{time:.1f} | {bound:.1f} | {100 * bound / time:.0f} | {tflops:.0f} | {torch_time:.1f}"
    return f"| {name} | {num_tokens} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libqwen3moe_kernels.so")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    arguments = parser.parse_args()
    load_cublaslt()
    library = KernelLibrary(arguments.library)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, logits fp32")
    print("| product | tokens | us | bound us | % of bound | TFLOP/s | torch us |\n|---|---|---|---|---|---|---|")
    for name in PRODUCTS:
        for num_tokens in arguments.tokens:
            if name != "logits" or num_tokens <= MAX_LOGITS:
                print(bench(library, name, num_tokens), flush=True)


if __name__ == "__main__":
    main()
