"""How a published Qwen3-MoE checkpoint is laid out, for the tiny one of the tests.

Owns config.json in the published spelling, the tensors' published names (one tensor per expert), the sharded
safetensors files with their index, and the tokenizer's and generation's configurations. Knows nothing of training,
nor of this project's packages.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

END_OF_TEXT, IM_START, IM_END = SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 2048
END_OF_TEXT_ID, IM_END_ID = VOCAB_SIZE - 3, VOCAB_SIZE - 1  # the special tokens are the last, as in Qwen's vocabulary
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": END_OF_TEXT_ID,
    "decoder_sparse_step": 1,
    "eos_token_id": IM_END_ID,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
    "max_window_layers": 4,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
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
    "vocab_size": VOCAB_SIZE,
}
NUM_SHARDS = 2


def published_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights under their published names: the fused experts are cut into one tensor each."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.bfloat16().cpu()
        prefix, is_experts, projection = name.rpartition("experts.")
        if not is_experts:
            tensors[name] = tensor
        for expert_idx, expert in enumerate(tensor if is_experts else ()):
            names = ["gate_proj", "up_proj"] if projection == "gate_up_proj" else ["down_proj"]
            for part, weight in zip(names, expert.chunk(len(names)), strict=True):
                tensors[f"{prefix}experts.{expert_idx}.{part}.weight"] = weight
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_weights(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Shards of about equal size, filled in the model's order, and their index."""
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    shards, filled = [{} for _ in range(NUM_SHARDS)], 0
    for name, tensor in tensors.items():
        shards[filled * NUM_SHARDS // total_size][name] = tensor
        filled += tensor.nbytes
    weight_map = {}
    for shard_idx, shard in enumerate(shards, 1):
        file_name = f"model-{shard_idx:05d}-of-{NUM_SHARDS:05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    save_json(index, folder / "model.safetensors.index.json")


def save_json(value: dict, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and the configurations that name the special tokens."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    added = {str(tokenizer.token_to_id(token)): {"content": token} | flags for token in SPECIAL_TOKENS}
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": CONFIG["max_position_embeddings"],
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    save_json(tokenizer_config, folder / "tokenizer_config.json")


def save_checkpoint(model: torch.nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(published_tensors(model), folder)
    save_tokenizer(tokenizer, folder)
    save_json(CONFIG, folder / "config.json")
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    ends = {"bos_token_id": END_OF_TEXT_ID, "pad_token_id": END_OF_TEXT_ID, "eos_token_id": [IM_END_ID, END_OF_TEXT_ID]}
    save_json(ends | sampling | {"transformers_version": "4.51.0"}, folder / "generation_config.json")
