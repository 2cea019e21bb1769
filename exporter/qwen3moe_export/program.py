"""The program that is exported: Qwen3-MoE over packed tokens and a paged KV cache, every weight an argument.

Owns: the forward pass in terms of the custom operators and the names of its arguments. The weights' names and shapes
are `layout.weight_specs`. A `Part` of a model computes the layers of its stage, with a rank's share of each; what
differs by rank is an argument, so one program serves a group. Must not know ONNX.

Legend: T tokens of all sequences, B sequences, N rows of logits asked for, H hidden_size, V vocab_size.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from qwen3moe_engine.layout import WHOLE, Part
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import EMBEDDING, FINAL_NORM, LM_HEAD, kv_heads_held, layer_prefix
from qwen3moe_export.ops import all_gather, all_reduce, balanced_moe, moe, paged_attention


class Program(nn.Module):
    """Logits for a step, or hidden states for the next stage, and the KV caches after it. Holds no parameter."""

    def __init__(self, config: Qwen3MoeConfig, part: Part = WHOLE):
        super().__init__()
        self.config, self.part = config, part
        self.group_size, self.attention_degree = part.layout.group_size, part.layout.attention_degree

    def forward(
        self,
        weights: dict[str, Tensor],
        expert_maps: dict[int, Tensor],
        loads: dict[int, Tensor],
        cos_sin_cache: Tensor,
        kv_caches: dict[int, Tensor],
        step: dict[str, Tensor],
    ) -> tuple[Any, ...]:
        """expert_maps: of the sparse layers, int32 [E]; with redundant experts [R, E], and loads, int32 [E], as in
        BALANCED_MOE of qwen3moe_plugins.ops. step: input_ids int32 [T], or inputs_embeds or hidden_states [T, H];
        vocab_offset int32 [1]; logits_indices int32 [N], rows of T. The rest as in PAGED_ATTENTION. Returns fp32 logits
        [N, V], or hidden states [T, H], the KV caches, and the loads if there are any."""
        x = self._enter(weights, step)
        new_caches: list[Tensor] = []
        new_loads: list[Tensor] = []
        for layer_idx, kv_cache in kv_caches.items():
            layer = _LayerWeights(weights, layer_idx)
            normed = self._norm(x, layer["input_layernorm.weight"])
            paged = (step["positions"], kv_cache, step["block_table"], step["cu_seqlens"], step["context_lens"])
            attended, new_cache = self._attention(layer, normed, (cos_sin_cache, *paged))
            x = x + attended
            normed = self._norm(x, layer["post_attention_layernorm.weight"])
            if self.config.is_sparse(layer_idx):
                balancing = (step["positions"], step["cu_seqlens"], loads[layer_idx]) if layer_idx in loads else ()
                fed, *new_load = self._sparse_mlp(layer, normed, expert_maps[layer_idx], *balancing)
                new_loads += new_load
            else:
                fed = self._mlp(layer, normed)
            x = x + self._sum(fed, self.group_size)
            new_caches.append(new_cache)
        out = self._logits(weights, x, step["logits_indices"]) if self.part.is_last else x
        return (out, new_caches, new_loads) if new_loads else (out, new_caches)

    def _enter(self, weights: dict[str, Tensor], step: dict[str, Tensor]) -> Tensor:
        if not self.part.is_first:
            return step["hidden_states"]
        if "inputs_embeds" in step:
            return step["inputs_embeds"]
        table, tokens = weights[EMBEDDING], step["input_ids"]
        if self.group_size == 1:
            return F.embedding(tokens, table)
        # a rank has the rows of some tokens; for the others it adds zeros
        row = tokens - step["vocab_offset"]
        is_here = (row >= 0) & (row < table.shape[0])
        return all_reduce(F.embedding(row * is_here, table) * is_here.to(table.dtype)[:, None])

    def _logits(self, weights: dict[str, Tensor], x: Tensor, indices: Tensor) -> Tensor:
        # F.embedding as it becomes one Gather; indexing and index_select bring constants and reshapes along
        x = self._norm(F.embedding(indices, x), weights[FINAL_NORM])
        logits = F.linear(x, weights[EMBEDDING if self.config.tie_word_embeddings else LM_HEAD]).float()
        if self.group_size == 1:
            return logits
        by_rank = all_gather(logits, self.group_size).view(self.group_size, -1, logits.shape[1])
        return by_rank.transpose(0, 1).reshape(-1, self.config.vocab_size)

    def _sum(self, x: Tensor, degree: int) -> Tensor:
        return all_reduce(x) if degree > 1 else x

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _attention(self, layer: _LayerWeights, x: Tensor, paged: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        config, degree = self.config, self.attention_degree
        qkv = F.linear(x, layer["self_attn.qkv_proj.weight"], layer.get("self_attn.qkv_proj.bias"))
        out, kv_cache = paged_attention(
            qkv, layer["self_attn.q_norm.weight"], layer["self_attn.k_norm.weight"], *paged,
            num_heads=config.num_heads // degree, num_kv_heads=kv_heads_held(config, self.part),
            head_dim=config.head_dim, scale=config.scale, eps=config.rms_norm_eps,
        )  # fmt: skip
        weight, bias = layer["self_attn.o_proj.weight"], layer.get("self_attn.o_proj.bias")
        if degree == 1:
            return F.linear(out, weight, bias), kv_cache
        summed = all_reduce(F.linear(out, weight))
        return (summed if bias is None else summed + bias), kv_cache

    def _sparse_mlp(
        self, layer: _LayerWeights, x: Tensor, expert_map: Tensor, *balancing: Tensor
    ) -> tuple[Tensor, ...]:
        """What the experts make of x, and the layer's load if experts are balanced."""
        router_logits = F.linear(x, layer["mlp.gate.weight"])
        gate_up, down = layer["mlp.experts.gate_up_proj"], layer["mlp.experts.down_proj"]
        routing = (self.config.top_k, int(self.config.norm_topk_prob))
        if balancing:
            return balanced_moe(x, router_logits, gate_up, down, expert_map, *balancing, *routing)
        return (moe(x, router_logits, gate_up, down, expert_map, *routing),)

    def _mlp(self, layer: _LayerWeights, x: Tensor) -> Tensor:
        gate, up = F.linear(x, layer["mlp.gate_up_proj.weight"]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, layer["mlp.down_proj.weight"])


class _LayerWeights:
    """The weights of one layer, by the part of their name behind `model.layers.N.`."""

    def __init__(self, weights: dict[str, Tensor], layer_idx: int):
        self._weights, self._prefix = weights, layer_prefix(layer_idx)

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._prefix + name]

    def get(self, name: str) -> Tensor | None:
        return self._weights.get(self._prefix + name)
