"""The program that is exported: Qwen3-MoE over packed tokens and a paged KV cache, every weight an argument.

Owns: the forward pass in terms of the custom operators and the names of its arguments. The weights' names and shapes
are `layout.weight_specs`. Must not know ONNX.

Legend: T tokens of all sequences, B sequences, N rows of logits asked for, H hidden_size, V vocab_size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix
from qwen3moe_export.ops import moe, paged_attention


class Program(nn.Module):
    """Logits for a step, and the KV caches after it. Holds no parameter."""

    def __init__(self, config: Qwen3MoeConfig):
        super().__init__()
        self.config = config

    def forward(
        self,
        weights: dict[str, Tensor],
        expert_maps: dict[int, Tensor],
        cos_sin_cache: Tensor,
        kv_caches: list[Tensor],
        tokens: Tensor,
        positions: Tensor,
        block_table: Tensor,
        cu_seqlens: Tensor,
        context_lens: Tensor,
        logits_indices: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """tokens: ids int32 [T] or embeddings [T, H]; expert_maps: of the sparse layers, int32 [E]; logits_indices:
        int32 [N], rows of T. The rest as in PAGED_ATTENTION of qwen3moe_plugins.ops. Returns fp32 logits [N, V]."""
        x = tokens if tokens.is_floating_point() else F.embedding(tokens, weights[EMBEDDING])
        attention_inputs = (block_table, cu_seqlens, context_lens)
        new_caches = []
        for layer_idx, kv_cache in enumerate(kv_caches):
            layer = _LayerWeights(weights, layer_idx)
            attended, new_cache = self._attention(layer, self._norm(x, layer["input_layernorm.weight"]),
                                                  (cos_sin_cache, positions, kv_cache, *attention_inputs))  # fmt: skip
            x = x + attended
            normed = self._norm(x, layer["post_attention_layernorm.weight"])
            sparse = self.config.is_sparse(layer_idx)
            x = x + (self._sparse_mlp(layer, normed, expert_maps[layer_idx]) if sparse else self._mlp(layer, normed))
            new_caches.append(new_cache)
        # F.embedding as it becomes one Gather; indexing and index_select bring constants and reshapes along
        x = self._norm(F.embedding(logits_indices, x), weights[FINAL_NORM])
        head = weights[EMBEDDING if self.config.tie_word_embeddings else LM_HEAD]
        return F.linear(x, head).float(), new_caches

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _attention(self, layer: _LayerWeights, x: Tensor, paged: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        config = self.config
        qkv = F.linear(x, layer["self_attn.qkv_proj.weight"], layer.get("self_attn.qkv_proj.bias"))
        out, kv_cache = paged_attention(
            qkv, layer["self_attn.q_norm.weight"], layer["self_attn.k_norm.weight"], *paged,
            num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
            scale=config.scale, eps=config.rms_norm_eps,
        )  # fmt: skip
        return F.linear(out, layer["self_attn.o_proj.weight"], layer.get("self_attn.o_proj.bias")), kv_cache

    def _sparse_mlp(self, layer: _LayerWeights, x: Tensor, expert_map: Tensor) -> Tensor:
        router_logits = F.linear(x, layer["mlp.gate.weight"])
        gate_up, down = layer["mlp.experts.gate_up_proj"], layer["mlp.experts.down_proj"]
        return moe(x, router_logits, gate_up, down, expert_map, self.config.top_k, int(self.config.norm_topk_prob))

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
