"""ONNX Runtime as a stage: the export's fp32 graph, with weights rounded to the export's dtype.

Owns: the copy of the graph that shows hidden states, where onnx_ir is there to make it. Must not know torch.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from qwen3moe_engine.checkpoint import Checkpoint
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.onnxruntime_executor import COMPUTE_DTYPE, OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.parallel.executor import ParallelExecutor
from qwen3moe_engine.parallel.onnxruntime_rank import onnxruntime_ranks
from qwen3moe_engine.weights import no_progress
from qwen3moe_export.verify.executor_stage import BLOCK_SIZE, executor_stage
from qwen3moe_export.verify.stages import Precision, Stage, StageDescription


def onnxruntime_stage(export: Path, manifest: Manifest, checkpoint: Checkpoint, weights: str) -> Stage:
    """On as many ranks as the export in the folder `export` is for. `weights`: as in `Precision.weights`."""
    if manifest.part.layout.world_size > 1:
        return _parallel_stage(export, manifest, checkpoint, weights)
    description = StageDescription("ONNX Runtime", Precision(weights, COMPUTE_DTYPE), "judged")
    shows_hidden_states = find_spec("onnx_ir") is not None

    def open_executor(num_blocks: int) -> OnnxRuntimeExecutor:
        config = OnnxRuntimeConfig(num_blocks, BLOCK_SIZE)
        with tempfile.TemporaryDirectory() as folder:
            graph = _expose_hidden_states(export, manifest, Path(folder)) if shows_hidden_states else None
            return OnnxRuntimeExecutor(export, manifest, checkpoint, config, no_progress, graph)

    names = manifest.hidden_states if shows_hidden_states else ()
    return executor_stage(description, open_executor, manifest.dims.vocab_size, names)


def _parallel_stage(export: Path, manifest: Manifest, checkpoint: Checkpoint, weights: str) -> Stage:
    name = f"ONNX Runtime, {manifest.part.layout}"
    description = StageDescription(name, Precision(weights, COMPUTE_DTYPE), "judged")

    def open_executor(num_blocks: int) -> ParallelExecutor:
        return ParallelExecutor(onnxruntime_ranks(export, checkpoint.path, OnnxRuntimeConfig(num_blocks, BLOCK_SIZE)))

    return executor_stage(description, open_executor, manifest.dims.vocab_size)


def _expose_hidden_states(export: Path, manifest: Manifest, folder: Path) -> Path:
    import onnx_ir as ir

    from qwen3moe_export.onnx_passes import ExposeHiddenStates

    name = manifest.graph_of(COMPUTE_DTYPE)
    model = ExposeHiddenStates(manifest.hidden_states)(ir.load(export / name)).model
    ir.save(model, folder / name)
    return folder / name
