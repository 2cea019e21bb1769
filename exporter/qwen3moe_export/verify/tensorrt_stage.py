"""A TensorRT plan as a stage: the export's graph as the GPU runs it. Must not know torch."""

from __future__ import annotations

from pathlib import Path

from qwen3moe_engine.checkpoint import Checkpoint
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.weights import no_progress
from qwen3moe_export.verify.executor_stage import executor_stage
from qwen3moe_export.verify.stages import Precision, Stage, StageDescription


def tensorrt_stage(
    export: Path, manifest: Manifest, checkpoint: Checkpoint, weights: str, plan: Path, plugins: Path | None
) -> Stage:
    """`weights`: as in `Precision.weights`. plugins: folder of the libraries, None for the package's."""
    from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
    from qwen3moe_engine.tensorrt.plan import load_plan_info

    max_tokens = load_plan_info(plan).limits.max_tokens

    def open_executor(num_blocks: int) -> TensorRTExecutor:
        config = TensorRTConfig(num_blocks, max_logits=max_tokens, cuda_graphs=False)  # few steps of each size
        return TensorRTExecutor(export, manifest, plan, checkpoint, config, no_progress, plugins)

    description = StageDescription("TensorRT", Precision(weights, manifest.dtype), "judged")
    return executor_stage(description, open_executor, manifest.dims.vocab_size)
