"""An export with what runs beside it: manifest, tokenizer, chat template, capacity.

Owns: reading and checking all of it before anything is loaded, and making the engine. Must not know which executor it
is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.chat_template import load_chat_template
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.executor_opening import capacity_of, open_executor
from qwen3moe_engine.prompt import PromptEncoder
from qwen3moe_engine.request import Request, check_params, check_token_ids
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.tokenizer import FILE_NAME, Tokenizer
from qwen3moe_engine.weights import Progress, no_progress

# ONNX Runtime writes its whole pool anew each step: one of the small model of the tests takes 2.6 ms with 1,024 tokens,
# 5.8 with 4,096, 29 with 16,384
_CPU_KV_TOKENS = 4096


class OpenedExport:
    """The folder `export`, to run with `weights`. tokenizer: a folder; None for that of the weights, if it has one.

    Raises InputError for what does not go together."""

    def __init__(self, export: Path, weights: Path | None, options: EngineOptions, tokenizer: Path | None = None):
        options.check(weights)
        self.export, self.weights, self.options = export, weights, options
        first = load_stages(export)[0]
        self.manifest = first.manifest
        self.manifest.require_token_ids(export)
        folder = tokenizer if tokenizer is not None else _tokenizer_of(weights)
        self.tokenizer = Tokenizer(folder) if folder is not None else None
        template = load_chat_template(folder if folder.is_dir() else folder.parent) if folder is not None else None
        self.encoder = PromptEncoder(self.tokenizer, template)
        self.capacity = capacity_of(options, first)

    def num_blocks_for(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> int:
        """A KV pool that holds as many of these requests at once as may run. Raises InputError for those that could
        never run."""
        size, vocab_size = self.capacity.block_size, self.manifest.dims.vocab_size
        check_params(params, vocab_size, has_tokenizer=self.tokenizer is not None)
        needed = sorted((num_blocks_for(len(ids) + params.max_new_tokens, size) for ids in prompts), reverse=True)
        limit = num_blocks_for(self.capacity.max_model_len, size)
        num_blocks = sum(min(blocks, limit) for blocks in needed[: self.capacity.max_seqs])
        scheduler = self._make_scheduler(num_blocks)
        for ids in prompts:
            check_token_ids(ids, vocab_size)
            scheduler.check(Request(0, tuple(ids), params))
        return num_blocks

    def load(self, num_blocks: int | None = None, progress: Progress = no_progress) -> Engine:
        """An engine with a KV pool of `num_blocks`; None for the options' size, or the executor's default."""
        wanted = num_blocks if num_blocks is not None else self._default_num_blocks()
        executor = open_executor(self.options, self.export, self.weights, wanted, progress)
        dims, scheduler = self.manifest.dims, self._make_scheduler(executor.num_blocks)
        eos_token_ids, overlap = self.manifest.eos_token_ids, self.options.overlap is not False
        return Engine(executor, scheduler, dims.vocab_size, eos_token_ids, self.tokenizer, self.encoder, overlap)

    def _default_num_blocks(self) -> int | None:
        size = self.capacity.block_size
        if self.options.kv_tokens is not None:
            return num_blocks_for(self.options.kv_tokens, size)
        if self.options.executor == "tensorrt":
            return None
        most = self.capacity.max_seqs * num_blocks_for(self.capacity.max_model_len, size)
        return min(most, num_blocks_for(_CPU_KV_TOKENS, size))

    def _make_scheduler(self, num_blocks: int) -> Scheduler:
        capacity = self.capacity
        blocks = BlockManager(num_blocks, capacity.block_size)
        return Scheduler(
            blocks, capacity.max_model_len, capacity.max_step_tokens, capacity.max_seqs, self.options.max_waiting
        )


def _tokenizer_of(weights: Path | None) -> Path | None:
    """The folder of the weights, if there is a tokenizer in it."""
    if weights is None:
        return None
    folder = weights if weights.is_dir() else weights.parent
    return folder if (folder / FILE_NAME).is_file() else None
