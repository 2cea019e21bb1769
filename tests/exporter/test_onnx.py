"""Exports in fp32 against the reference: ONNX Runtime on the saved graph, and the exported program, eagerly."""

from __future__ import annotations

import pytest
from model_zoo import MODEL_NAMES
from tolerance import assert_close_fp32
from workload import paged_batches, run_batches, run_reference


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
