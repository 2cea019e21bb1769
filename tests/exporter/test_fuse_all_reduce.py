"""The pass FuseAllReduce, on graphs as text."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from qwen3moe_export.onnx_passes import FuseAllReduce, PassError, count_ops

GRAPH = """
<ir_version: 10, opset_import: ["": 23, "qwen3moe": 1]>
group (float16[T, 8] x, float16[T, 8] residual, float16[8] weight) => ({outputs}) {{
    total = qwen3moe.AllReduce(x)
    {more}
    out, stream = qwen3moe.AddRMSNorm <eps = 0.25> ({addends}, weight)
}}
"""
OUT = "float16[T, 8] out, float16[T, 8] stream"


def graph(addends: str, outputs: str = OUT, more: str = "") -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(GRAPH.format(addends=addends, outputs=outputs, more=more)))


@pytest.mark.parametrize("addends", ["residual, total", "total, residual"])
def test_a_sum_and_its_norm_are_one(addends):
    model = FuseAllReduce()(graph(addends)).model
    (fused,) = model.graph
    assert (fused.domain, fused.op_type) == ("qwen3moe", "AllReduceAddRMSNorm")
    assert [value.name for value in fused.inputs] == ["x", "residual", "weight"]
    assert fused.attributes["eps"].as_float() == 0.25
    assert [value.name for value in fused.outputs] == [value.name for value in model.graph.outputs] == ["out", "stream"]


@pytest.mark.parametrize(
    "model",
    [
        graph("residual, total", outputs=f"{OUT}, float16[T, 8] total"),
        graph("residual, total", outputs=f"{OUT}, float16[T, 8] other", more="other = Neg(total)"),
        graph("x, residual"),
        graph("total, total"),
    ],
    ids=["an output", "another reader", "not its sum", "both addends"],
)
def test_a_sum_that_others_read_stays(model):
    before = count_ops(model)
    with pytest.raises(PassError, match="FuseAllReduce found nothing to do"):
        FuseAllReduce()(model)
    assert count_ops(model) == before


def test_of_two_sums_one_is_fused():
    model = FuseAllReduce()(graph("first, total", more="first = qwen3moe.AllReduce(residual)")).model
    assert count_ops(model) == {"AllReduce": 1, "AllReduceAddRMSNorm": 1}
