"""Paged attention on one GPU: our kernel beside the physical limit and torch.

    python benchmarks/bench_attention.py build/libqwen3moe_kernels.so [--shapes decode prefill] [--dtype float16]

Qwen3-30B-A3B's shape: 32 query heads, 4 key/value heads of 128. A CUDA graph holds one launch for each of several
layers, whose caches together are four times the L2, so that every launch finds its keys and values in memory; the
figure is the median replay over the number of launches.
`ours` is the whole operator: QK-norm, RoPE, the cache write and attention. `torch eager` (gather of the blocks, matmul,
softmax, matmul) and `torch SDPA` (on keys and values that already lie contiguous) are attention alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwen3moe_plugins.kernels import BF16, FP16, KernelLibrary, PagedAttentionShape, PagedAttentionTensors

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 4, 128
GROUP = NUM_HEADS // NUM_KV_HEADS
BYTES_PER_SECOND, FLOPS_PER_SECOND = 4.3e12, 790e12  # measured on an H200
L2_BYTES = 60e6


DTYPES = {"bfloat16": BF16, "float16": FP16}


@dataclass(frozen=True)
class Cache:
    dtype: torch.dtype
    dtype_id: int
    block_size: int


@dataclass(frozen=True)
class Shape:
    num_seqs: int
    num_new: int
    context_len: int

    @property
    def name(self) -> str:
        kind = "decode" if self.num_new == 1 else "prefill"
        return f"{kind} {self.num_seqs} x {self.num_new} in {self.context_len}"

    @property
    def kv_bytes(self) -> int:
        return self.num_seqs * self.context_len * 2 * NUM_KV_HEADS * HEAD_DIM * 2

    @property
    def bound_us(self) -> float:
        past = self.context_len - self.num_new
        pairs = self.num_seqs * self.num_new * (past + (self.num_new + 1) / 2)
        flops = 4 * pairs * NUM_HEADS * HEAD_DIM
        return 1e6 * max(self.kv_bytes / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND)


SHAPES = {
    "decode": tuple(Shape(b, 1, c) for b, c in ((1, 1024), (8, 1024), (32, 1024), (256, 1024), (1, 8192), (64, 8192))),
    "long": (Shape(1, 1, 131072), Shape(1, 4, 8192), Shape(32, 4, 1024)),
    "prefill": tuple(
        Shape(b, n, c)
        for b, n, c in (
            (1, 128, 128),
            (1, 512, 512),
            (1, 2048, 2048),
            (4, 2048, 2048),
            (1, 8192, 8192),
            (1, 512, 32768),
        )
    ),
}


class Layer:
    """The operands of one launch."""

    def __init__(self, shape: Shape, cache: Cache):
        blocks = -(-shape.context_len // cache.block_size)
        num_tokens, num_blocks = shape.num_seqs * shape.num_new, shape.num_seqs * blocks
        self.shape, self.cache, dtype = shape, cache, cache.dtype
        self.query = torch.randn(shape.num_seqs, NUM_HEADS, shape.num_new, HEAD_DIM, device="cuda").to(dtype)
        starts = torch.arange(shape.num_seqs, device="cuda") * 0 + shape.context_len - shape.num_new
        offsets = torch.arange(shape.num_new, device="cuda")
        heads = NUM_HEADS + 2 * NUM_KV_HEADS
        self.operands = {
            "qkv": torch.randn(num_tokens, heads * HEAD_DIM, device="cuda").to(dtype),
            "q_norm_weight": torch.ones(HEAD_DIM, device="cuda").to(dtype),
            "k_norm_weight": torch.ones(HEAD_DIM, device="cuda").to(dtype),
            "cos_sin_cache": torch.randn(shape.context_len, HEAD_DIM, device="cuda"),
            "positions": (starts[:, None] + offsets).flatten().int(),
            "kv_cache": torch.empty(
                num_blocks, 2, NUM_KV_HEADS, cache.block_size, HEAD_DIM, dtype=dtype, device="cuda"
            ).normal_(),
            "block_table": torch.randperm(num_blocks, device="cuda").int().view(shape.num_seqs, blocks),
            "cu_seqlens": torch.arange(shape.num_seqs + 1, device="cuda").int() * shape.num_new,
            "context_lens": (starts + shape.num_new).int(),
            "out": torch.empty(num_tokens, NUM_HEADS * HEAD_DIM, dtype=dtype, device="cuda"),
        }

    def ours(self, library: KernelLibrary) -> Callable[[], None]:
        shape = PagedAttentionShape(
            dtype=self.cache.dtype_id,
            num_tokens=self.operands["qkv"].shape[0],
            num_seqs=self.shape.num_seqs,
            num_heads=NUM_HEADS,
            num_kv_heads=NUM_KV_HEADS,
            head_dim=HEAD_DIM,
            num_blocks=self.operands["kv_cache"].shape[0],
            block_size=self.cache.block_size,
            max_blocks=self.operands["block_table"].shape[1],
            num_positions=self.shape.context_len,
            scale=HEAD_DIM**-0.5,
            eps=1e-6,
        )
        tensors = PagedAttentionTensors(**{name: x.data_ptr() for name, x in self.operands.items()})
        size = library.workspace_size("paged_attention", shape)
        workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        address = workspace.data_ptr()

        def run() -> torch.Tensor:
            library.run("paged_attention", shape, tensors, address, size, torch.cuda.current_stream().cuda_stream)
            return workspace  # kept alive by whoever keeps `run`

        return run

    def gather(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, Hkv, context, D] out of the blocks."""
        blocks = self.operands["kv_cache"][self.operands["block_table"].long()]  # [B, blocks, 2, Hkv, block_size, D]
        keys, values = blocks.permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[..., : self.shape.context_len, :]
        return keys, values

    def eager(self) -> Callable[[], torch.Tensor]:
        shape = self.shape
        index = torch.arange(shape.context_len, device="cuda")
        unseen = (index > index[shape.context_len - shape.num_new :, None]).repeat(GROUP, 1)  # [G n, context]

        def run() -> torch.Tensor:
            keys, values = self.gather()
            query = self.query.view(shape.num_seqs, NUM_KV_HEADS, GROUP * shape.num_new, HEAD_DIM)
            scores = (query @ keys.transpose(-1, -2)) * HEAD_DIM**-0.5
            return scores.masked_fill_(unseen, -torch.inf).softmax(-1) @ values

        return run

    def sdpa(self) -> Callable[[], torch.Tensor]:
        keys, values = (x.contiguous() for x in self.gather())
        if self.shape.num_new == 1:  # no key is masked: the heads of a group as rows, flash-decoding's packing
            query = self.query.view(self.shape.num_seqs, NUM_KV_HEADS, GROUP, HEAD_DIM)
            return lambda: F.scaled_dot_product_attention(query, keys, values)
        if self.shape.num_new == self.shape.context_len:
            return lambda: F.scaled_dot_product_attention(self.query, keys, values, is_causal=True, enable_gqa=True)
        index = torch.arange(self.shape.context_len, device="cuda")
        seen = index <= index[self.shape.context_len - self.shape.num_new :, None]
        return lambda: F.scaled_dot_product_attention(self.query, keys, values, attn_mask=seen, enable_gqa=True)


