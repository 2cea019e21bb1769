"""Routers of pseudo-random weights that prefer some experts: how much of a step's work these get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen3moe_engine.bench.bound import touched_experts
from qwen3moe_engine.checkpoint import StoredTensor
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.random_model import RandomWeights, RouterSkew, value_ranges
from qwen3moe_plugins.errors import InputError

HIDDEN_SIZE, NUM_EXPERTS, TOP_K, NUM_TOKENS = 2048, 128, 8, 2000


def draw(rng, name, shape, skew):
    tensor, values = StoredTensor(name, "fp16", shape, Path(), 0), np.full(shape, np.nan, np.float32)
    for span in value_ranges(tensor, skew, TOP_K):
        rows = values[span.first : span.end]
        rows[:] = rng.uniform(span.low, span.high, rows.shape)
    assert not np.isnan(values).any(), "every row has a range"
    return values


def chosen_experts(skew) -> np.ndarray:
    """[tokens, TOP_K]: of a first layer without attention."""
    rng = np.random.default_rng(3)
    x = draw(rng, "model.embed_tokens.weight", (NUM_TOKENS, HIDDEN_SIZE), skew)
    x *= draw(rng, "model.layers.0.post_attention_layernorm.weight", (HIDDEN_SIZE,), skew)
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    logits = x @ draw(rng, "model.layers.0.mlp.gate.weight", (NUM_EXPERTS, HIDDEN_SIZE), skew).T
    return np.argsort(-logits, axis=1)[:, :TOP_K]


@pytest.mark.parametrize(
    "skew", [RouterSkew(0.5, 8), RouterSkew(0.9, 8), RouterSkew(0.9, 64), RouterSkew(0.7, 64)], ids=str
)
def test_preferred_experts_take_their_share_evenly(skew):
    counts = np.bincount(chosen_experts(skew).ravel(), minlength=NUM_EXPERTS)
    preferred = counts[: skew.num_experts]
    assert preferred.sum() / counts.sum() == pytest.approx(skew.share, abs=0.05)
    assert preferred.std() < 0.3 * preferred.mean()


@pytest.mark.parametrize("skew", [None, RouterSkew(0.5, 8), RouterSkew(0.9, 8), RouterSkew(0.9, 64)], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 8, 50])
def test_the_bound_counts_the_experts_that_tokens_choose(skew, num_tokens):
    groups = chosen_experts(skew).reshape(-1, num_tokens * TOP_K)
    touched = np.mean([len(np.unique(group)) for group in groups])
    assert touched_experts(NUM_EXPERTS, TOP_K, num_tokens, skew) == pytest.approx(touched, rel=0.2)


def test_without_a_skew_all_have_the_same():
    counts = np.bincount(chosen_experts(None).ravel(), minlength=NUM_EXPERTS)
    assert counts.std() < 0.2 * counts.mean()


def test_tensors_have_streams_of_their_own():
    weights = RandomWeights(7)
    assert len({weights.seed_of(name) for name in ("a", "b")} | {RandomWeights(8).seed_of("a")}) == 3


@pytest.mark.parametrize("text", ["", "0.9", "1.5/8", "0.9/0", "-.5/8", "0.9/8/8"])
def test_what_is_no_skew_is_refused(text):
    with pytest.raises(InputError, match=r"--router-skew: got .* such as 0.9/8"):
        RouterSkew.parse(text, "--router-skew")


@pytest.mark.parametrize("text", ["0.9/128", "0.01/8", "0.9/7"])
def test_a_share_that_experts_cannot_take_is_refused(text):
    with pytest.raises(InputError, match=r"router_skew: got .*expected fewer than 128 experts, and a share from"):
        chosen_experts(RouterSkew.parse(text, "--router-skew"))


def test_a_checkpoint_routes_as_it_does():
    options = EngineOptions("tensorrt", router_skew=RouterSkew(0.9, 8))
    with pytest.raises(InputError, match="router_skew: got a checkpoint's weights"):
        options.check(Path("checkpoint"))
