"""The reference model with a checkpoint's weights.

Owns: unpacking the engine's layout into parameters named as published, one graph input at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3moe_engine.checkpoint import Checkpoint
from qwen3moe_engine.weights import WeightPlan, plan_weights, read_weight
from qwen3moe_export.capture import TORCH_DTYPES
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import weight_specs
from qwen3moe_export.model import Qwen3MoeForCausalLM


def load_reference(config: Qwen3MoeConfig, checkpoint: Checkpoint, dtype: str) -> Qwen3MoeForCausalLM:
    """`dtype`: bf16, fp16 or fp32, of parameters and arithmetic. Raises InputError if the checkpoint does not fit."""
    plans = plan_weights(weight_specs(config, dtype), checkpoint)
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config).to(TORCH_DTYPES[dtype])
    for plan in plans:
        for name, value in unpack(plan, as_torch(plan, dtype)).items():
            _assign(model, name, value)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, left
    return model.eval().requires_grad_(False)


def as_torch(plan: WeightPlan, dtype: str) -> Tensor:
    """The input's content as a torch tensor. numpy has no bf16 of its own, so the bits travel as int16."""
    array = read_weight(plan, dtype)
    if dtype != "bf16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view("int16")).view(torch.bfloat16)


def unpack(plan: WeightPlan, packed: Tensor) -> dict[str, Tensor]:
    """The published tensors that `packed` consists of."""
    shapes = plan.spec.source_shapes()
    rows = packed.reshape(-1, *next(iter(shapes.values()))[1:])
    parts = rows.split([shape[0] for shape in shapes.values()])
    return dict(zip(shapes, parts, strict=True))


def _assign(model: torch.nn.Module, name: str, value: Tensor) -> None:
    module_name, _, parameter_name = name.rpartition(".")
    setattr(model.get_submodule(module_name), parameter_name, torch.nn.Parameter(value, requires_grad=False))
