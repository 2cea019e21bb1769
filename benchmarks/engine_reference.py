"""The logits that engine_logits.py wrote, against plain torch with the same pseudo-random weights, layer by layer; and
how evenly such weights route, since that decides how many experts a step reads.

python benchmarks/engine_reference.py EXPORT CONFIG logits.npz --kernels libqwen3moe_kernels.so
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.pieces import Piece
from qwen3moe_engine.random_model import RandomWeights
from qwen3moe_engine.tensorrt.random_weights import WeightMaker, random_checkpoint
from qwen3moe_export.config import Qwen3MoeConfig, load_config
from qwen3moe_export.layout import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from qwen3moe_export.model import DecoderLayer, KVCache, RMSNorm, route
from qwen3moe_export.rope import cos_sin_table
from qwen3moe_plugins.kernels import KernelLibrary

SEED = 7
DTYPES = (torch.float16, torch.float32)
BATCH_SIZES = (1, 8, 32, 64, 128, 256)


class Weights:
    """The published tensors as the engine makes them, on the GPU."""

    def __init__(self, export: Path, top_k: int, kernels: KernelLibrary):
        self._tensors = random_checkpoint(load_manifest(export)).tensors
        self._maker = WeightMaker(RandomWeights(SEED), top_k, kernels, torch.cuda.current_stream().cuda_stream)

    def fill(self, name: str, values: Tensor) -> Tensor:
        tensor = self._tensors[name]
        assert tuple(values.shape) == tensor.shape and values.dtype == torch.float16, name
        columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        self._maker.fill(Piece(tensor, columns, (0, tensor.shape[0]), (0, columns)), values.data_ptr())
        return values

    def make(self, name: str) -> Tensor:
        return self.fill(name, torch.empty(self._tensors[name].shape, dtype=torch.float16, device="cuda"))


class Layers:
    """A decoder layer in each dtype, which is given one layer's weights after the other's: a module anew for each takes
    longer than all of its products."""

    def __init__(self, config: Qwen3MoeConfig, weights: Weights):
        assert len({config.is_sparse(layer_idx) for layer_idx in range(config.num_layers)}) == 1
        self._config, self._weights = config, weights
        with torch.device("meta"):
            modules = {dtype: DecoderLayer(config, 0).to(dtype) for dtype in DTYPES}
        self.of = {dtype: module.to_empty(device="cuda") for dtype, module in modules.items()}

    def load(self, layer_idx: int) -> None:
        narrow, wide = (dict(self.of[dtype].named_parameters()) for dtype in DTYPES)
        for name, parameter in narrow.items():
            wide[name].copy_(self._weights.fill(layer_prefix(layer_idx) + name, parameter))

    def run(self, x: Tensor) -> Tensor:
        """x [T, H], the start of a sequence, through the layer in the dtype of `x`."""
        cos_sin = cos_sin_table(self._config, torch.arange(len(x))).cuda()
        with torch.device("cuda"):
            return self.of[x.dtype](x, cos_sin, KVCache(self._config, x.dtype))


def count_experts(config: Qwen3MoeConfig, router_logits: Tensor, touched: dict[int, list[float]]) -> None:
    """Adds to `touched`, by batch size, how many experts that many tokens of the sequence choose on average."""
    _, chosen = route(router_logits, config.top_k, norm_topk_prob=False)
    is_chosen = torch.zeros_like(router_logits, dtype=torch.bool).scatter_(1, chosen, True)
    for batch_size in BATCH_SIZES:
        groups = is_chosen[: len(chosen) // batch_size * batch_size].unflatten(0, (-1, batch_size))
        touched[batch_size].append(groups.any(1).sum(1).float().mean().item())


def reference_logits(
    config: Qwen3MoeConfig, weights: Weights, tokens: Tensor, touched: dict[int, list[float]]
) -> dict[torch.dtype, Tensor]:
    """[T, vocab_size] in fp32, as computed in each dtype."""
    layers, embedded = Layers(config, weights), weights.make(EMBEDDING)[tokens.long()]
    hidden = {dtype: embedded.to(dtype) for dtype in DTYPES}
    gate = layers.of[torch.float16].mlp.gate
    gate.register_forward_hook(lambda _, inputs, logits: count_experts(config, logits, touched))
    for layer_idx in range(config.num_layers):
        layers.load(layer_idx)
        hidden = {dtype: layers.run(x) for dtype, x in hidden.items()}
    norm, head = weights.make(FINAL_NORM), weights.make(LM_HEAD)
    return {dtype: final_logits(config, x, norm, head) for dtype, x in hidden.items()}


def final_logits(config: Qwen3MoeConfig, x: Tensor, norm_weight: Tensor, head: Tensor) -> Tensor:
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps).to("cuda", x.dtype)
    norm.weight.copy_(norm_weight)
    return (norm(x) @ head.to(x.dtype).T).float()


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
    start = time.perf_counter()
    found = reference_logits(config, Weights(export, config.top_k, kernels), tokens, touched)
    narrow, truth = (found[dtype][rows] for dtype in DTYPES)
    print(f"logits of {len(truth)} positions, std {truth.std():.3f}, in {time.perf_counter() - start:.1f} s")
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
