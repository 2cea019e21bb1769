"""How evenly the pseudo-random weights of `--random-weights` route, in plain torch on a CPU: experts that tokens choose
that are of as many sequences, as in a decode step, or neighbours in one, as in a prompt.

python benchmarks/random_routing.py CONFIG --layers 14
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3moe_engine.checkpoint import StoredTensor
from qwen3moe_engine.tensorrt.random_weights import random_range, random_seed
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


def make(name: str, shape: tuple[int, ...], rows: NDArray[np.int64] | None = None) -> Tensor:
    """The published tensor as `fill` makes it, rounded to fp16, in fp32; or some of its rows."""
    low, high = random_range(StoredTensor(name, "fp16", shape, Path(), 0))
    if rows is None:
        elements = np.arange(int(np.prod(shape)), dtype=np.uint64).reshape(shape)
    else:
        elements = (rows[:, None] * shape[1] + np.arange(shape[1])).astype(np.uint64)
    with np.errstate(over="ignore"):
        bits = splitmix64(splitmix64(np.array(random_seed(name, SEED), np.uint64)) + elements) >> np.uint64(40)
    values = low + (high - low) * (bits.astype(np.float32) * np.float32(2.0**-24))
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))


def run_layer(config: Qwen3MoeConfig, layer_idx: int, x: Tensor) -> tuple[Tensor, Tensor]:
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


def count(chosen: Tensor, batch_size: int) -> str:
    """Distinct experts of so many rows [*, K], on average."""
    groups = chosen[: len(chosen) // batch_size * batch_size].reshape(-1, batch_size * chosen.shape[-1])
    return f"{np.mean([len(group.unique()) for group in groups]):.1f}" if len(groups) else ""


@click.command()
@click.argument("config_path", type=click.Path(path_type=Path))
@click.option("--layers", type=int, default=14, show_default=True)
@torch.no_grad()
def main(config_path: Path, layers: int) -> None:
    config = load_config(config_path)
    ids = np.random.default_rng(SEED).integers(0, config.vocab_size, NUM_SEQUENCES * LENGTH)
    x = make(EMBEDDING, (config.vocab_size, config.hidden_size), ids).view(NUM_SEQUENCES, LENGTH, -1)
    columns = [f"{size} sequences" for size in BATCH_SIZES] + ["8 in a row", "32 in a row"]
    print(f"| layer | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    uniform = [config.num_experts * (1 - (1 - config.top_k / config.num_experts) ** size) for size in BATCH_SIZES]
    print(f"| uniform | {' | '.join(f'{value:.1f}' for value in (*uniform, *uniform[:2]))} |")
    for layer_idx in range(layers):
        x, chosen = run_layer(config, layer_idx, x)
        cells = [count(chosen[:, -1], size) for size in BATCH_SIZES] + [count(chosen[0], size) for size in (8, 32)]
        print(f"| {layer_idx} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
