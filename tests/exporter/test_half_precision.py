"""Exports in bf16 and fp16 lose no more against the fp32 reference than plain torch in that dtype."""

from __future__ import annotations

import pytest
from model_zoo import MODEL_NAMES
from tolerance import assert_close_fp32, assert_within_dtype_loss
from workload import paged_batches, run_batches, run_reference

from qwen3moe_export.capture import TORCH_DTYPES


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_half_precision(stages, name, dtype):
    """ONNX Runtime computes in fp32 with weights rounded to dtype, the exported program in dtype throughout."""
    workload = stages.workload(name)
    truth = run_reference(stages.reference(name, "fp32"), workload)
    plain = run_reference(stages.reference(name, dtype), workload.to(TORCH_DTYPES[dtype]))
    batches, num_blocks = paged_batches(workload, 16)
    for make_executor in (stages.executor, stages.program_executor):
        assert_within_dtype_loss(run_batches(make_executor(name, dtype, num_blocks, 16), batches), plain, truth)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_weights_are_rounded_once(stages, dtype):
    """ONNX Runtime on the widened graph is the fp32 reference with rounded weights."""
    name = "attention_bias_one_kv_head"
    workload = stages.workload(name)
    reference = stages.reference(name, dtype)
    widened = type(reference)(reference.config).eval()
    widened.load_state_dict(reference.state_dict())
    batches, num_blocks = paged_batches(workload, 16)
    found = run_batches(stages.executor(name, dtype, num_blocks, 16), batches)
    assert_close_fp32(found, run_reference(widened, workload))
