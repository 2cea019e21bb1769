"""The architecture of a checkpoint, read from its config.json.

Owns: both spellings of the keys (published, and transformers 5's), defaults, and the refusal by name of everything this
project does not implement. Must not know torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen3moe_plugins.errors import InputError, name_list

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
ROPE_TYPES = ("default", "linear", "yarn")

# Keys that change nothing about inference of one token sequence, or that only training or generation reads.
INERT_KEYS = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "max_window_layers",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "sliding_window",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    ]
)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding. `factor` and what follows are None or unused where `rope_type` does not read them."""

    rope_type: str
    theta: float
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None
    beta_fast: float
    beta_slow: float
    mscale: float | None
    mscale_all_dim: float | None
    truncate: bool


@dataclass(frozen=True)
class Qwen3MoeConfig:
    """A Qwen3-MoE architecture. `dtype` is what the checkpoint says it is stored in: bf16, fp16 or fp32."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    top_k: int
    norm_topk_prob: bool
    decoder_sparse_step: int
    mlp_only_layers: tuple[int, ...]
    rms_norm_eps: float
    max_position_embeddings: int
    attention_bias: bool
    tie_word_embeddings: bool
    rope: RopeConfig
    dtype: str

    def is_sparse(self, layer_idx: int) -> bool:
        """Whether the layer's feed-forward is a mixture of experts (else a dense MLP)."""
        on_step = (layer_idx + 1) % self.decoder_sparse_step == 0
        return self.num_experts > 0 and on_step and layer_idx not in self.mlp_only_layers

    @property
    def scale(self) -> float:
        """Of query . key before the softmax."""
        return self.head_dim**-0.5

    @property
    def sha256(self) -> str:
        """Binds an export, and what was measured on it, to this architecture."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def load_config(checkpoint: Path) -> Qwen3MoeConfig:
    """Reads config.json in the folder `checkpoint` (or the file itself). Raises InputError."""
    path = checkpoint / "config.json" if checkpoint.is_dir() else checkpoint
    if path.suffix != ".json" or not path.is_file():
        raise InputError(
            str(checkpoint),
            got="no config.json",
            expected="a checkpoint folder with config.json, or the file",
            remedy="give the folder that `huggingface-cli download` or save_pretrained wrote",
        )
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), got=f"invalid JSON ({error})", expected="a JSON object", remedy="fetch the file again"
        ) from None
    if not isinstance(values, dict):
        raise InputError(str(path), got=type(values).__name__, expected="a JSON object", remedy="fetch the file again")
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], where: str) -> Qwen3MoeConfig:
    """The architecture that the dictionary `values` describes; `where` names it in errors. Raises InputError."""
    keys = _Keys(values, where)
    _refuse_other_architectures(keys)
    hidden_size, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    max_position_embeddings = keys.integer("max_position_embeddings")
    config = Qwen3MoeConfig(
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=keys.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=keys.integer("num_key_value_heads"),
        head_dim=keys.integer("head_dim", max(1, hidden_size // num_heads)),
        intermediate_size=keys.integer("intermediate_size"),
        moe_intermediate_size=keys.integer("moe_intermediate_size"),
        num_experts=keys.integer("num_experts", alias="num_local_experts", minimum=0),
        top_k=keys.integer("num_experts_per_tok"),
        norm_topk_prob=keys.boolean("norm_topk_prob", False),
        decoder_sparse_step=keys.integer("decoder_sparse_step", 1),
        mlp_only_layers=keys.integers("mlp_only_layers"),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_position_embeddings,
        attention_bias=keys.boolean("attention_bias", False),
        tie_word_embeddings=keys.boolean("tie_word_embeddings", False),
        rope=_parse_rope(keys, max_position_embeddings),
        dtype=_parse_dtype(keys),
    )
    keys.finish()
    _check_consistency(config, where)
    return config


def _refuse_other_architectures(keys: _Keys) -> None:
    keys.must_be("model_type", "qwen3_moe", required=True)
    keys.must_be("architectures", ["Qwen3MoeForCausalLM"])
    keys.must_be("hidden_act", "silu")
    keys.must_be("use_sliding_window", False)
    keys.must_be("use_qk_norm", True)
    keys.must_be("qkv_bias", False)
    keys.must_be("shared_expert_intermediate_size", 0)
    keys.must_be("partial_rotary_factor", 1.0)
    layer_types = keys.take("layer_types") or []
    if not isinstance(layer_types, list) or any(item != "full_attention" for item in layer_types):
        keys.refuse("layer_types", layer_types, "full_attention in every layer")
    if keys.take("dual_chunk_attention_config") is not None:
        keys.refuse("dual_chunk_attention_config", "dual chunk attention", "full attention, as in config.json")
    quantization = keys.take("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        keys.refuse("quantization_config", method, "none, that is weights in bf16, fp16 or fp32")


def _parse_rope(keys: _Keys, max_position_embeddings: int) -> RopeConfig:
    theta = keys.take("rope_theta")
    published, current = keys.take("rope_scaling"), keys.take("rope_parameters")
    if published is not None and current is not None and published != current:
        keys.refuse("rope_scaling", f"{published} beside rope_parameters {current}", "one of them")
    given = current if current is not None else published
    if given is not None and not isinstance(given, dict):
        keys.refuse("rope_scaling", given, "an object or null")
    rope = _Keys(given or {}, f"{keys.where}: rope_scaling")
    rope_type = rope.take("rope_type") or rope.take("type") or "default"
    rope.take("type")
    if rope_type not in ROPE_TYPES:
        rope.refuse("rope_type", rope_type, f"one of {', '.join(ROPE_TYPES)}")
    rope.must_be("partial_rotary_factor", 1.0)
    inner_theta = rope.take("rope_theta")
    if theta is not None and inner_theta is not None and theta != inner_theta:
        keys.refuse("rope_theta", f"{theta} beside {inner_theta} in rope_parameters", "one value")
    theta = theta if theta is not None else inner_theta
    parsed = RopeConfig(
        rope_type=rope_type,
        theta=_positive(10000.0 if theta is None else theta, f"{keys.where}: rope_theta"),
        factor=rope.number("factor", 1.0 if rope_type == "default" else None),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings", max_position_embeddings),
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.boolean("truncate", True),
    )
    rope.finish()
    return parsed


def _parse_dtype(keys: _Keys) -> str:
    published, current = keys.take("torch_dtype"), keys.take("dtype")
    if published is not None and current is not None and published != current:
        keys.refuse("torch_dtype", f"{published} beside dtype {current}", "one value")
    name = current or published or "float32"
    if not isinstance(name, str) or name not in DTYPES:
        keys.refuse("torch_dtype", name, f"one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_consistency(config: Qwen3MoeConfig, where: str) -> None:
    def require(holds: bool, key: str, got: object, expected: str) -> None:
        if not holds:
            raise InputError(f"{where}: {key}", got=got, expected=expected, remedy="correct config.json")

    heads, kv_heads = config.num_heads, config.num_kv_heads
    require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    require(config.head_dim % 2 == 0, "head_dim", config.head_dim, "an even number (rotary halves)")
    rope = config.rope
    require(rope.rope_type != "yarn" or rope.theta > 1, "rope_theta", rope.theta, "a number above 1, for yarn")
    sparse = any(config.is_sparse(layer_idx) for layer_idx in range(config.num_layers))
    require(
        not sparse or config.top_k <= config.num_experts,
        "num_experts_per_tok",
        config.top_k,
        f"at most num_experts {config.num_experts}",
    )
    outside = [layer_idx for layer_idx in config.mlp_only_layers if not 0 <= layer_idx < config.num_layers]
    require(not outside, "mlp_only_layers", outside, f"layers 0 to {config.num_layers - 1}")


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        got = "nothing" if value is None else repr(value)
        raise InputError(what, got=got, expected="a number above 0", remedy="correct config.json")
    return float(value)


class _Keys:
    """The keys of a JSON object, each taken once; `finish` refuses those that nobody took."""

    def __init__(self, values: dict[str, Any], where: str):
        self._left = dict(values)
        self.where = where

    def take(self, key: str) -> Any:
        return self._left.pop(key, None)

    def refuse(self, key: str, got: object, expected: object) -> None:
        raise InputError(f"{self.where}: {key}", got=got, expected=expected, remedy="nothing else is implemented")

    def must_be(self, key: str, value: object, required: bool = False) -> None:
        got = self.take(key)
        if got != value and (required or got is not None):
            self.refuse(key, repr(got), repr(value))

    def integer(self, key: str, default: int | None = None, alias: str | None = None, minimum: int = 1) -> int:
        value, other = self.take(key), self.take(alias) if alias else None
        if value is not None and other is not None and value != other:
            self.refuse(key, f"{value} beside {alias} {other}", "one value")
        value = next((v for v in (value, other, default) if v is not None), None)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            got = "nothing" if value is None else repr(value)
            raise InputError(
                f"{self.where}: {key}",
                got=got,
                expected=f"an integer of at least {minimum}",
                remedy="correct config.json",
            )
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.take(key) or []
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise InputError(
                f"{self.where}: {key}", got=repr(value), expected="a list of integers", remedy="correct config.json"
            )
        return tuple(value)

    def number(self, key: str, default: float | None) -> float:
        value = self.take(key)
        return _positive(default if value is None else value, f"{self.where}: {key}")

    def optional_number(self, key: str) -> float | None:
        value = self.take(key)
        return None if value is None else _positive(value, f"{self.where}: {key}")

    def boolean(self, key: str, default: bool) -> bool:
        value = self.take(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise InputError(
                f"{self.where}: {key}", got=repr(value), expected="true or false", remedy="correct config.json"
            )
        return value

    def finish(self) -> None:
        unknown = set(self._left) - INERT_KEYS
        if unknown:
            raise InputError(
                self.where,
                got=f"unknown keys {name_list(unknown)}",
                expected="keys of a Qwen3-MoE config",
                remedy="remove them if they do not change the architecture; otherwise it is not implemented",
            )
