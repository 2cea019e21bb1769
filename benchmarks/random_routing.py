"""How evenly the pseudo-random weights of `--random-weights` route, in plain torch on a CPU: experts that tokens choose
that are of as many sequences, as in a decode step, or neighbours in one, as in a prompt. With a skew, which share of a
decode step's assignments the preferred experts take, and the same of a prompt's.

python benchmarks/random_routing.py CONFIG --layers 14 [--router-skew 0.9/8]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3moe_engine.checkpoint import StoredTensor
from qwen3moe_engine.random_model import RandomWeights, RouterSkew, value_ranges
from qwen3moe_export.config import Qwen3MoeConfig, load_config
from qwen3moe_export.layout import EMBEDDING, layer_prefix
from qwen3moe_export.model import DecoderLayer, KVCache, route
from qwen3moe_export.rope import cos_sin_table

NUM_SEQUENCES, LENGTH, SEED = 64, 40, 7
BATCH_SIZES = (8, 32, 64)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Maker:
    """Makes published tensors as `fill` does, rounded to fp16, in fp32."""

    weights: RandomWeights
    top_k: int

    def __call__(self, name: str, shape: tuple[int, ...], rows: NDArray[np.int64] | None = None) -> Tensor:
        """The whole tensor, or some of its rows."""
        rows = np.arange(shape[0]) if rows is None else rows
        columns = math.prod(shape[1:])
        elements = (rows[:, None] * columns + np.arange(columns)).astype(np.uint64)
        with np.errstate(over="ignore"):
            key = splitmix64(np.array(self.weights.seed_of(name), np.uint64))
            bits = splitmix64(key + elements) >> np.uint64(40)
        low, high = np.empty((2, shape[0], 1), np.float32)
        for span in value_ranges(StoredTensor(name, "fp16", shape, Path(), 0), self.weights.skew, self.top_k):
            low[span.first : span.end], high[span.first : span.end] = span.low, span.high
        values = low[rows] + (high - low)[rows] * (bits.astype(np.float32) * np.float32(2.0**-24))
        return torch.from_numpy(values.astype(np.float16).astype(np.float32).reshape(len(rows), *shape[1:]))


def run_layer(config: Qwen3MoeConfig, make: Maker, layer_idx: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """x [NUM_SEQUENCES, LENGTH, H]. Returns what follows it, and the experts chosen [NUM_SEQUENCES, LENGTH, K]."""
    with torch.device("meta"):
        layer = DecoderLayer(config, layer_idx)
    values = {name: make(layer_prefix(layer_idx) + name, tuple(p.shape)) for name, p in layer.state_dict().items()}
    layer.load_state_dict(values, assign=True)
    cos_sin = cos_sin_table(config, torch.arange(LENGTH))
    normed = layer.input_layernorm(x)
    x = x + torch.stack([attend(config, layer, sequence, cos_sin) for sequence in normed])
    normed = layer.post_attention_layernorm(x).flatten(0, 1)
    _, chosen = route(layer.mlp.gate(normed), config.top_k, norm_topk_prob=False)
    return x + layer.mlp(normed).view_as(x), chosen.unflatten(0, x.shape[:2])


def attend(config: Qwen3MoeConfig, layer: DecoderLayer, x: Tensor, cos_sin: Tensor) -> Tensor:
    return layer.self_attn(x, cos_sin, KVCache(config, torch.float32))


def describe(chosen: Tensor, skew: RouterSkew | None) -> list[str]:
    """chosen [NUM_SEQUENCES, LENGTH, K]: the cells of a layer's row."""
    cells = [count(chosen[:, -1], size) for size in BATCH_SIZES] + [count(chosen[0], size) for size in (8, 32)]
    if skew is None:
        return cells
    return cells + [f"{(part < skew.num_experts).float().mean():.3f}" for part in (chosen[:, -1], chosen[0])]


def count(chosen: Tensor, batch_size: int) -> str:
    """Distinct experts of so many rows [*, K], on average."""
    groups = chosen[: len(chosen) // batch_size * batch_size].reshape(-1, batch_size * chosen.shape[-1])
    return f"{np.mean([len(group.unique()) for group in groups]):.1f}" if len(groups) else ""


@click.command()
@click.argument("config_path", type=click.Path(path_type=Path))
@click.option("--layers", type=int, default=14, show_default=True)
@click.option("--router-skew", help="As of `bench step`.")
@torch.no_grad()
def main(config_path: Path, layers: int, router_skew: str | None) -> None:
    config = load_config(config_path)
    skew = RouterSkew.parse(router_skew, "--router-skew") if router_skew else None
    make = Maker(RandomWeights(SEED, skew), config.top_k)
    ids = np.random.default_rng(SEED).integers(0, config.vocab_size, NUM_SEQUENCES * LENGTH)
    x = make(EMBEDDING, (config.vocab_size, config.hidden_size), ids).view(NUM_SEQUENCES, LENGTH, -1)
    columns = [f"{size} sequences" for size in BATCH_SIZES] + ["8 in a row", "32 in a row"]
    columns += [f"share of {skew.num_experts} experts", "of a prompt's"] if skew else []
    print(f"| layer | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    uniform = [config.num_experts * (1 - (1 - config.top_k / config.num_experts) ** size) for size in BATCH_SIZES]
    print(f"| uniform | {' | '.join(f'{value:.1f}' for value in (*uniform, *uniform[:2]))} |")
    for layer_idx in range(layers):
        x, chosen = run_layer(config, make, layer_idx, x)
        print(f"| {layer_idx} | {' | '.join(describe(chosen, skew))} |", flush=True)


if __name__ == "__main__":
    main()
