"""The stages of one checkpoint, from transformers to ONNX Runtime.

Owns: which stages there are, their precisions, and which reference each is held to.
"""

from __future__ import annotations

from pathlib import Path

import torch

from qwen3moe_engine.checkpoint import Checkpoint, open_checkpoint
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import hidden_state_names
from qwen3moe_export.verify.executor_stage import BLOCK_SIZE, executor_stage
from qwen3moe_export.verify.inputs import Inputs
from qwen3moe_export.verify.onnxruntime_stage import onnxruntime_stage
from qwen3moe_export.verify.program_executor import ProgramExecutor
from qwen3moe_export.verify.reference_stage import reference_stage
from qwen3moe_export.verify.stages import AS_STORED, Precision, Role, Stage, StageDescription, StageOutputs
from qwen3moe_export.verify.subject import Subject, check_export

# Elements of an expert's matrix from which torch may use all cores. In a small model its threads only wait for each
# other, on a busy machine for long: 5 to 10 times the time was seen.
_MIN_PARALLEL_SIZE = 1 << 20


def stages_of(subject: Subject, with_transformers: bool) -> list[Stage]:
    """The truth first, then in the order of the pipeline. Raises InputError if the export is of another model."""
    check_export(subject.manifest, subject.export, subject.config.sha256, subject.checkpoint)
    tensors, dtype = open_checkpoint(subject.checkpoint), subject.manifest.dtype
    weights = _weights_precision(tensors, dtype)
    stages = [
        *_references(subject.config, tensors, dtype, weights),
        *(_transformers(subject.checkpoint) if with_transformers else ()),
        _program(subject.config, tensors, dtype, weights),
    ]
    if subject.config.hidden_size * subject.config.moe_intermediate_size < _MIN_PARALLEL_SIZE:
        stages = [_on_one_thread(stage) for stage in stages]
    return [*stages, onnxruntime_stage(subject.export, subject.manifest, tensors, weights)]


def _on_one_thread(stage: Stage) -> Stage:
    def run(inputs: Inputs) -> StageOutputs:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return stage.run(inputs)
        finally:
            torch.set_num_threads(num_threads)

    return Stage(stage.description, run)


def _references(config: Qwen3MoeConfig, tensors: Checkpoint, dtype: str, weights: str) -> list[Stage]:
    """The truth, and a plain reference for every other precision that a stage has."""
    truth = _describe("reference", AS_STORED, "fp32", "truth")
    stages = [reference_stage(truth, config, tensors, "fp32")]
    if weights != AS_STORED:
        rounded = _describe("reference", weights, "fp32", "baseline")
        stages.append(reference_stage(rounded, config, tensors, dtype))
    if dtype != "fp32":
        plain = _describe("reference", weights, dtype, "baseline")
        stages.append(reference_stage(plain, config, tensors, dtype))
    return stages


def _transformers(checkpoint: Path) -> list[Stage]:
    from qwen3moe_export.verify.transformers_stage import transformers_stage

    return [transformers_stage(_describe("transformers", AS_STORED, "fp32", "judged"), checkpoint)]


def _program(config: Qwen3MoeConfig, tensors: Checkpoint, dtype: str, weights: str) -> Stage:
    return executor_stage(
        _describe("exported program", weights, dtype, "judged"),
        lambda num_blocks: ProgramExecutor(config, tensors, dtype, num_blocks, BLOCK_SIZE),
        config.vocab_size,
        tuple(hidden_state_names(config.num_layers).values()),
    )


def _describe(name: str, weights: str, arithmetic: str, role: Role) -> StageDescription:
    return StageDescription(name, Precision(weights, arithmetic), role)


def _weights_precision(checkpoint: Checkpoint, dtype: str) -> str:
    """AS_STORED if no weight changes when it is rounded to `dtype`, as far as the stored dtypes tell."""
    lossless = dtype == "fp32" or all(tensor.dtype == dtype for tensor in checkpoint.tensors.values())
    return AS_STORED if lossless else dtype
