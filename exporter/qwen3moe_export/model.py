"""The reference: Qwen3-MoE in plain torch, one sequence at a time, with the parameter names of published checkpoints.

This is the definition that every other stage is compared to, so it is the plainest code in the tree: no batching, no
paging, no fusion. Rounding in 16-bit dtypes follows transformers: norms, softmax and routing in fp32, the rest in
dtype.

Legend: T new tokens, S tokens in the cache and new, H hidden_size, Hq num_heads, Hkv num_kv_heads, D head_dim,
E num_experts, K top_k.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.rope import cos_sin_table


class KVCache:
    """Keys and values of one sequence, per layer [S, Hkv, D]."""

    def __init__(self, config: Qwen3MoeConfig, dtype: torch.dtype):
        empty = torch.empty(0, config.num_kv_heads, config.head_dim, dtype=dtype)
        self.keys = [empty] * config.num_layers
        self.values = [empty] * config.num_layers

    @property
    def num_tokens(self) -> int:
        return self.keys[0].shape[0]

    def append(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer_idx] = torch.cat([self.keys[layer_idx], key])
        self.values[layer_idx] = torch.cat([self.values[layer_idx], value])
        return self.keys[layer_idx], self.values[layer_idx]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of x [T, heads, D] by the angle whose cosine and sine are in cos_sin [T, D]."""
    cos, sin = cos_sin[:, None].to(x.dtype).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention of the last T of S tokens: query [T, Hq, D], key and value [S, Hkv, D] -> [T, Hq, D]."""
    num_new, num_heads, _ = query.shape
    num_total, num_kv_heads, _ = key.shape
    key = key.repeat_interleave(num_heads // num_kv_heads, dim=1)
    value = value.repeat_interleave(num_heads // num_kv_heads, dim=1)
    scores = torch.einsum("thd,shd->hts", query, key) * scale
    future = torch.ones(num_new, num_total, dtype=torch.bool).triu(num_total - num_new + 1)
    probs = scores.float().masked_fill(future, -torch.inf).softmax(-1).to(query.dtype)
    return torch.einsum("hts,shd->thd", probs, value)


class Attention(nn.Module):
    def __init__(self, config: Qwen3MoeConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: Tensor, cache: KVCache) -> Tensor:
        query, key, value = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query, key = rotate(self.q_norm(query), cos_sin), rotate(self.k_norm(key), cos_sin)
        key, value = cache.append(self.layer_idx, key, value)
        return self.o_proj(attend(query, key, value, self.config.scale).flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (x.shape[-1] // self.config.head_dim, self.config.head_dim))


class MLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def route(router_logits: Tensor, top_k: int, norm_topk_prob: bool) -> tuple[Tensor, Tensor]:
    """Router logits [T, E] -> weights in fp32 and experts, both [T, K]; of equal probabilities the lower index wins."""
    probs, experts = router_logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    weights, experts = probs[:, :top_k], experts[:, :top_k]
    if norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts


class SparseMLP(nn.Module):
    def __init__(self, config: Qwen3MoeConfig):
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            MLP(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = route(self.gate(x), self.config.top_k, self.config.norm_topk_prob)
        out = torch.zeros_like(x)
        for expert_idx, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == expert_idx)
            out[token] += expert(x[token]) * weights[token, rank, None].to(x.dtype)
        return out


class DecoderLayer(nn.Module):
    def __init__(self, config: Qwen3MoeConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        sparse = config.is_sparse(layer_idx)
        self.mlp = SparseMLP(config) if sparse else MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, cos_sin: Tensor, cache: KVCache) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Qwen3MoeConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer_idx) for layer_idx in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, inputs_embeds: Tensor, cache: KVCache) -> Tensor:
        positions = torch.arange(cache.num_tokens, cache.num_tokens + inputs_embeds.shape[0])
        cos_sin = cos_sin_table(self.config, positions)
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, cos_sin, cache)
        return self.norm(x)


class Qwen3MoeForCausalLM(nn.Module):
    """`forward` takes the T next tokens of one sequence as ids or embeddings and extends `cache`."""

    def __init__(self, config: Qwen3MoeConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def new_cache(self) -> KVCache:
        return KVCache(self.config, self.lm_head.weight.dtype)

    def forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens: ids [T], or embeddings [T, H] in the model's dtype. Returns logits [T, vocab_size]."""
        inputs_embeds = tokens if tokens.is_floating_point() else self.model.embed_tokens(tokens)
        return self.lm_head(self.model(inputs_embeds, cache))
