"""The custom operators in torch: their eager bodies are what ONNX functions and CUDA kernels are held to.

Owns: `torch.ops.qwen3moe.*`, their fake (shape) functions, and the check that their signatures are those declared in
qwen3moe_plugins.ops. Functional: kv_cache is copied, never written in place, as torch.onnx cannot export mutation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3moe_export.model import attend, rotate, route
from qwen3moe_plugins.ops import BALANCED_MOE, COLLECTIVES, DOMAIN, MOE, PAGED_ATTENTION, OpDecl


@torch.library.custom_op(f"{DOMAIN}::PagedAttention", mutates_args=())
def paged_attention(
    qkv: Tensor,
    q_norm_weight: Tensor,
    k_norm_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See PAGED_ATTENTION in qwen3moe_plugins.ops. Norm and rotation in fp32, rounded once; softmax in fp32."""
    query, key, value = qkv.view(qkv.shape[0], -1, head_dim).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    cos_sin = cos_sin_cache[positions]
    query = rotate(F.rms_norm(query.float(), (head_dim,), q_norm_weight.float(), eps), cos_sin).to(qkv.dtype)
    key = rotate(F.rms_norm(key.float(), (head_dim,), k_norm_weight.float(), eps), cos_sin).to(qkv.dtype)
    kv_cache = kv_cache.clone()
    block_size = kv_cache.shape[3]
    out = torch.zeros_like(query)
    bounds = cu_seqlens.tolist()
    for seq_idx, (start, end, num_context) in enumerate(zip(bounds, bounds[1:], context_lens.tolist(), strict=False)):
        index = torch.arange(num_context)
        block, slot = block_table[seq_idx, index // block_size], index % block_size
        new = slice(num_context - (end - start), num_context)
        kv_cache[block[new], 0, :, slot[new]] = key[start:end]
        kv_cache[block[new], 1, :, slot[new]] = value[start:end]
        keys, values = kv_cache[block, 0, :, slot], kv_cache[block, 1, :, slot]
        out[start:end] = attend(query[start:end], keys, values, scale)
    return out.flatten(1), kv_cache


@paged_attention.register_fake
def _(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    kv_cache, num_heads, head_dim = rest[4], rest[8], rest[10]
    return qkv.new_empty(qkv.shape[0], num_heads * head_dim), torch.empty_like(kv_cache)


@torch.library.custom_op(f"{DOMAIN}::MoE", mutates_args=())
def moe(
    hidden: Tensor,
    router_logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    expert_map: Tensor,
    top_k: int,
    norm_topk_prob: int,
) -> Tensor:
    """See MOE in qwen3moe_plugins.ops. Weighted sum in fp32, rounded once."""
    weights, chosen = route(router_logits, top_k, bool(norm_topk_prob))
    return _run_experts(hidden, weights, expert_map[chosen], gate_up, down)


@torch.library.custom_op(f"{DOMAIN}::BalancedMoE", mutates_args=())
def balanced_moe(
    hidden: Tensor,
    router_logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    expert_map: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    load: Tensor,
    top_k: int,
    norm_topk_prob: int,
) -> tuple[Tensor, Tensor]:
    """See BALANCED_MOE in qwen3moe_plugins.ops."""
    weights, chosen = route(router_logits, top_k, bool(norm_topk_prob))
    slots = expert_map[positions % len(expert_map)].gather(1, chosen)
    is_token = torch.arange(len(hidden)) < cu_seqlens[-1]
    served = chosen[(slots >= 0) & is_token[:, None]]
    counts = torch.bincount(served, minlength=len(load)).to(load.dtype)
    return _run_experts(hidden, weights, slots, gate_up, down), load + counts


def _run_experts(hidden: Tensor, weights: Tensor, slots: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """weights, slots: [T, top_k], of each token's experts; a slot of -1 adds nothing."""
    out = torch.zeros_like(hidden, dtype=torch.float32)
    for slot in range(len(gate_up)):
        token, rank = torch.where(slots == slot)
        if token.numel() == 0:
            continue
        gate, up = F.linear(hidden[token], gate_up[slot]).chunk(2, dim=-1)
        out[token] += F.linear(F.silu(gate) * up, down[slot]).float() * weights[token, rank, None]
    return out.to(hidden.dtype)


@moe.register_fake
def _(hidden: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(hidden)


@balanced_moe.register_fake
def _(hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    load = rest[6]
    return torch.empty_like(hidden), torch.empty_like(load)


@torch.library.custom_op(f"{DOMAIN}::AllReduce", mutates_args=())
def all_reduce(x: Tensor) -> Tensor:
    """See ALL_REDUCE in qwen3moe_plugins.ops. One rank has no group to sum over: a runtime brings it."""
    raise NotImplementedError("AllReduce runs between the ranks of a runtime, not in eager torch")


@torch.library.custom_op(f"{DOMAIN}::AllGather", mutates_args=())
def all_gather(x: Tensor, world_size: int) -> Tensor:
    """See ALL_GATHER in qwen3moe_plugins.ops."""
    raise NotImplementedError("AllGather runs between the ranks of a runtime, not in eager torch")


@all_reduce.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@all_gather.register_fake
def _(x: Tensor, world_size: int) -> Tensor:
    return x.new_empty(world_size * x.shape[0], x.shape[1])


def _check_signature(op: torch._ops.OpOverload, declaration: OpDecl) -> None:
    """Argument names of the torch operator are the declared inputs and attributes, in order."""
    declared = [decl.name for decl in declaration.inputs] + [decl.name for decl in declaration.attributes]
    assert [argument.name for argument in op._schema.arguments] == declared, (op, declared)
    assert len(op._schema.returns) == len(declaration.outputs), op


# The norms are torch's own in the program; the ONNX graph fuses them.
TORCH_OPS = (PAGED_ATTENTION, MOE, BALANCED_MOE, *COLLECTIVES)
for _declaration in TORCH_OPS:
    _check_signature(getattr(torch.ops.qwen3moe, _declaration.name).default, _declaration)
