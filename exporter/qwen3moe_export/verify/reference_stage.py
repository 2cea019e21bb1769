"""The torch reference as a stage, in any precision.

Owns: running it over the schedule one sequence at a time, and the hooks that record hidden states. Must not know the
packed program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qwen3moe_engine.checkpoint import Checkpoint
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.load import load_reference
from qwen3moe_export.model import Qwen3MoeForCausalLM
from qwen3moe_export.verify.inputs import Inputs
from qwen3moe_export.verify.stages import NUM_CANDIDATES, Greedy, Stage, StageDescription, StageOutputs


def reference_stage(
    description: StageDescription, config: Qwen3MoeConfig, checkpoint: Checkpoint, weights_dtype: str
) -> Stage:
    """The reference with weights rounded to `weights_dtype`, and the same arithmetic or, if described so, fp32."""
    arithmetic = description.precision.arithmetic
    assert arithmetic in (weights_dtype, "fp32"), description

    def run(inputs: Inputs) -> StageOutputs:
        model = load_reference(config, checkpoint, weights_dtype)
        return run_reference(model.float() if arithmetic == "fp32" else model, inputs)

    return Stage(description, run)


@torch.no_grad()
def run_reference(model: Qwen3MoeForCausalLM, inputs: Inputs) -> StageOutputs:
    """Each sequence in the chunks of the schedule, then each prompt."""
    pairs = [_forward(model, tokens, inputs.chunks(index)) for index, tokens in enumerate(inputs.sequences)]
    logits, hidden_states = zip(*pairs, strict=True)
    return StageOutputs(logits, hidden_states, _generate(model, inputs.prompts, inputs.max_new_tokens))


@contextlib.contextmanager
def recorded_inputs(modules: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """For each module the first argument of each of its calls, while the context lasts."""
    records: list[list[Tensor]] = [[] for _ in modules]

    def recorder(record: list[Tensor]):  # type: ignore[no-untyped-def]
        return lambda module, args: record.append(args[0])

    hooks = [
        module.register_forward_pre_hook(recorder(record)) for module, record in zip(modules, records, strict=True)
    ]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def as_float32(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.float().numpy(), np.float32)


def _forward(
    model: Qwen3MoeForCausalLM, tokens: NDArray[np.int32], chunks: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits [length, V] and hidden states [L + 1, length, H]."""
    cache = model.new_cache()
    with recorded_inputs([*model.model.layers, model.model.norm]) as records:
        logits = [model(chunk, cache) for chunk in torch.from_numpy(tokens).split(chunks)]
    hidden_states = torch.stack([torch.cat(record) for record in records])
    return as_float32(torch.cat(logits)), as_float32(hidden_states)


def _generate(model: Qwen3MoeForCausalLM, prompts: Sequence[NDArray[np.int32]], num_new: int) -> Greedy:
    runs = [_continue(model, torch.from_numpy(prompt), num_new) for prompt in prompts]
    ids, candidate_ids, candidate_logits = (np.array(part) for part in zip(*runs, strict=True))
    return Greedy(ids.astype(np.int32), candidate_ids.astype(np.int32), candidate_logits.astype(np.float32))


def _continue(
    model: Qwen3MoeForCausalLM, tokens: Tensor, num_new: int
) -> tuple[list[int], list[list[int]], list[list[float]]]:
    """Ids [N], and the K best ids and logits at each [N, K]. K is less where the vocabulary is."""
    cache, ids, candidates = model.new_cache(), [], []
    for _ in range(num_new):
        logits = model(tokens, cache)[-1].float()
        ids.append(int(logits.argmax()))
        candidates.append(logits.topk(min(NUM_CANDIDATES, len(logits))))
        tokens = torch.tensor(ids[-1:])
    return ids, [best.indices.tolist() for best in candidates], [best.values.tolist() for best in candidates]
