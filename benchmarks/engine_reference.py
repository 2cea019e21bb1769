"""The logits that engine_logits.py wrote, against plain torch with the same pseudo-random weights, layer by layer; and
how evenly such weights route, since that decides how many experts a step reads.

python benchmarks/engine_reference.py EXPORT CONFIG logits.npz --kernels libqwen3moe_kernels.so
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from qwen3moe_engine.checkpoint import StoredTensor
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.pieces import Piece
from qwen3moe_engine.random_model import RandomWeights
from qwen3moe_engine.tensorrt.random_weights import WeightMaker, random_checkpoint
from qwen3moe_export.config import Qwen3MoeConfig, load_config
from qwen3moe_export.layout import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from qwen3moe_export.model import DecoderLayer, KVCache, RMSNorm, route
from qwen3moe_export.rope import cos_sin_table
from qwen3moe_plugins.kernels import KernelLibrary

SEED, TOP_K = 7, 8
BATCH_SIZES = (1, 8, 32, 64, 128, 256)


def make(tensor: StoredTensor, kernels: KernelLibrary) -> Tensor:
    """The published tensor as the engine makes it."""
    values = torch.empty(tensor.shape, dtype=torch.float16, device="cuda")
    columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    whole = Piece(tensor, columns, (0, tensor.shape[0]), (0, columns))
    maker = WeightMaker(RandomWeights(SEED), TOP_K, kernels, torch.cuda.current_stream().cuda_stream)
    maker.fill(whole, values.data_ptr())
    return values


def run_layer(
    config: Qwen3MoeConfig,
    layer_idx: int,
    tensors: dict[str, StoredTensor],
    kernels: KernelLibrary,
    x: Tensor,
    dtype: torch.dtype,
    touched: dict[int, list[float]],
) -> Tensor:
    with torch.device("meta"):
        layer = DecoderLayer(config, layer_idx)
    prefix = layer_prefix(layer_idx)
    values = {
        name.removeprefix(prefix): make(tensor, kernels).to(dtype)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    layer.load_state_dict(values, assign=True)
    if dtype == torch.float16:
        layer.mlp.gate.register_forward_hook(lambda gate, inputs, logits: count_experts(config, logits, touched))
    cos_sin = cos_sin_table(config, torch.arange(len(x))).cuda()
    with torch.device("cuda"):
        return layer(x, cos_sin, KVCache(config, dtype))


def count_experts(config: Qwen3MoeConfig, router_logits: Tensor, touched: dict[int, list[float]]) -> None:
    """Adds to `touched`, by batch size, how many experts that many tokens of the sequence choose on average."""
    _, chosen = route(router_logits, config.top_k, norm_topk_prob=False)
    for batch_size in BATCH_SIZES:
        groups = chosen[: len(chosen) // batch_size * batch_size].reshape(-1, batch_size * config.top_k)
        touched[batch_size].append(float(np.mean([len(group.unique()) for group in groups])))


def reference_logits(
    export: Path,
    config: Qwen3MoeConfig,
    kernels: KernelLibrary,
    tokens: Tensor,
    dtype: torch.dtype,
    touched: dict[int, list[float]],
) -> Tensor:
    tensors = random_checkpoint(load_manifest(export)).tensors
    x = make(tensors[EMBEDDING], kernels)[tokens.long()].to(dtype)
    for layer_idx in range(config.num_layers):
        x = run_layer(config, layer_idx, tensors, kernels, x, dtype, touched)
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps).cuda().to(dtype)
    norm.weight.data = make(tensors[FINAL_NORM], kernels).to(dtype)
    head = make(tensors[LM_HEAD], kernels).to(dtype)
    return (norm(x) @ head.T).float()


def describe(name: str, got: Tensor, truth: Tensor) -> str:
    cosine = torch.nn.functional.cosine_similarity(got, truth, dim=-1)
    relative = (got - truth).norm() / truth.norm()
    kl = torch.nn.functional.kl_div(got.log_softmax(-1), truth.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    top1 = (got.argmax(-1) == truth.argmax(-1)).float().mean()
    return f"| {name} | {cosine.min():.6f} | {relative:.5f} | {kl.mean():.3e} | {kl.max():.3e} | {top1:.3f} |"


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("config_path", type=click.Path(path_type=Path))
@click.argument("logits", type=click.Path(path_type=Path))
@click.option("--kernels", "kernels_path", type=click.Path(path_type=Path), required=True)
@torch.no_grad()
def main(export: Path, config_path: Path, logits: Path, kernels_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    config, kernels = load_config(config_path), KernelLibrary(kernels_path)
    saved = np.load(logits)
    tokens, engine = torch.from_numpy(saved["tokens"]).cuda(), torch.from_numpy(saved["logits"]).cuda()
    rows = slice(-len(engine), None)  # the prompt's last position and every one behind it
    touched: dict[int, list[float]] = {batch_size: [] for batch_size in BATCH_SIZES}
    narrow, truth = (
        reference_logits(export, config, kernels, tokens, dtype, touched)[rows]
        for dtype in (torch.float16, torch.float32)
    )
    print(f"logits of {len(truth)} positions, std {truth.std():.3f}")
    print("| | cosine, min | relative L2 | KL, mean | KL, max | top-1 |\n|---|---|---|---|---|---|")
    print(describe("engine against torch fp32", engine, truth))
    print(describe("torch fp16 against torch fp32", narrow, truth))
    print(describe("engine against torch fp16", engine, narrow))
    print("\n| tokens | experts they touch, mean of layers | least | uniform |\n|---|---|---|---|")
    for batch_size, counts in touched.items():
        uniform = config.num_experts * (1 - (1 - config.top_k / config.num_experts) ** batch_size)
        print(f"| {batch_size} | {np.mean(counts):.1f} | {min(counts):.1f} | {uniform:.1f} |")


if __name__ == "__main__":
    main()
