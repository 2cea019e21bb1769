"""What the saved graphs are like: interface, single nodes with functions attached, no weights, small, reproducible."""

from __future__ import annotations

import onnx
import pytest

from qwen3moe_export.artifact import ExportOptions, export_onnx
from qwen3moe_plugins.ops import DOMAIN, OPS, PLUGIN_NAMESPACE


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["trained", "decoder_sparse_step", "inputs_embeds_tied"])
def test_graph_is_what_the_manifest_says(stages, name, dtype):
    path, manifest = stages.export(name, dtype)
    forms = ["model.onnx"] if dtype == "fp32" else ["model.onnx", "model.fp32.onnx"]
    for file, graph in ((file, manifest.graphs[file]) for file in forms):
        model = onnx.load(path / file)
        onnx.checker.check_model(model)
        assert (path / file).stat().st_size < 1_000_000
        assert not model.graph.initializer, "weights are inputs"
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [graph.opset]
        widened = graph.dtype != manifest.dtype
        expected = [(spec.name, graph.dtype if widened and spec.dtype != "int32" else spec.dtype, spec.shape)
                    for spec in (*manifest.inputs, *manifest.outputs)]  # fmt: skip
        assert [signature(value) for value in (*model.graph.input, *model.graph.output)] == expected


def signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    """Name, dtype and shape, dynamic dimensions by name."""
    elem = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dims = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return value.name, {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT32": "int32"}[elem], dims


@pytest.mark.parametrize(("name", "num_moe"), [("trained", 4), ("decoder_sparse_step", 1), ("dense", 0)])
def test_custom_operators_are_single_nodes_with_functions(stages, name, num_moe):
    path, manifest = stages.export(name, "fp32")
    model = onnx.load(path / "model.onnx")
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    counts = {op.name: sum(node.op_type == op.name for node in nodes) for op in OPS}
    assert {name: count for name, count in counts.items() if count} == manifest.op_counts
    assert (counts["PagedAttention"], counts["MoE"]) == (manifest.dims.num_layers, num_moe)
    functions = {(function.domain, function.name) for function in model.functions}
    assert functions == {(DOMAIN, name) for name in manifest.op_counts}
    declarations = {op.name: op for op in OPS}
    for node in nodes:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes.pop("plugin_namespace") == PLUGIN_NAMESPACE.encode()
        assert attributes.pop("plugin_version") == str(declarations[node.op_type].version).encode()
        assert set(attributes) == {attribute.name for attribute in declarations[node.op_type].attributes}
        assert len(node.input) == len(declarations[node.op_type].inputs)


@pytest.mark.parametrize(
    ("name", "num_linears"), [("trained", 4 * 3), ("mlp_only_layers", 4 + 3 + 4), ("decoder_sparse_step", 4 + 3 + 4)]
)
def test_the_form_for_tensorrt_8(stages, name, num_linears):
    """Opset 17, no functions, no KV outputs: the 8.6 parser takes no other."""
    path, manifest = stages.export(name, "fp16")
    model = onnx.load(path / "model.trt8.onnx")
    assert manifest.graph_of("fp16", max_opset=17) == "model.trt8.onnx"
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 17, DOMAIN: 1}
    assert not model.functions and not model.graph.initializer
    assert [value.name for value in model.graph.output] == ["logits"]
    assert [value.name for value in model.graph.input] == [spec.name for spec in manifest.inputs]
    attention = [node for node in model.graph.node if node.op_type == "PagedAttention"]
    assert len(attention) == manifest.dims.num_layers and all(len(node.output) == 1 for node in attention)
    for node in model.graph.node:
        if node.domain == "":
            onnx.checker.check_node(node, context_at(17))
    counts = manifest.graphs["model.trt8.onnx"].op_counts
    assert counts == manifest.op_counts | {"Linear": num_linears, "LinearFloat32": 1}
    assert not [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul", "Cast")]
    splits = [node for node in model.graph.node if node.op_type == "Split"]
    assert len(splits) == manifest.dims.num_layers - manifest.op_counts.get("MoE", 0)


def context_at(opset: int) -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 8, {"": opset}
    return context


def test_dynamic_dimensions(stages):
    _, manifest = stages.export("trained", "bf16")
    dynamic = {spec.name: spec.shape for kind in ("batch", "kv_cache", "rope") for spec in manifest.of_kind(kind)}
    assert dynamic == {
        "cos_sin_cache": ("num_positions", 64),
        **{f"kv_cache.{layer_idx}": ("num_blocks", 2, 2, "block_size", 64) for layer_idx in range(4)},
        "input_ids": ("num_tokens",),
        "positions": ("num_tokens",),
        "block_table": ("num_seqs", "max_blocks"),
        "cu_seqlens": ("num_seqs_plus_1",),
        "context_lens": ("num_seqs",),
        "logits_indices": ("num_logits",),
    }
    assert all(isinstance(size, int) for spec in manifest.of_kind("weight") for size in spec.shape)


def test_hidden_states_are_named_in_the_graph(stages):
    path, manifest = stages.export("trained", "bf16")
    produced = {output for node in onnx.load(path / "model.onnx").graph.node for output in node.output}
    assert len(manifest.hidden_states) == 5 and set(manifest.hidden_states) <= produced


def test_exporting_twice_gives_the_same_bytes(stages, tmp_path):
    again = export_onnx(stages.config("mlp_only_layers"), ExportOptions("fp32"), (), tmp_path)
    assert again == stages.export("mlp_only_layers", "fp32")[1]
