"""The reference against transformers, the independent implementation, in fp32."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from model_zoo import MODEL_NAMES
from tolerance import FP32_LOGITS, assert_close_fp32
from transformers import Qwen3MoeForCausalLM
from workload import run_reference, run_transformers

from qwen3moe_export.model import Qwen3MoeForCausalLM as Reference


def load_transformers(stages, name: str) -> Qwen3MoeForCausalLM:
    return Qwen3MoeForCausalLM.from_pretrained(stages.zoo.path(name), dtype=torch.float32).eval()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_prefill_and_mixed_decode(stages, name):
    workload = stages.workload(name)
    found = run_reference(stages.reference(name, "fp32"), workload)
    assert_close_fp32(found, run_transformers(load_transformers(stages, name), workload))
    assert 1 < found.abs().max() < 30, "logits so flat or so large that the bound means nothing"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["trained", "rope_yarn_attention_factor", "mlp_only_layers"])
def test_padded_batch(stages, name, side):
    """transformers runs unequal prompts as one padded batch; with padding on the left, also a decode step of it."""
    model, reference = load_transformers(stages, name), stages.reference(name, "fp32")
    sequences = [tokens for tokens in stages.workload(name).sequences if len(tokens) > 1]
    prompts, last = [tokens[:-1] for tokens in sequences], torch.stack([tokens[-1:] for tokens in sequences])
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side=side)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side=side)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=True)
        logits = [rows[real.bool()] for rows, real in zip(out.logits, mask, strict=True)]
        if side == "left":
            lengths = mask.sum(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(lengths)], dim=-1)
            step = model(last, attention_mask=mask, position_ids=lengths, past_key_values=out.past_key_values)
            logits = [torch.cat(pair) for pair in zip(logits, step.logits, strict=True)]
        for tokens, expected in zip(sequences, logits, strict=True):
            assert_close_fp32(reference(tokens[: len(expected)], reference.new_cache()), expected)


@pytest.mark.parametrize("name", ["trained", "tied_embeddings", "inputs_embeds"])
def test_embeddings_instead_of_ids(stages, name):
    reference = stages.reference(name, "fp32")
    ids = torch.arange(2, 40)
    with torch.no_grad():
        by_embedding = reference(reference.model.embed_tokens(ids), reference.new_cache())
        assert torch.equal(by_embedding, reference(ids, reference.new_cache()))


def test_chunks_do_not_change_logits(stages):
    reference, workload = stages.reference("trained", "fp32"), stages.workload("trained")
    whole = dataclasses.replace(workload, steps=(tuple(len(tokens) for tokens in workload.sequences),))
    chunked = run_reference(reference, workload).split([n for lengths in workload.steps for n in lengths])
    num_seqs = len(workload.sequences)
    by_sequence = torch.cat([logits for index in range(num_seqs) for logits in chunked[index::num_seqs]])
    assert_close_fp32(by_sequence, run_reference(reference, whole))


def _without(**changes):
    return lambda config: dataclasses.replace(config, **changes)


def _without_rope(**changes):
    return lambda config: dataclasses.replace(config, rope=dataclasses.replace(config.rope, **changes))


IGNORED_OPTIONS = [
    ("published_bf16", _without_rope(theta=1e4)),
    ("current_spelling", _without(norm_topk_prob=True)),
    ("head_dim_implied", _without(rms_norm_eps=1e-6)),
    ("every_expert", _without(top_k=9)),
    ("rope_linear", _without_rope(rope_type="default")),
    ("rope_yarn", _without_rope(rope_type="default")),
    ("rope_yarn", _without_rope(rope_type="linear")),
    ("rope_yarn", _without_rope(attention_factor=1.0)),
    ("rope_yarn_attention_factor", _without_rope(attention_factor=None)),
    ("rope_yarn_attention_factor", _without_rope(beta_fast=32.0)),
    ("rope_yarn_attention_factor", _without_rope(beta_slow=1.0)),
    ("rope_yarn_mscale", _without_rope(mscale=None)),
    ("rope_yarn_mscale", _without_rope(truncate=True)),
]


@pytest.mark.parametrize(("name", "ignore"), IGNORED_OPTIONS)
def test_the_bound_tells_each_option(stages, name, ignore):
    """Ignoring an option of the config moves logits by a hundred times the bound, so the tests above would see it."""
    reference, workload = stages.reference(name, "fp32"), stages.workload(name)
    changed = Reference(ignore(reference.config)).eval()
    changed.load_state_dict(reference.state_dict())
    difference = run_reference(changed, workload) - run_reference(reference, workload)
    assert difference.abs().max() > 100 * FP32_LOGITS