PEERS = {"eager": Layer.eager, "SDPA": Layer.sdpa}


def median_us(runs: list[Callable], launches: int, repeats: int) -> float:
    """Of one launch: the median replay of a graph of `launches` launches that cycles over `runs`."""
    runs[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            runs[i % len(runs)]()
    for _ in range(2):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / launches)
    return statistics.median(times)


def bench(library: KernelLibrary, shape: Shape, cache: Cache, repeats: int, peers: list[str]) -> str:
    copies = min(32, max(2, round(4 * L2_BYTES / shape.kv_bytes)))
    layers = [Layer(shape, cache) for _ in range(copies)]
    ours = median_us([layer.ours(library) for layer in layers], max(copies, 8), repeats)
    cells = [shape.name, f"{ours:.1f}", f"{shape.bound_us:.1f}", f"{100 * shape.bound_us / ours:.0f} %"]
    for peer in peers:
        cells.append(f"{median_us([PEERS[peer](layer) for layer in layers], copies, repeats):.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libqwen3moe_kernels.so")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="without names: none")
    arguments = parser.parse_args()

    library = KernelLibrary(arguments.library)
    columns = ["shape", "ours us", "bound us", "of bound", *(f"torch {peer} us" for peer in arguments.peers)]
    cache = Cache(getattr(torch, arguments.dtype), DTYPES[arguments.dtype], arguments.block_size)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {library.version}")
    print(f"{arguments.dtype}, blocks of {cache.block_size}")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for group in arguments.shapes:
        for shape in SHAPES[group]:
            print(bench(library, shape, cache, arguments.repeats, arguments.peers), flush=True)


if __name__ == "__main__":
    main()
