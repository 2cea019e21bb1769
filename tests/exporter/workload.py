"""The inputs that every stage is compared on: prefill, chunked prefill and decode, mixed in one batch.

Owns: what runs in which step, and how each kind of stage is driven through it. Every driver returns the logits of all
new tokens, step after step and in a step sequence after sequence, [tokens, vocab_size] in fp32.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwen3moe_engine.batch import Batch, SequenceStep, pack_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeExecutor
from qwen3moe_engine.weights import cos_sin_cache, plan_manifest, rank_constants
from qwen3moe_export.capture import TORCH_DTYPES, arrange, capture
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.load import as_torch

# New tokens of four sequences in each step. 0 is an empty continuation (the third has not even begun at first), 1 is a
# decode, more is (chunked) prefill; contexts end before, on and behind the ends of blocks of 16 and 32 tokens.
STEPS = ((20, 5, 0, 1), (12, 1, 17, 0), (1, 0, 15, 1), (27, 1, 1, 1))

NUM_PADDING = 3
GARBAGE = -12345  # in entries of the block table that nothing may read


@dataclass(frozen=True)
class Workload:
    """Sequences of ids [n] or embeddings [n, H], and the number of their tokens that each step takes."""

    sequences: tuple[Tensor, ...]
    steps: tuple[tuple[int, ...], ...] = STEPS

    def chunks(self) -> list[list[tuple[int, int]]]:
        """For each step and sequence: tokens in the cache before, and with the new ones."""
        bounds = np.cumsum([[0] * len(self.sequences), *self.steps], axis=0).tolist()
        return [list(zip(before, after, strict=True)) for before, after in itertools.pairwise(bounds)]

    def to(self, dtype: torch.dtype) -> Workload:
        """The same with embeddings in `dtype`."""
        return Workload(tuple(s.to(dtype) if s.is_floating_point() else s for s in self.sequences), self.steps)


def token_workload(vocab_size: int, seed: int = 0) -> Workload:
    generator = torch.Generator().manual_seed(seed)
    lengths = np.sum(STEPS, axis=0).tolist()
    return Workload(tuple(torch.randint(vocab_size, (length,), generator=generator) for length in lengths))


def run_reference(model, workload: Workload) -> Tensor:
    """One sequence at a time, each with a cache of its own."""
    caches = [model.new_cache() for _ in workload.sequences]
    with torch.no_grad():
        return torch.cat(
            [
                model(tokens[start:end], cache).float()
                for chunks in workload.chunks()
                for tokens, cache, (start, end) in zip(workload.sequences, caches, chunks, strict=True)
            ]
        )


def run_transformers(model, workload: Workload) -> Tensor:
    """The same by transformers, which cannot continue with nothing: empty chunks are left out."""
    caches: list = [None] * len(workload.sequences)
    logits = []
    with torch.no_grad():
        for chunks in workload.chunks():
            for index, (tokens, (start, end)) in enumerate(zip(workload.sequences, chunks, strict=True)):
                if start == end:
                    continue
                name = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
                out = model(**{name: tokens[None, start:end]}, past_key_values=caches[index], use_cache=True)
                caches[index] = out.past_key_values
                logits.append(out.logits[0].float())
    return torch.cat(logits)


def paged_batches(workload: Workload, block_size: int, seed: int = 0) -> tuple[list[Batch], int]:
    """The steps packed for a paged pool, and the number of its blocks: blocks in random order, entries of the table
    behind a sequence's blocks garbage, and padding tokens at the end of the batch."""
    lengths = np.sum(workload.steps, axis=0)
    needed = [num_blocks_for(int(length), block_size) for length in lengths]
    num_blocks = sum(needed) + 2
    order = np.random.default_rng(seed).permutation(num_blocks)
    block_ids = [ids.tolist() for ids in np.split(order, np.cumsum(needed))[: len(needed)]]
    return [_pack(workload, chunks, block_ids, block_size) for chunks in workload.chunks()], num_blocks


def _pack(workload: Workload, chunks: list[tuple[int, int]], block_ids: list[list[int]], block_size: int) -> Batch:
    steps = [
        SequenceStep(_numpy(tokens[start:end]), start, ids)
        for tokens, (start, end), ids in zip(workload.sequences, chunks, block_ids, strict=True)
    ]
    batch = pack_batch(steps, block_size)
    used = [num_blocks_for(end, block_size) for _, end in chunks]
    table = np.pad(batch.block_table, ((0, 0), (0, 2)))
    for row, num_used in zip(table, used, strict=True):
        row[num_used:] = GARBAGE
    return dataclasses.replace(
        batch,
        tokens=np.concatenate([batch.tokens, batch.tokens[:1].repeat(NUM_PADDING, axis=0)]),
        positions=np.concatenate([batch.positions, np.full(NUM_PADDING, 5, np.int32)]),
        block_table=table,
    )


def _numpy(tokens: Tensor) -> np.ndarray:
    return tokens.float().numpy() if tokens.is_floating_point() else tokens.numpy().astype(np.int32)


class ProgramExecutor:
    """The eager bodies of the custom operators, through the program that torch.export captured."""

    def __init__(self, config: Qwen3MoeConfig, manifest: Manifest, checkpoint: Path, num_blocks: int, block_size: int):
        captured = capture(config, manifest.dtype, manifest.takes_embeddings)
        self._manifest, self._program = manifest, captured.program.module()
        sizes = {"num_blocks": num_blocks, "block_size": block_size}
        self._values = {
            plan.spec.name: as_torch(plan, manifest.dtype)
            for plan in plan_manifest(manifest, open_checkpoint(checkpoint))
        }
        self._values |= {name: torch.from_numpy(array) for name, array in rank_constants(manifest).items()}
        self._values["cos_sin_cache"] = torch.from_numpy(cos_sin_cache(manifest.rope, config.max_position_embeddings))
        self._caches = [
            torch.zeros([sizes.get(size, size) for size in spec.shape], dtype=TORCH_DTYPES[spec.dtype])
            for spec in manifest.of_kind("kv_cache")
        ]

    def execute(self, batch: Batch) -> Tensor:
        names = [spec.name for spec in self._manifest.of_kind("kv_cache")]
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs().items()}
        if self._manifest.takes_embeddings:
            inputs["inputs_embeds"] = inputs["inputs_embeds"].to(TORCH_DTYPES[self._manifest.dtype])
        values = self._values | dict(zip(names, self._caches, strict=True)) | inputs
        with torch.no_grad():
            logits, self._caches = self._program(**arrange(self._manifest, values))
        return logits


def run_batches(executor: OnnxRuntimeExecutor | ProgramExecutor, batches: list[Batch]) -> Tensor:
    return torch.cat([_logits(executor, batch) for batch in batches])


def _logits(executor: OnnxRuntimeExecutor | ProgramExecutor, batch: Batch) -> Tensor:
    logits = executor.execute(batch)
    return logits if isinstance(logits, Tensor) else torch.from_numpy(logits.rows())
