"""Any executor as a stage: the schedule as packed batches, generation by the engine's own scheduler.

Owns: the block tables of the schedule. Must not know which executor it drives, nor torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_export.verify.inputs import Inputs
from qwen3moe_export.verify.stages import Greedy, Stage, StageDescription, StageOutputs

BLOCK_SIZE = 16
_MAX_STEP_TOKENS = 64
_BLOCK_SEED = 1


class InspectableExecutor(Executor, Protocol):
    """An executor that can show more than logits."""

    def execute_all(self, batch: Batch) -> dict[str, NDArray]:
        """Outputs of a step by name, `logits` [N, V] and hidden states [N, H] among them."""
        ...


def executor_stage(
    description: StageDescription,
    open_executor: Callable[[int], Executor],
    vocab_size: int,
    hidden_states: tuple[str, ...] = (),
) -> Stage:
    """`open_executor` makes the executor with a KV pool of so many blocks of BLOCK_SIZE tokens. `hidden_states` names
    what enters each layer and the final norm among its `execute_all`'s outputs; none if it cannot show them."""

    def run(inputs: Inputs) -> StageOutputs:
        with contextlib.closing(open_executor(num_blocks_needed(inputs))) as executor:
            logits, states = _run_schedule(executor, inputs, hidden_states)
            return StageOutputs(logits, states, _generate(executor, inputs, vocab_size))

    return Stage(description, run)


def num_blocks_needed(inputs: Inputs) -> int:
    """Blocks for all sequences at once, and for all prompts and their continuations."""
    continued = sum(num_blocks_for(len(prompt) + inputs.max_new_tokens, BLOCK_SIZE) for prompt in inputs.prompts)
    return max(sum(num_blocks_for(len(tokens), BLOCK_SIZE) for tokens in inputs.sequences), continued)


def _run_schedule(
    executor: Executor, inputs: Inputs, names: tuple[str, ...]
) -> tuple[tuple[NDArray[np.float32], ...], tuple[NDArray[np.float32], ...] | None]:
    """Logits of each sequence and, if there are names, its hidden states."""
    tables, num_computed = _block_tables(executor, inputs), [0] * len(inputs.sequences)
    parts: list[list[dict[str, NDArray]]] = [[] for _ in inputs.sequences]
    for step in inputs.schedule:
        news = [
            SequenceStep(inputs.sequences[seq][start : start + item.num_new], start, tables[seq])
            for item in step
            for seq, start in [(item.sequence, num_computed[item.sequence])]
        ]
        batch = pack_batch(news, executor.block_size)  # logits of every token, so the final norm sees every token
        outputs = executor.execute_all(batch) if names else {"logits": executor.execute(batch).rows()}  # type: ignore[attr-defined]
        for item, start, end in zip(step, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
            parts[item.sequence].append({name: outputs[name][start:end] for name in ("logits", *names)})
            num_computed[item.sequence] += item.num_new
    logits = tuple(np.concatenate([part["logits"] for part in sequence]) for sequence in parts)
    if not names:
        return logits, None
    return logits, tuple(
        np.stack([np.concatenate([part[name] for part in sequence]) for name in names]) for sequence in parts
    )


def _block_tables(executor: Executor, inputs: Inputs) -> list[list[int]]:
    """Blocks in a shuffled order: a sequence whose blocks lay side by side would hide a wrong block table."""
    blocks = iter(np.random.default_rng(_BLOCK_SEED).permutation(executor.num_blocks).tolist())
    return [
        [next(blocks) for _ in range(num_blocks_for(len(tokens), executor.block_size))] for tokens in inputs.sequences
    ]


def _generate(executor: Executor, inputs: Inputs, vocab_size: int) -> Greedy:
    blocks = BlockManager(executor.num_blocks, executor.block_size)
    scheduler = Scheduler(blocks, executor.max_model_len, _MAX_STEP_TOKENS, max_seqs=len(inputs.prompts))
    engine = Engine(executor, scheduler, vocab_size, eos_token_ids=())
    prompts = [prompt.tolist() for prompt in inputs.prompts]
    completions = engine.generate(prompts, SamplingParams(inputs.max_new_tokens, ignore_eos=True))
    return Greedy(np.array([completion.token_ids for completion in completions], np.int32))
