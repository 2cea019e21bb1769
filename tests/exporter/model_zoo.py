"""Small random Qwen3-MoE checkpoints that together exercise every option of the architecture.

Owns: their configs and weights. Each is a folder as transformers writes it, whose config.json is put back into the
spelling under test, so that transformers and this project read the same files.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from qwen3moe_export.config import parse_config
from qwen3moe_export.layout import weight_specs

TRAINED = Path(__file__).resolve().parents[1] / "data" / "qwen3moe-tiny"


@dataclass(frozen=True)
class ZooModel:
    """`options` on top of the base config; `takes_embeddings`: exported with inputs_embeds."""

    options: dict[str, Any]
    takes_embeddings: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """config.json: keys that an option sets to ABSENT are left out."""
        return {key: value for key, value in (BASE | self.options).items() if value is not ABSENT}


ABSENT = object()

# Published spelling. Every size differs from every other, so that none can stand in for another unnoticed.
BASE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "eos_token_id": 1,
    "head_dim": 20,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 56,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "num_attention_heads": 6,
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 99,
}

# As transformers 5 spells the keys that it renamed.
CURRENT_SPELLING: dict[str, Any] = {
    "num_experts": ABSENT,
    "num_local_experts": 10,
    "rope_theta": ABSENT,
    "rope_scaling": ABSENT,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "torch_dtype": ABSENT,
    "dtype": "float32",
    "max_window_layers": ABSENT,
    "transformers_version": "5.23.0",
}


def _yarn(factor: float, original: int, **rest: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **rest}


# Workloads reach position 60: beyond the original context of every YaRN model here.
ZOO: dict[str, ZooModel] = {
    "published_bf16": ZooModel({"torch_dtype": "bfloat16", "rope_theta": 1e6}),
    "current_spelling": ZooModel({**CURRENT_SPELLING, "norm_topk_prob": False}),
    "head_dim_implied": ZooModel({"head_dim": ABSENT, "rms_norm_eps": 1e-3, "torch_dtype": "float16"}),
    "attention_bias_one_kv_head": ZooModel({"attention_bias": True, "num_key_value_heads": 1}),
    "multi_head_top_1": ZooModel({"num_key_value_heads": 6, "num_experts_per_tok": 1, "norm_topk_prob": False}),
    "every_expert": ZooModel({"num_experts_per_tok": 10, "rope_theta": 1e7}),
    "rope_linear": ZooModel({"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "rope_yarn": ZooModel({"rope_scaling": _yarn(4.0, 32), "rope_theta": 1e6}),
    "rope_yarn_attention_factor": ZooModel(
        {
            "rope_theta": 100.0,
            "rope_scaling": _yarn(4.0, 48, attention_factor=1.4, beta_fast=1.0, beta_slow=0.25),
            "max_position_embeddings": 192,
        }
    ),
    "rope_yarn_mscale": ZooModel(
        {
            **CURRENT_SPELLING,
            "max_position_embeddings": 120,
            "rope_parameters": _yarn(3.0, 40, rope_theta=500.0, mscale=1.5, mscale_all_dim=0.4, truncate=False),
        }
    ),
    "mlp_only_layers": ZooModel({"mlp_only_layers": [0, 2], "num_hidden_layers": 3, "norm_topk_prob": False}),
    "decoder_sparse_step": ZooModel({"decoder_sparse_step": 2, "num_hidden_layers": 3, "attention_bias": True}),
    "dense": ZooModel({"decoder_sparse_step": 3}),
    "tied_embeddings": ZooModel({"tie_word_embeddings": True}),
    "inputs_embeds": ZooModel({"head_dim": 6, "num_experts_per_tok": 2}, takes_embeddings=True),
    "inputs_embeds_tied": ZooModel({"tie_word_embeddings": True, "attention_bias": True}, takes_embeddings=True),
}


def write_checkpoint(folder: Path, values: dict[str, Any], seed: int = 0) -> Path:
    """A random checkpoint of the config `values`, in the layout that transformers publishes. Returns `folder`."""
    config = Qwen3MoeConfig(**values)
    model = Qwen3MoeForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter, generator))
    model.to(getattr(torch, values.get("torch_dtype") or values["dtype"])).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def _random(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values of such a size that logits are not flat (about 1 to 10), norms and biases matter, and experts differ."""
    noise = torch.randn(like.shape, generator=generator)
    if "norm" in name:
        return 1 + 0.3 * noise
    if name.endswith("bias"):
        return 0.3 * noise
    if "embed_tokens" in name:
        return 0.3 * noise
    return noise * like.shape[-1] ** -0.5 * (2.0 if "experts" in name or "lm_head" in name else 1.0)


class Zoo:
    """Folders of the models by name, `trained` among them, each written when it is first asked for."""

    def __init__(self, root: Path):
        self._root = root
        self.path = functools.cache(self._path)

    def _path(self, name: str) -> Path:
        return TRAINED if name == "trained" else write_checkpoint(self._root / name, ZOO[name].config)

    def takes_embeddings(self, name: str) -> bool:
        return name != "trained" and ZOO[name].takes_embeddings


MODEL_NAMES = ("trained", *ZOO)


def write_published_layout(folder: Path, values: dict[str, Any], num_shards: int = 4) -> None:
    """A random bf16 checkpoint of any size: a shard in memory at a time, experts as single tensors, and an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    specs = weight_specs(parse_config(values, "values"), "bf16")
    shapes = {name: shape for spec in specs for name, shape in spec.source_shapes().items()}
    weight_map = {name: f"model-{index % num_shards:05d}.safetensors" for index, name in enumerate(shapes)}
    generator = torch.Generator().manual_seed(0)
    for shard in sorted(set(weight_map.values())):
        names = [name for name in shapes if weight_map[name] == shard]
        save_file({name: _random_bf16(shapes[name], generator) for name in names}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _random_bf16(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=shape[-1] ** -0.5, generator=generator)
