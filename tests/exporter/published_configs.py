"""config.json of published Qwen3-MoE checkpoints, key for key."""

from __future__ import annotations

from typing import Any

QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

QWEN3_30B_A3B_BASE = QWEN3_30B_A3B | {"eos_token_id": 151643, "max_position_embeddings": 32768}
QWEN3_30B_A3B_2507 = QWEN3_30B_A3B | {"max_position_embeddings": 262144, "rope_theta": 10000000}

# As the model cards say to extend the context.
QWEN3_30B_A3B_YARN = QWEN3_30B_A3B | {
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
}

QWEN3_235B_A22B = QWEN3_30B_A3B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_window_layers": 94,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_hidden_layers": 94,
}
QWEN3_235B_A22B_2507 = QWEN3_235B_A22B | {"max_position_embeddings": 262144, "rope_theta": 5000000}

_CODER_KEYS = {
    "max_position_embeddings": 262144,
    "qkv_bias": False,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.0,
    "shared_expert_intermediate_size": 0,
    "use_qk_norm": True,
}
_WITHOUT_BOS = {key: value for key, value in QWEN3_30B_A3B.items() if key != "bos_token_id"}

QWEN3_CODER_30B_A3B = _WITHOUT_BOS | _CODER_KEYS | {"intermediate_size": 5472, "max_window_layers": 28}
QWEN3_CODER_480B_A35B = (
    _WITHOUT_BOS
    | _CODER_KEYS
    | {
        "hidden_size": 6144,
        "intermediate_size": 8192,
        "max_window_layers": 62,
        "moe_intermediate_size": 2560,
        "num_attention_heads": 96,
        "num_experts": 160,
        "num_hidden_layers": 62,
        "num_key_value_heads": 8,
    }
)

# A fine-tune that transformers 4.57 saved, and one by a popular trainer.
FINE_TUNE = {key: value for key, value in QWEN3_30B_A3B.items() if key != "torch_dtype"} | {
    "dtype": "float32",
    "qkv_bias": False,
    "tie_word_embeddings": True,
    "transformers_version": "4.57.1",
    "use_qk_norm": True,
}
FINE_TUNE_UNSLOTH = QWEN3_30B_A3B | {
    "pad_token_id": 151654,
    "partial_rotary_factor": 1.0,
    "unsloth_fixed": True,
    "unsloth_version": "2025.11.6",
}

PUBLISHED = {
    "Qwen3-30B-A3B": QWEN3_30B_A3B,
    "Qwen3-30B-A3B-Base": QWEN3_30B_A3B_BASE,
    "Qwen3-30B-A3B-2507": QWEN3_30B_A3B_2507,
    "Qwen3-30B-A3B with YaRN": QWEN3_30B_A3B_YARN,
    "Qwen3-235B-A22B": QWEN3_235B_A22B,
    "Qwen3-235B-A22B-2507": QWEN3_235B_A22B_2507,
    "Qwen3-Coder-30B-A3B": QWEN3_CODER_30B_A3B,
    "Qwen3-Coder-480B-A35B": QWEN3_CODER_480B_A35B,
    "fine-tune": FINE_TUNE,
    "fine-tune, unsloth": FINE_TUNE_UNSLOTH,
}

# What the -FP8 checkpoints and config_1m.json add.
FP8 = {
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm", "model.layers.0.mlp.gate"],
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
}
DUAL_CHUNK = {
    "max_position_embeddings": 1010000,
    "dual_chunk_attention_config": {
        "chunk_size": 262144,
        "local_size": 8192,
        "original_max_position_embeddings": 262144,
        "sparse_attention_config": "sparse_attention_config.json",
        "sparse_attention_enabled": True,
    },
}
