"""Every kernel of the library once or twice at small sizes, for NVIDIA's compute-sanitizer; no torch, so it starts in a
second. What it says is whether memory was touched out of bounds or in a race; values are held against torch elsewhere,
here only a chain of dependent launches against one kernel at a time.

    compute-sanitizer --tool memcheck --error-exitcode 1 --kernel-name kns=qwen3moe \\
        python tests/plugins/sanitize.py LIBRARY

`--kernel-name` leaves cuBLASLt's own kernels out.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from qwen3moe_engine.bench.ops.attention import AttentionBatch
from qwen3moe_engine.bench.ops.linear import LinearCase
from qwen3moe_engine.bench.ops.moe import MoECase
from qwen3moe_engine.bench.ops.norm import NormCase
from qwen3moe_engine.bench.ops.rig import Call, Rig
from qwen3moe_engine.bench.ops.sample import SampleCase
from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.random_model import RouterSkew
from qwen3moe_engine.tensorrt.cuda import Stream, call, use_device
from qwen3moe_engine.tensorrt.open_kernels import open_kernels
from qwen3moe_plugins.kernels import (
    FillShape,
    FillTensors,
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

SIZES = OpSizes("bf16", 512, 128, 16, 16, 4, 8, 2, 128, 2000, {"out": (520, 40), "logits": (512, 2000)})
# One product of the model's own size too: its weights go by in more stages than those of small ones.
PRODUCTS = {"qkv": (2048, 5120), "router": (2048, 128), "out": (520, 40), "logits": (512, 2000)}
LINEAR_TOKENS = (1, 7, 16, 17, 130)
# On a GPU of 9.0: up to 16 assignments each reads its expert; then tiles of 16 and 32 by mma; from 320 by wgmma.
MOE_TOKENS = (1, 3, 5, 30, 70, 100, 300)
HIDDEN = (64, 520, 2048, 16384)
# New tokens and contexts of sequences: a split decode, prompts whole and in chunks, mixtures, and one without tokens.
BATCHES = (
    ((1,), (700,)),
    ((1, 1, 0, 1), (1, 33, 5, 260)),
    ((1,) * 40, tuple(range(1, 41))),
    ((3, 1), (90, 17)),
    ((130,), (130,)),
    ((70, 1, 200), (300, 64, 200)),
)


def linear(rig: Rig) -> list[Call]:
    calls = []
    for name in PRODUCTS:
        for count in LINEAR_TOKENS:
            calls += LinearCase(name, count).prepare(rig, replace(SIZES, products=PRODUCTS), 0).calls[:2]
    return calls


def moe(rig: Rig) -> list[Call]:
    """Also with half of the experts elsewhere, and with nearly all tokens on few of them."""
    calls = []
    for count in MOE_TOKENS:
        calls += MoECase(count).prepare(rig, SIZES, 0).calls[:2]
    calls += MoECase(40).prepare(rig, replace(SIZES, num_local_experts=8), 0).calls[:1]
    for count in (70, 300):
        calls += MoECase(count, RouterSkew(0.95, 4)).prepare(rig, SIZES, 0).calls[:1]
    model = replace(SIZES, hidden_size=2048, intermediate_size=768, top_k=8)
    for count in (1, 20, 200):
        calls += MoECase(count).prepare(rig, model, 0).calls[:1]
    return calls


def attention(rig: Rig) -> list[Call]:
    calls = []
    for new_lens, context_lens in BATCHES:
        for head_dim, block_size, num_kv_heads in ((128, 32, 2), (64, 16, 8), (128, 64, 1)):
            sizes = replace(SIZES, head_dim=head_dim, num_kv_heads=num_kv_heads)
            calls += AttentionBatch(new_lens, context_lens, block_size).bind(rig, sizes, 1, 1)
    return calls


def norm(rig: Rig) -> list[Call]:
    cases = [(hidden, count, adds) for hidden in HIDDEN for count in (1, 3, 150) for adds in (False, True)]
    calls = []
    for hidden, count, adds in cases:
        calls += NormCase(count, adds).prepare(rig, replace(SIZES, hidden_size=hidden), 0).calls[:1]
    return calls


def sample(rig: Rig) -> list[Call]:
    calls = []
    for vocab_size in (50, 2000, 151936):
        for count in (1, 3, 20):
            for is_greedy in (False, True):
                case = SampleCase(count, is_greedy)
                calls += case.prepare(rig, replace(SIZES, vocab_size=vocab_size), 0).calls[:1]
    return calls


def fill(rig: Rig) -> list[Call]:
    """A whole vector, and a block of columns."""
    shapes = [FillShape(37, 37, 37, 0, 1, rig.dtype, -1, 1), FillShape(33 * 5, 5, 64, 11, 1, rig.dtype, -1, 1)]
    return [rig.bind("fill", shape, [FillTensors(rig.empty(2 * shape.count))])[0] for shape in shapes]


def planted(rig: Rig) -> list[Call]:
    """Writes behind its memory: memcheck has to fail here, else it looks at nothing."""
    shape = FillShape(4000, 4000, 4000, 0, 1, rig.dtype, -1, 1)
    return rig.bind("fill", shape, [FillTensors(rig.empty(1000))])


class Chain:
    """Layers of a decode step, whose kernels share activations and may start before those ahead have ended."""

    def __init__(self, rig: Rig, num_seqs: int, context_len: int, num_layers: int = 2):
        self.rig, self.sizes, self.tokens = rig, SIZES, num_seqs
        self.batch = AttentionBatch((1,) * num_seqs, (context_len,) * num_seqs, 16)
        self.metadata = {name: rig.upload(values) for name, values in self.batch.metadata().items()}
        sizes, width = self.sizes, (SIZES.num_heads + 2 * SIZES.num_kv_heads) * SIZES.head_dim
        widths = {"normed": sizes.hidden_size, "first": sizes.hidden_size, "second": sizes.hidden_size,
                  "out": sizes.hidden_size, "qkv": width, "attended": sizes.num_heads * sizes.head_dim,
                  "logits": sizes.num_experts}  # fmt: skip
        self.num_bytes = {name: 2 * num_seqs * columns for name, columns in widths.items()}
        self.at = {name: rig.empty(size) for name, size in self.num_bytes.items()}
        self.x = rig.random(num_seqs * sizes.hidden_size)
        self.calls = [each for idx in range(num_layers) for each in self.layer(is_first=idx == 0)]

    def layer(self, is_first: bool) -> list[Call]:
        at, H = self.at, self.sizes.hidden_size
        residual = (None, None) if is_first else (at["second"], at["first"])
        before = self.x if is_first else at["first"]
        heads = self.sizes.num_heads * self.sizes.head_dim
        return [
            self.norm(self.x if is_first else at["out"], residual[0], residual[1]),
            self.linear(at["normed"], H, at["qkv"], self.num_bytes["qkv"]),
            self.attention(),
            self.linear(at["attended"], heads, at["out"], self.num_bytes["out"]),
            self.norm(at["out"], before, at["second"]),
            self.linear(at["normed"], H, at["logits"], self.num_bytes["logits"]),
            self.moe(),
        ]

    def norm(self, x: int, residual: int | None, total: int | None) -> Call:
        H = self.sizes.hidden_size
        tensors = RMSNormTensors(x, residual, self.rig.random(H, 0.1, 1.0), self.at["normed"], total)
        return self.rig.bind("rms_norm", RMSNormShape(self.rig.dtype, self.tokens, H, 1e-6), [tensors])[0]

    def linear(self, x: int, in_features: int, out: int, out_bytes: int) -> Call:
        out_features = out_bytes // 2 // self.tokens
        weight = self.rig.random(in_features * out_features, (3 / in_features) ** 0.5)
        shape = LinearShape(self.rig.dtype, 0, self.tokens, in_features, out_features)
        return self.rig.bind("linear", shape, [LinearTensors(x, weight, out)])[0]

    def attention(self) -> Call:
        sizes, rig, block_size = self.sizes, self.rig, self.batch.block_size
        longest = max(self.batch.context_lens)
        width = -(-longest // block_size)
        num_blocks = self.tokens * width
        shape = PagedAttentionShape(
            rig.dtype, self.tokens, self.tokens, sizes.num_heads, sizes.num_kv_heads, sizes.head_dim, num_blocks,
            block_size, width, longest, sizes.head_dim**-0.5, 1e-6,
        )  # fmt: skip
        tensors = PagedAttentionTensors(
            qkv=self.at["qkv"],
            q_norm_weight=rig.random(sizes.head_dim, 0.1, 1.0),
            k_norm_weight=rig.random(sizes.head_dim, 0.1, 1.0),
            cos_sin_cache=rig.upload(rig.rng.standard_normal((longest, sizes.head_dim), np.float32)),
            kv_cache=rig.random(num_blocks * 2 * sizes.num_kv_heads * block_size * sizes.head_dim),
            block_table=rig.upload(rig.rng.permutation(num_blocks).astype(np.int32)),
            out=self.at["attended"],
            **self.metadata,
        )
        return rig.bind("paged_attention", shape, [tensors])[0]

    def moe(self) -> Call:
        E, H, width = self.sizes.num_experts, self.sizes.hidden_size, self.sizes.intermediate_size
        gate_up, down = self.rig.random(E * 2 * width * H, H**-0.5), self.rig.random(E * H * width, width**-0.5)
        slots = self.rig.upload(np.arange(E, dtype=np.int32))
        tensors = MoETensors(self.at["normed"], self.at["logits"], gate_up, down, slots, self.at["out"])
        shape = MoEShape(self.rig.dtype, self.tokens, H, width, E, E, self.sizes.top_k, 1)
        return self.rig.bind("moe", shape, [tensors])[0]

    def poison(self) -> None:
        self.rig.stream.synchronize()
        for name, address in self.at.items():
            call(cudart.cudaMemset, address, 0xFF, self.num_bytes[name])

    def results(self) -> dict[str, NDArray[np.uint8]]:
        stream, found = self.rig.stream, {}
        for name, address in self.at.items():
            found[name] = np.empty(self.num_bytes[name], np.uint8)
            stream.to_host(found[name].ctypes.data, address, self.num_bytes[name])
        stream.synchronize()
        return found


def chain(rig: Rig) -> list[Call]:
    """Runs them itself: one at a time, one behind the other, and as a CUDA graph, which must give the same bits."""
    for num_seqs, context_len in ((1, 300), (4, 40), (40, 20)):
        layers = Chain(rig, num_seqs, context_len)
        graph = None
        expected: dict[str, NDArray[np.uint8]] = {}
        for way in ("one at a time", "one behind the other", "graph"):
            layers.poison()
            if way == "graph":
                graph = rig.stream.capture(lambda calls=layers.calls: [each() for each in calls])
                graph.launch()
            for each in layers.calls if graph is None else ():
                each()
                if way == "one at a time":
                    rig.stream.synchronize()
            found = layers.results()
            expected = expected or found
            differing = [name for name, values in found.items() if not np.array_equal(values, expected[name])]
            if differing:
                sys.exit(f"chain of {num_seqs} sequences, {way}: {', '.join(differing)} differ")
    return []


GROUPS = {run.__name__: run for run in (fill, norm, linear, attention, moe, sample, chain)}


@click.command()
@click.argument("library", type=click.Path(path_type=Path))
@click.option("--ops", default=",".join(GROUPS), show_default=True, help="Which, with commas between; or `planted`.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True)
def main(library: Path, ops: str, dtype: str) -> None:
    device, stream = use_device(0), Stream()
    load_cublaslt()
    kernels = open_kernels(library, device)
    for name in ops.split(","):
        start = time.perf_counter()
        with Rig(kernels, stream, dtype) as rig:
            calls = (GROUPS | {"planted": planted})[name](rig)
            stream.synchronize()  # weights are read early: they must be there
            for each in calls:
                each()
            stream.synchronize()
        print(f"{name}: {len(calls) or 'chains of'} calls in {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
