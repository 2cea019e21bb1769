"""The captured program as an ONNX model: custom operators as single nodes, with their local functions attached.

Owns: the torch.onnx call, the operators' schemas, and the checks on what comes out.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Opset

from qwen3moe_engine.layout import WHOLE, Part
from qwen3moe_export.capture import Captured
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import hidden_state_names
from qwen3moe_export.onnx_functions import local_functions
from qwen3moe_export.onnx_passes import (
    INDEX_DTYPES,
    PLUGIN_ATTRIBUTES,
    FuseNorms,
    MarkPlugins,
    NameHiddenStates,
    NameInterface,
    PassError,
    count_ops,
)
from qwen3moe_export.ops import TORCH_OPS
from qwen3moe_plugins.ops import ACTIVATION, DOMAIN, OPS, OpDecl

OPSET = 23  # the one opset whose RMSNormalization torch.onnx emits for every dtype; 20, 21 and 24 decompose it


def to_onnx(captured: Captured, config: Qwen3MoeConfig, part: Part = WHOLE) -> ir.Model:
    """The model, with the interface's names and no weights. `captured` is consumed."""
    inputs = captured.interface.inputs
    for decl in OPS:
        _register_schema(decl)
    translations = {getattr(torch.ops.qwen3moe, decl.name).default: _translation(decl) for decl in TORCH_OPS}
    with _quiet():
        exported = torch.onnx.export(
            captured.program, (), dynamo=True, opset_version=OPSET, verbose=False,
            custom_translation_table=translations, dynamic_shapes=captured.dynamic_shapes,
        )  # fmt: skip
    assert exported is not None
    model = exported.model
    ir.passes.Sequential(
        NameInterface(inputs, captured.interface.outputs),
        NameHiddenStates(hidden_state_names(config.num_layers, part)),
        FuseNorms(),
        MarkPlugins(),
    )(model)
    attach_functions(model)
    _strip_traces(model)
    _check(model, expected_op_counts(config, part, embeds="input_ids" in {spec.name for spec in inputs}))
    return model


def attach_functions(model: ir.Model) -> None:
    """Those of the operators in the graph."""
    used = count_ops(model)
    for function in local_functions():
        if function.name in used:
            model.functions[(function.domain, function.name, "")] = ir.serde.deserialize_function(function)


def expected_op_counts(config: Qwen3MoeConfig, part: Part, embeds: bool) -> dict[str, int]:
    """Of the operators in the graph of `part`; `embeds`: it takes token ids. Products become operators only in the
    forms of the graph that `FuseLinear` makes."""
    layers, layout = part.layers(config.num_layers), part.layout
    # Two norms a layer and the final one; all but a stage's first and the final normalise a sum.
    norms = {"RMSNorm": 1 + part.is_last, "AddRMSNorm": 2 * len(layers) - 1}
    reductions = len(layers) * (1 + (layout.attention_degree > 1)) + embeds if layout.group_size > 1 else 0
    gathers = int(part.is_last and layout.group_size > 1)
    num_sparse = sum(map(config.is_sparse, layers))
    experts = {"BalancedMoE" if layout.redundant_experts else "MoE": num_sparse}
    counts = {"PagedAttention": len(layers), **experts, **norms, "AllReduce": reductions, "AllGather": gathers}
    return {name: count for name, count in counts.items() if count}


def _register_schema(decl: OpDecl) -> None:
    """onnxscript needs the schema to build nodes with several outputs and typed attributes."""
    if onnx.defs.has(decl.name, decl.version, DOMAIN):
        return
    schema = onnx.defs.OpSchema
    any_float = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    types = {ACTIVATION: "A", "float32": "tensor(float)", "int32": "tensor(int32)"}
    kinds = {"int": schema.AttrType.INT, "float": schema.AttrType.FLOAT}
    attributes = [schema.Attribute(attr.name, kinds[attr.kind], "", required=True) for attr in decl.attributes]
    attributes += [schema.Attribute(name, schema.AttrType.STRING, "", required=False) for name in PLUGIN_ATTRIBUTES]
    onnx.defs.register_schema(
        schema(
            decl.name,
            DOMAIN,
            decl.version,
            inputs=[schema.FormalParameter(tensor.name, types[tensor.dtype]) for tensor in decl.inputs],
            outputs=[schema.FormalParameter(tensor.name, types[tensor.dtype]) for tensor in decl.outputs],
            type_constraints=[("A", any_float, "activations")],
            attributes=attributes,
        )
    )


def _translation(decl: OpDecl) -> Callable[..., Any]:
    """What torch.onnx calls for the torch operator: one node of the same name."""
    emit = getattr(Opset(DOMAIN, decl.version), decl.name)
    names = [tensor.name for tensor in decl.inputs] + [attr.name for attr in decl.attributes]
    num_inputs = len(decl.inputs)

    def translate(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        return emit(*(given[name] for name in names[:num_inputs]), **{name: given[name] for name in names[num_inputs:]})

    return translate


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx warns of packages it could do without and of every axis name that two inputs share."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _strip_traces(model: ir.Model) -> None:
    """torch.onnx keeps stack traces and file paths with every node, which are most of the file."""
    for owner in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.outputs):
        owner.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    model.producer_name, model.producer_version = "qwen3moe-export", None


def _check(model: ir.Model, expected: dict[str, int]) -> None:
    found = count_ops(model)
    if found != expected:
        raise PassError(f"the graph has {found}, not {expected}")
    constants = [name for name, value in model.graph.initializers.items() if value.dtype not in INDEX_DTYPES]
    if constants:
        raise PassError(f"the graph holds constants other than indices: {constants}")
    unused = [value.name for value in model.graph.inputs if not value.uses()]
    if unused:
        raise PassError(f"inputs that nothing reads: {unused}")
    onnx.checker.check_model(ir.to_proto(model), full_check=False)
