"""Published configs in both spellings parse; everything that is not implemented is refused by name."""

from __future__ import annotations

import json

import pytest
from model_zoo import BASE, CURRENT_SPELLING, MODEL_NAMES, TRAINED, ZooModel
from published_configs import DUAL_CHUNK, FP8, PUBLISHED, QWEN3_30B_A3B, QWEN3_CODER_480B_A35B
from transformers import AutoConfig, Qwen3MoeConfig

from qwen3moe_export.config import load_config, parse_config
from qwen3moe_plugins.errors import InputError


def parse(values):
    return parse_config(values, "config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_parse(name):
    values = PUBLISHED[name]
    config = parse(values)
    assert (config.num_layers, config.num_experts) == (values["num_hidden_layers"], values["num_experts"])
    assert (config.head_dim, config.top_k, config.rope.theta) == (128, 8, values["rope_theta"])
    assert config.norm_topk_prob and all(config.is_sparse(layer_idx) for layer_idx in range(config.num_layers))


def test_every_field_of_a_published_config():
    config = parse(QWEN3_CODER_480B_A35B)
    assert (config.vocab_size, config.hidden_size, config.num_heads, config.num_kv_heads) == (151936, 6144, 96, 8)
    assert (config.intermediate_size, config.moe_intermediate_size, config.num_experts) == (8192, 2560, 160)
    assert (config.rms_norm_eps, config.max_position_embeddings, config.dtype) == (1e-6, 262144, "bf16")
    assert not config.attention_bias and not config.tie_word_embeddings
    assert config.scale == pytest.approx(128**-0.5)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_both_spellings_are_one_config(stages, tmp_path, name):
    """What transformers 5 writes of a config in either spelling reads as the same architecture."""
    before = stages.config(name)
    AutoConfig.from_pretrained(stages.zoo.path(name)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "num_local_experts" in saved and "rope_parameters" in saved
    assert load_config(tmp_path) == before


def test_everything_transformers_can_write_is_known():
    """With every key of its base class, defaults included."""
    values = json.loads(Qwen3MoeConfig(dtype="bfloat16").to_json_string(use_diff=False))
    assert parse(values).num_experts == 128


def test_config_file_and_its_folder_are_the_same():
    assert load_config(TRAINED) == load_config(TRAINED / "config.json")


@pytest.mark.parametrize(
    ("options", "sparse"),
    [
        ({"num_hidden_layers": 5}, [0, 1, 2, 3, 4]),
        ({"num_hidden_layers": 5, "decoder_sparse_step": 2}, [1, 3]),
        ({"num_hidden_layers": 5, "mlp_only_layers": [0, 3]}, [1, 2, 4]),
        ({"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1, 5]),
        ({"num_hidden_layers": 2, "num_experts": 0}, []),
    ],
)
def test_which_layers_are_sparse(options, sparse):
    config = parse(BASE | options)
    assert [layer_idx for layer_idx in range(config.num_layers) if config.is_sparse(layer_idx)] == sparse


@pytest.mark.parametrize(
    ("rope_scaling", "rope_type", "factor"),
    [
        (None, "default", 1.0),
        ({"rope_type": "default"}, "default", 1.0),
        ({"type": "linear", "factor": 2.5}, "linear", 2.5),
        ({"rope_type": "yarn", "type": "yarn", "factor": 4}, "yarn", 4.0),
    ],
)
def test_rope_scaling(rope_scaling, rope_type, factor):
    rope = parse(BASE | {"rope_scaling": rope_scaling}).rope
    assert (rope.rope_type, rope.factor, rope.theta) == (rope_type, factor, 10000.0)
    assert rope.original_max_position_embeddings == BASE["max_position_embeddings"]


CURRENT = ZooModel(CURRENT_SPELLING).config
YARN = {"rope_type": "yarn", "factor": 4.0}

# What is changed, the key that the message names, and what else it must say.
REFUSED = {
    "another architecture": ({"model_type": "qwen3_next"}, "model_type", "qwen3_moe"),
    "no model type": ({"model_type": None}, "model_type", "qwen3_moe"),
    "another class": ({"architectures": ["Qwen3MoeForSequenceClassification"]}, "architectures", "ForCausalLM"),
    "sliding window": ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window", "False"),
    "sliding layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types", "sliding_attention"),
    "layer types of a wrong type": ({"layer_types": 5}, "layer_types", "full_attention"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act", "silu"),
    "fp8 checkpoint": (FP8, "quantization_config", "fp8"),
    "dual chunk attention": (DUAL_CHUNK, "dual_chunk_attention_config", "full attention"),
    "shared experts": ({"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size", "512"),
    "no qk norm": ({"use_qk_norm": False}, "use_qk_norm", "True"),
    "qkv bias": ({"qkv_bias": True}, "qkv_bias", "False"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "1.0"),
    "dynamic rope": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type", "linear, yarn"),
    "llama3 rope": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type", "llama3"),
    "rope key": ({"rope_scaling": {**YARN, "short_factor": [1.0]}}, "rope_scaling", "short_factor"),
    "yarn without factor": ({"rope_scaling": {"rope_type": "yarn"}}, "factor", "nothing"),
    "yarn base 1": ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta", "above 1"),
    "rope scaling a number": ({"rope_scaling": 4.0}, "rope_scaling", "object"),
    "negative factor": ({"rope_scaling": {"type": "linear", "factor": -2}}, "factor", "above 0"),
    "infinite base": ({"rope_theta": float("inf")}, "rope_theta", "above 0"),
    "base that is no number": ({"rope_theta": "1e6"}, "rope_theta", "'1e6'"),
    "two bases": ({"rope_scaling": {"rope_theta": 5.0}}, "rope_theta", "10000.0 beside 5.0"),
    "two ropes": ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}}, "rope_scaling", "beside"),
    "two numbers of experts": ({"num_local_experts": 11}, "num_experts", "10 beside num_local_experts 11"),
    "two dtypes": ({"dtype": "float16"}, "torch_dtype", "float32 beside dtype float16"),
    "another dtype": ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype", "bfloat16"),
    "dtype that is no name": ({"torch_dtype": ["bfloat16"]}, "torch_dtype", "bfloat16"),
    "unknown key": ({"auto_map": {"AutoConfig": "x"}}, "config.json", "unknown keys auto_map"),
    "no hidden size": ({"hidden_size": None}, "hidden_size", "nothing"),
    "no kv heads": ({"num_key_value_heads": None}, "num_key_value_heads", "nothing"),
    "float layers": ({"num_hidden_layers": 2.0}, "num_hidden_layers", "2.0"),
    "boolean heads": ({"num_attention_heads": True}, "num_attention_heads", "True"),
    "zero vocabulary": ({"vocab_size": 0}, "vocab_size", "at least 1"),
    "kv heads that do not divide": ({"num_key_value_heads": 4}, "num_key_value_heads", "divisor"),
    "odd head_dim": ({"head_dim": 21}, "head_dim", "even"),
    "more active than experts": ({"num_experts_per_tok": 11}, "num_experts_per_tok", "at most num_experts 10"),
    "layers that are not there": ({"mlp_only_layers": [0, 2]}, "mlp_only_layers", "[2]"),
    "layers of a wrong type": ({"mlp_only_layers": "0,1"}, "mlp_only_layers", "list of integers"),
    "flag that is none": ({"norm_topk_prob": 1}, "norm_topk_prob", "true or false"),
    "no eps": ({"rms_norm_eps": 0}, "rms_norm_eps", "above 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what):
    change, key, said = REFUSED[what]
    with pytest.raises(InputError) as error:
        parse(BASE | change)
    message = str(error.value)
    assert message.startswith("config.json: ") and key in message.split(": got")[0] and said in message
    assert "\n" not in message and len(message) < 400


def test_current_spelling_is_refused_by_the_same_names():
    with pytest.raises(InputError, match=r"num_experts: got nothing"):
        parse({key: value for key, value in CURRENT.items() if key != "num_local_experts"})
    with pytest.raises(InputError, match="rope_type: got longrope"):
        parse(CURRENT | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}})


def test_a_config_is_hashed_by_its_meaning():
    assert parse(QWEN3_30B_A3B).sha256 == parse(QWEN3_30B_A3B | {"use_cache": False}).sha256
    assert parse(QWEN3_30B_A3B).sha256 != parse(QWEN3_30B_A3B | {"rope_theta": 1e7}).sha256
