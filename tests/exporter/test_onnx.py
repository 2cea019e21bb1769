"""Exports in fp32 against the reference: ONNX Runtime on the saved graph, and the exported program, eagerly."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from model_zoo import MODEL_NAMES
from tolerance import assert_close_fp32
from workload import paged_batches, run_batches, run_reference

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_export.artifact import GRAPH_NAME
from qwen3moe_export.onnx_graph import attach_functions
from qwen3moe_export.onnx_passes import FuseLinear, count_ops


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_onnxruntime_fp32(stages, name, block_size):
    workload = stages.workload(name)
    batches, num_blocks = paged_batches(workload, block_size)
    found = run_batches(stages.executor(name, "fp32", num_blocks, block_size), batches)
    assert_close_fp32(found, run_reference(stages.reference(name, "fp32"), workload))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_exported_program_fp32(stages, name):
    workload = stages.workload(name)
    batches, num_blocks = paged_batches(workload, 16)
    found = run_batches(stages.program_executor(name, "fp32", num_blocks, 16), batches)
    assert_close_fp32(found, run_reference(stages.reference(name, "fp32"), workload))


@pytest.mark.parametrize("name", ["attention_bias_one_kv_head", "mlp_only_layers"])
def test_onnxruntime_runs_fused_products_by_their_functions(stages, tmp_path, name):
    workload = stages.workload(name)
    batches, num_blocks = paged_batches(workload, 16)
    path, manifest = stages.export(name, "fp32")
    fused = FuseLinear()(ir.load(path / GRAPH_NAME)).model
    assert not [node for node in fused.graph if node.op_type == "Gemm"] and count_ops(fused)["Linear"] > 0
    attach_functions(fused)
    ir.save(fused, tmp_path / GRAPH_NAME)
    config = OnnxRuntimeConfig(num_blocks, 16, num_threads=1)
    executor = OnnxRuntimeExecutor(tmp_path, manifest, open_checkpoint(stages.zoo.path(name)), config, lambda x, _: x)
    found = run_batches(executor, batches)
    assert_close_fp32(found, run_reference(stages.reference(name, "fp32"), workload))
