"""Rotary embedding frequencies (RoFormer, arXiv:2104.09864), with linear interpolation and YaRN (arXiv:2309.00071).

Owns: the formulas. Everything else - the reference, the manifest, the engine's table - takes what is computed here.
All arithmetic is fp32, as in transformers: at position 40960 a relative difference of 1e-7 in a frequency is 4e-3 rad.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qwen3moe_export.config import Qwen3MoeConfig, RopeConfig


def rope_frequencies(config: Qwen3MoeConfig) -> tuple[Tensor, float]:
    """Radians per position for each pair of dimensions, fp32 [D/2], and the factor on cosines and sines."""
    rope, head_dim = config.rope, config.head_dim
    wavelengths = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.rope_type == "default":
        return 1.0 / wavelengths, 1.0
    if rope.rope_type == "linear":
        return 1.0 / wavelengths / rope.factor, 1.0
    return _yarn_frequencies(rope, wavelengths, head_dim), _yarn_attention_factor(rope)


def cos_sin_table(config: Qwen3MoeConfig, positions: Tensor) -> Tensor:
    """Rows of the rotary table at `positions` [T]: fp32 [T, D], D/2 cosines then D/2 sines."""
    inv_freq, attention_factor = rope_frequencies(config)
    angles = positions[:, None].float() * inv_freq
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * attention_factor


def _yarn_frequencies(rope: RopeConfig, wavelengths: Tensor, head_dim: int) -> Tensor:
    """Section 3.2 of the paper: high frequencies kept, low ones interpolated by `factor`, a linear ramp between."""

    def pair_with(rotations: float) -> float:
        """The (fractional) pair of dimensions that turns `rotations` times over the original context."""
        turns = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return ramp / (rope.factor * wavelengths) + (1 - ramp) / wavelengths


def _yarn_attention_factor(rope: RopeConfig) -> float:
    """Equation 22 of the paper, unless the config states it; mscale and mscale_all_dim as DeepSeek added them."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return temperature(1.0)
