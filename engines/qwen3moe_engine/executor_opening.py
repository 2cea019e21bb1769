"""The executor that options ask for, and how much it can do at a time.

Owns: the choice. Imports a runtime only when it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.weights import Progress
from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class Capacity:
    """block_size: tokens. max_model_len: tokens of a sequence. max_step_tokens, max_seqs: of a step."""

    block_size: int
    max_model_len: int
    max_step_tokens: int
    max_seqs: int


def capacity_of(options: EngineOptions, manifest: Manifest) -> Capacity:
    """Known before anything is loaded, so that requests can be refused early. Raises InputError for options that ask
    for more than the plan was built for."""
    if options.executor == "onnxruntime":
        # 256 tokens a step: the CPU functions compute every expert for every token, so longer prompts go in chunks
        seqs = options.max_seqs or 32
        tokens = options.max_step_tokens or max(256, seqs)
        capacity = Capacity(16, manifest.dims.max_position_embeddings, tokens, seqs)
    else:
        capacity = _capacity_of_plan(options)
    if capacity.max_step_tokens < capacity.max_seqs:
        expected = f"at least max_seqs, {capacity.max_seqs}"
        remedy = "raise it, or lower max_seqs"
        raise InputError("max_step_tokens", got=capacity.max_step_tokens, expected=expected, remedy=remedy)
    return capacity


def _capacity_of_plan(options: EngineOptions) -> Capacity:
    from qwen3moe_engine.tensorrt.plan import load_plan_info

    assert options.plan is not None
    limits = load_plan_info(options.plan).limits
    for name, limit in (("max_seqs", limits.max_seqs), ("max_step_tokens", limits.max_tokens)):
        if (getattr(options, name) or 0) > limit:
            expected, remedy = f"at most the plan's {limit}", "lower it, or build a larger plan"
            raise InputError(name, got=getattr(options, name), expected=expected, remedy=remedy)
    seqs, tokens = options.max_seqs or limits.max_seqs, options.max_step_tokens or limits.max_tokens
    return Capacity(limits.block_size, limits.max_context, tokens, seqs)


def open_executor(
    options: EngineOptions,
    export: Path,
    manifest: Manifest,
    weights: Path | None,
    num_blocks: int | None,
    progress: Progress,
) -> Executor:
    """The executor, with weights loaded and a KV pool of `num_blocks`; None, with TensorRT only: what the GPU has.

    An export for many ranks has a process for each but the first, which is this one."""
    if options.rebalance_steps is not None and not manifest.part.layout.redundant_experts:
        got, expected = f"an export for {manifest.part.layout}", "one with redundant experts"
        remedy = "export again with --ep and --redundant-experts"
        raise InputError("rebalance_steps", got=got, expected=expected, remedy=remedy)
    checkpoint = open_checkpoint(weights) if weights is not None else None
    if options.executor == "onnxruntime":
        from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor

        assert checkpoint is not None and num_blocks is not None
        block_size = capacity_of(options, manifest).block_size
        config = OnnxRuntimeConfig(num_blocks, block_size, options.num_threads)
        if manifest.part.layout.world_size > 1:
            from qwen3moe_engine.parallel.executor import ParallelExecutor
            from qwen3moe_engine.parallel.onnxruntime_rank import onnxruntime_ranks

            ranks = onnxruntime_ranks(export, checkpoint.path, config)
            return ParallelExecutor(ranks, rebalance_steps=options.rebalance_steps)
        return OnnxRuntimeExecutor(export, manifest, checkpoint, config, progress)
    if manifest.part.layout.world_size > 1:
        got, expected = f"an export for {manifest.part.layout}", "one for one rank"
        raise InputError("executor tensorrt", got=got, expected=expected, remedy="choose the executor onnxruntime")
    from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor

    assert options.plan is not None
    graphs = options.cuda_graphs is not False
    trt_config = TensorRTConfig(num_blocks, cuda_graphs=graphs, random_seed=options.random_weights)
    return TensorRTExecutor(export, manifest, options.plan, checkpoint, trt_config, progress, options.plugins)
