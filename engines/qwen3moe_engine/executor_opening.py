"""The executor that options ask for, and how much it can do at a time.

Owns: the choice. Imports a runtime only when it is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.executor import Executor
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.parallel.board import DEFAULT_PATIENCE, Patience
from qwen3moe_engine.parallel.rank import RankSpec
from qwen3moe_engine.random_model import RandomWeights
from qwen3moe_engine.stages import ExportedStage, load_stages
from qwen3moe_engine.weights import Progress
from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class Capacity:
    """block_size: tokens. max_model_len: tokens of a sequence. max_step_tokens, max_seqs: of a step."""

    block_size: int
    max_model_len: int
    max_step_tokens: int
    max_seqs: int


def capacity_of(options: EngineOptions, stage: ExportedStage) -> Capacity:
    """Of the engine whose first stage it is. Known before anything is loaded, so that requests can be refused early.
    Raises InputError for options that ask for more than the plan was built for."""
    if options.executor == "onnxruntime":
        # 256 tokens a step: the CPU functions compute every expert for every token, so longer prompts go in chunks
        seqs = options.max_seqs or 32
        tokens = options.max_step_tokens or max(256, seqs)
        capacity = Capacity(16, stage.manifest.dims.max_position_embeddings, tokens, seqs)
    else:
        capacity = _capacity_of_plan(options, stage)
    if capacity.max_step_tokens < capacity.max_seqs:
        expected = f"at least max_seqs, {capacity.max_seqs}"
        remedy = "raise it, or lower max_seqs"
        raise InputError("max_step_tokens", got=capacity.max_step_tokens, expected=expected, remedy=remedy)
    return capacity


def _capacity_of_plan(options: EngineOptions, stage: ExportedStage) -> Capacity:
    from qwen3moe_engine.tensorrt.plan import find_plan, load_plan_info

    plan = find_plan(stage.folder, options.plan, stage.manifest.part.layout.pp)
    limits = load_plan_info(plan).limits
    for name, limit in (("max_seqs", limits.max_seqs), ("max_step_tokens", limits.max_tokens)):
        if (getattr(options, name) or 0) > limit:
            expected, remedy = f"at most the plan's {limit}", "lower it, or build a larger plan"
            raise InputError(name, got=getattr(options, name), expected=expected, remedy=remedy)
    seqs, tokens = options.max_seqs or limits.max_seqs, options.max_step_tokens or limits.max_tokens
    return Capacity(limits.block_size, limits.max_context, tokens, seqs)


def open_executor(
    options: EngineOptions, export: Path, weights: Path | None, num_blocks: int | None, progress: Progress
) -> Executor:
    """The executor, with weights loaded and a KV pool of `num_blocks`; None, with TensorRT only: what the GPU has. An
    export for many ranks starts a process for each but the first."""
    first = load_stages(export)[0]
    _check_rebalancing(options, first.manifest.part.layout)
    _check_hosts(options, first.manifest.part.layout)
    if options.executor == "onnxruntime":
        assert weights is not None and num_blocks is not None
        config = OnnxRuntimeConfig(num_blocks, capacity_of(options, first).block_size, options.num_threads)
        return _open_onnxruntime(options, export, first, weights, config, progress)
    return _open_tensorrt(options, export, first, weights, num_blocks, progress)


def _check_rebalancing(options: EngineOptions, layout: Layout) -> None:
    """Raises InputError for experts that could not move."""
    if options.rebalance_steps is not None and not layout.redundant_experts:
        remedy = "export again with --ep and --redundant-experts"
        got, expected = f"an export for {layout}", "one with redundant experts"
        raise InputError("rebalance_steps", got=got, expected=expected, remedy=remedy)


def _check_hosts(options: EngineOptions, layout: Layout) -> None:
    """Raises InputError for an export that cannot be spread over hosts."""
    if options.ray is not None and layout.pp == 1:
        remedy = "export again with --pp, or leave --ray away: a group of ranks stays on one host"
        raise InputError("--ray", got=f"an export for {layout}", expected="one for a pipeline", remedy=remedy)
    if options.ray is not None and options.rebalance_steps is not None:
        got, expected = "with --rebalance-steps", "ranks that all are on this host, for experts to move"
        raise InputError("--ray", got=got, expected=expected, remedy="leave one of them away")


def _open_onnxruntime(
    options: EngineOptions,
    export: Path,
    first: ExportedStage,
    weights: Path,
    config: OnnxRuntimeConfig,
    progress: Progress,
) -> Executor:
    if first.manifest.part.layout.world_size > 1:
        from qwen3moe_engine.parallel.executor import ParallelExecutor
        from qwen3moe_engine.parallel.onnxruntime_rank import onnxruntime_ranks

        if options.ray is not None:
            return _open_pipeline(
                options, onnxruntime_ranks(export.resolve(), weights.resolve(), config, by_stage=True)
            )
        ranks = onnxruntime_ranks(export, weights, config)
        return ParallelExecutor(ranks, _patience(options), options.rebalance_steps)
    return OnnxRuntimeExecutor(export, first.manifest, open_checkpoint(weights), config, progress)


def _open_tensorrt(
    options: EngineOptions,
    export: Path,
    first: ExportedStage,
    weights: Path | None,
    num_blocks: int | None,
    progress: Progress,
) -> Executor:
    from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
    from qwen3moe_engine.tensorrt.plan import find_plan

    graphs = options.cuda_graphs is not False
    config = TensorRTConfig(num_blocks, cuda_graphs=graphs, random_weights=_random_weights(options))
    if first.manifest.part.layout.world_size > 1:
        from qwen3moe_engine.parallel.executor import OverlappingParallelExecutor, ParallelExecutor
        from qwen3moe_engine.tensorrt.rank import tensorrt_ranks

        if options.ray is not None:
            paths = export.resolve(), options.plan, weights.resolve() if weights is not None else None
            stages = tensorrt_ranks(*paths, config, options.plugins, by_stage=True)
            return _open_pipeline(options, stages, num_gpus=1)
        ranks = tensorrt_ranks(export, options.plan, weights, config, options.plugins)
        one_stage = first.manifest.part.layout.pp == 1
        kind = OverlappingParallelExecutor if one_stage else ParallelExecutor
        return kind(ranks, _patience(options), options.rebalance_steps)
    checkpoint = open_checkpoint(weights) if weights is not None else None
    plan = find_plan(first.folder, options.plan)
    return TensorRTExecutor(export, first.manifest, plan, checkpoint, config, progress, options.plugins)


def _random_weights(options: EngineOptions) -> RandomWeights | None:
    return RandomWeights(options.random_weights, options.router_skew) if options.random_weights is not None else None


def _open_pipeline(options: EngineOptions, ranks: Sequence[RankSpec], num_gpus: int = 0) -> Executor:
    from qwen3moe_engine.parallel.ray_pipeline import RayPipeline

    assert options.ray is not None
    return RayPipeline(ranks, options.ray, num_gpus, _patience(options))


def _patience(options: EngineOptions) -> Patience:
    return DEFAULT_PATIENCE if options.step_timeout is None else Patience(step=options.step_timeout)
