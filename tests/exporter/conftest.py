"""The stages of each model of the zoo, made once for all tests of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_zoo import Zoo
from transformers.utils import logging
from workload import ProgramExecutor, Workload, token_workload

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_export.artifact import ExportOptions, export_onnx
from qwen3moe_export.config import Qwen3MoeConfig, load_config
from qwen3moe_export.load import load_reference
from qwen3moe_export.model import Qwen3MoeForCausalLM

torch.set_num_threads(1)  # matrices this small take ten times longer where two threads share two busy cores
logging.set_verbosity_error()
logging.disable_progress_bar()


class Stages:
    """Checkpoint, reference and export of each model by name."""

    def __init__(self, root: Path):
        self._root, self.zoo = root, Zoo(root / "checkpoints")
        # bound methods with caches of their own: the stages of one run are asked for again and again
        self.config: Callable[[str], Qwen3MoeConfig] = functools.cache(lambda name: load_config(self.zoo.path(name)))
        self.reference: Callable[[str, str], Qwen3MoeForCausalLM] = functools.cache(self._reference)
        self.export: Callable[[str, str], tuple[Path, Manifest]] = functools.cache(self._export)

    def workload(self, name: str) -> Workload:
        """Token ids, or their embeddings for a model that takes them."""
        workload = token_workload(self.config(name).vocab_size)
        if not self.zoo.takes_embeddings(name):
            return workload
        embed = self.reference(name, "fp32").model.embed_tokens
        with torch.no_grad():
            return Workload(tuple(embed(tokens) for tokens in workload.sequences))

    def executor(
        self, name: str, dtype: str, num_blocks: int, block_size: int, weights: Path | None = None
    ) -> OnnxRuntimeExecutor:
        path, manifest = self.export(name, dtype)
        checkpoint = open_checkpoint(weights or self.zoo.path(name))
        config = OnnxRuntimeConfig(num_blocks, block_size, num_threads=1)
        return OnnxRuntimeExecutor(path, manifest, checkpoint, config, lambda plans, _: plans)

    def program_executor(self, name: str, dtype: str, num_blocks: int, block_size: int) -> ProgramExecutor:
        manifest = self.export(name, dtype)[1]
        return ProgramExecutor(self.config(name), manifest, self.zoo.path(name), num_blocks, block_size)

    def _reference(self, name: str, dtype: str) -> Qwen3MoeForCausalLM:
        return load_reference(self.config(name), open_checkpoint(self.zoo.path(name)), dtype)

    def _export(self, name: str, dtype: str) -> tuple[Path, Manifest]:
        path = self._root / "exports" / f"{name}-{dtype}"
        return path, export_onnx(self.config(name), ExportOptions(dtype, self.zoo.takes_embeddings(name)), (), path)


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(tmp_path_factory.mktemp("stages"))
