"""Hugging Face transformers as a stage: the implementation that shares no line with ours.

Each sequence goes through in one pass and generation through its own cache, so that the schedule itself is checked too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, Qwen3MoeForCausalLM
from transformers.utils import logging

from qwen3moe_export.verify.inputs import Inputs
from qwen3moe_export.verify.reference_stage import as_float32, recorded_inputs
from qwen3moe_export.verify.stages import Greedy, Stage, StageDescription, StageOutputs


def transformers_stage(description: StageDescription, checkpoint: Path) -> Stage:
    """The checkpoint as transformers loads it, in fp32."""
    assert description.precision.arithmetic == "fp32", description

    @torch.no_grad()
    def run(inputs: Inputs) -> StageOutputs:
        model = _load(checkpoint)
        pairs = [_forward(model, tokens) for tokens in inputs.sequences]
        logits, hidden_states = zip(*pairs, strict=True)
        ids = [_continue(model, prompt, inputs.max_new_tokens) for prompt in inputs.prompts]
        return StageOutputs(logits, hidden_states, Greedy(np.array(ids, np.int32)))

    return Stage(description, run)


def _load(checkpoint: Path) -> Any:
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        loaded = Qwen3MoeForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
    finally:
        logging.set_verbosity(verbosity)
    loaded.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # greedy, and no token ends a sequence
    return loaded.eval()


def _forward(model: Any, tokens: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits [length, V] and hidden states [L + 1, length, H]."""
    with recorded_inputs([*model.model.layers, model.model.norm]) as records:
        logits = model(input_ids=torch.from_numpy(tokens)[None].long()).logits[0]
    return as_float32(logits), as_float32(torch.cat([record[0] for record in records]))


def _continue(model: Any, prompt: NDArray[np.int32], num_new: int) -> list[int]:
    ids = torch.from_numpy(prompt)[None].long()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_new,
    )
    return list(out[0, len(prompt) :].tolist())
