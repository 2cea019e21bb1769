"""Named edits of the exported graph. Each says what it requires and ensures, and fails if it found nothing to do.

Owns: every difference between what torch.onnx wrote and what is saved. Must not know torch.
"""

from __future__ import annotations

import onnx_ir as ir

from qwen3moe_engine.manifest import InputSpec, OutputSpec
from qwen3moe_plugins.ops import (
    ADD_RMS_NORM,
    ALL_REDUCE,
    ALL_REDUCE_ADD_RMS_NORM,
    BALANCED_MOE,
    DOMAIN,
    OPS,
    PAGED_ATTENTION,
    PLUGIN_NAMESPACE,
)

ONNX_DTYPES = {
    "bf16": ir.DataType.BFLOAT16,
    "fp16": ir.DataType.FLOAT16,
    "fp32": ir.DataType.FLOAT,
    "int32": ir.DataType.INT32,
}

INDEX_DTYPES = (ir.DataType.INT32, ir.DataType.INT64)

PLUGIN_ATTRIBUTES = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": "1"}

TENSORRT8_OPSET = 17  # the last its parser takes


class PassError(RuntimeError):
    """The graph is not what a pass requires. Not the user's fault."""


class _NamedPass(ir.passes.InPlacePass):
    """Counts its edits; none at all is an error."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        edits = self.edit(model)
        if edits == 0:
            raise PassError(f"{type(self).__name__} found nothing to do")
        return ir.passes.PassResult(model, modified=True)

    def edit(self, model: ir.Model) -> int:
        raise NotImplementedError


class NameInterface(_NamedPass):
    """Requires: inputs and outputs in the interface's order, dtypes and ranks. Ensures: its names and shapes."""

    def __init__(self, inputs: tuple[InputSpec, ...], outputs: tuple[OutputSpec, ...]):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def edit(self, model: ir.Model) -> int:
        pairs: list[tuple[ir.Value, InputSpec | OutputSpec]] = [
            *zip(model.graph.inputs, self.inputs, strict=True),
            *zip(model.graph.outputs, self.outputs, strict=True),
        ]
        for value, spec in pairs:
            if value.dtype != ONNX_DTYPES[spec.dtype] or len(value.shape or ()) != len(spec.shape):
                raise PassError(f"{value} is not {spec}")
            value.name, value.shape = spec.name, ir.Shape(spec.shape)
        return len(pairs)


class NameHiddenStates(_NamedPass):
    """Requires: each norm weight feeds one node. Ensures: what it normalises has the name that `names` gives by weight
    (for the final norm, whose rows are those of `logits_indices`, too)."""

    def __init__(self, names: dict[str, str]):
        super().__init__()
        self.names = names

    def edit(self, model: ir.Model) -> int:
        inputs = {value.name: value for value in model.graph.inputs}
        for weight, name in self.names.items():
            (use,) = inputs[weight].uses()
            entering = use.node.inputs[0]
            if entering is None or entering.is_graph_input():
                continue  # what the caller or the stage before gives keeps its input's name
            entering.name = name
        return len(self.names)


class ExposeHiddenStates(_NamedPass):
    """Requires: `NameHiddenStates` gave `names`. Ensures: these values are outputs, behind those there were."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names = names

    def edit(self, model: ir.Model) -> int:
        values = {value.name: value for node in model.graph for value in node.outputs}
        missing = [name for name in self.names if name not in values]
        if missing:
            raise PassError(f"no values named {missing}")
        model.graph.outputs.extend(values[name] for name in self.names)
        return len(self.names)


class FuseNorms(_NamedPass):
    """Requires: RMSNormalization over the last axis. Ensures: each is the operator RMSNorm, or, where it normalises a
    sum that nothing read before it, AddRMSNorm, which also gives the sum."""

    def edit(self, model: ir.Model) -> int:
        norms = [node for node in model.graph if node.op_type == "RMSNormalization"]
        for norm in norms:
            self._replace(model.graph, norm)
        return len(norms)

    def _replace(self, graph: ir.Graph, norm: ir.Node) -> None:
        x, weight = norm.inputs
        assert x is not None
        add = x.producer()
        if add is not None and add.op_type == "Add":
            # torch writes residual + x; the kernel takes the two in either order
            fused = ir.node("AddRMSNorm", [*add.inputs, weight], self._attributes(norm), domain=DOMAIN, num_outputs=2)
            old, new = [norm.outputs[0], add.outputs[0]], list(fused.outputs)
        else:
            fused = ir.node("RMSNorm", [x, weight], self._attributes(norm), domain=DOMAIN)
            add, old, new = None, [norm.outputs[0]], list(fused.outputs)
        fused.name = norm.name
        removed = [norm] if add is None else [norm, add]
        ir.convenience.replace_nodes_and_values(graph, norm, removed, [fused], old, new)

    def _attributes(self, norm: ir.Node) -> dict[str, float]:
        return {"eps": norm.attributes["epsilon"].as_float()}


_TIMES_TRANSPOSED = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}


class FuseLinear(_NamedPass):
    """Requires: products with a weight are Gemm, the weight transposed. Ensures: each is the operator Linear, or, where
    it is only cast to fp32, LinearFloat32; a bias is added behind it."""

    def edit(self, model: ir.Model) -> int:
        products = [node for node in model.graph if node.op_type == "Gemm"]
        for product in products:
            self._replace(model.graph, product)
        return len(products)

    def _replace(self, graph: ir.Graph, product: ir.Node) -> None:
        x, weight, *bias = product.inputs
        if {name: attr.value for name, attr in product.attributes.items()} != _TIMES_TRANSPOSED:
            raise PassError(f"{product} is not x @ weight^T + bias")
        uses = tuple(product.outputs[0].uses())
        cast = uses[0].node if len(uses) == 1 and uses[0].node.op_type == "Cast" and not bias else None
        linear = ir.node("LinearFloat32" if cast else "Linear", [x, weight], domain=DOMAIN)
        new = [linear] + ([ir.node("Add", [linear.outputs[0], *bias])] if bias else [])
        removed = [product] if cast is None else [cast, product]
        ir.convenience.replace_nodes_and_values(graph, product, removed, new, removed[0].outputs, new[-1].outputs)


class FuseAllReduce(_NamedPass):
    """Requires: the graph of a group of ranks, with AddRMSNorm. Ensures: sums over the ranks that only an AddRMSNorm
    reads are one operator with it, AllReduceAddRMSNorm."""

    def edit(self, model: ir.Model) -> int:
        norms = [node for node in model.graph if node.op_type == ADD_RMS_NORM.name]
        return sum(self._replace(model.graph, norm) for norm in norms)

    def _replace(self, graph: ir.Graph, norm: ir.Node) -> bool:
        first, second, weight = norm.inputs
        assert first is not None and second is not None
        for total, residual in ((first, second), (second, first)):
            reduction = total.producer()
            is_reduction = reduction is not None and reduction.op_type == ALL_REDUCE.name
            if reduction is None or not is_reduction or len(total.uses()) > 1 or total.is_graph_output():
                continue
            inputs, attributes = [reduction.inputs[0], residual, weight], {"eps": norm.attributes["eps"].as_float()}
            fused = ir.node(ALL_REDUCE_ADD_RMS_NORM.name, inputs, attributes, domain=DOMAIN, num_outputs=2)
            ir.convenience.replace_nodes_and_values(
                graph, norm, [norm, reduction], [fused], norm.outputs, fused.outputs
            )
            return True
        return False


class LowerForTensorRT8(_NamedPass):
    """Requires: every operator outside the standard domain has a TensorRT 8.6 plugin. Ensures: opset 17, no functions,
    and no outputs that alias an input (kv_cache, load), as its plugins write these in place."""

    def edit(self, model: ir.Model) -> int:
        aliasing = [node for node in model.graph if node.op_type in (PAGED_ATTENTION.name, BALANCED_MOE.name)]
        logits, *_ = model.graph.outputs
        model.graph.outputs[:] = [logits]
        for node in aliasing:
            node.resize_outputs(1)
        for node in list(model.graph):
            if node.op_type == "Split":
                self._split_by_sizes(model.graph, node)
        model.functions.clear()
        model.graph.opset_imports[""] = TENSORRT8_OPSET
        return len(aliasing)

    def _split_by_sizes(self, graph: ir.Graph, node: ir.Node) -> None:
        """Split's attribute num_outputs came with opset 18; before it sizes are an input."""
        num_outputs = node.attributes.pop("num_outputs").as_int()
        assert node.inputs[0] is not None and node.inputs[0].shape is not None
        total = node.inputs[0].shape[node.attributes["axis"].as_int()]
        assert isinstance(total, int) and total % num_outputs == 0, node
        sizes = ir.node("Constant", [], {"value_ints": [total // num_outputs] * num_outputs})
        graph.insert_before(node, sizes)
        node.resize_inputs(2)
        node.replace_input_with(1, sizes.outputs[0])


class MarkPlugins(_NamedPass):
    """Ensures: each custom operator names the TensorRT plugin that implements it; without `plugin_namespace` the parser
    would inline the local function instead."""

    def edit(self, model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.domain == DOMAIN]
        for node in nodes:
            node.attributes.update({name: ir.AttrString(name, value) for name, value in PLUGIN_ATTRIBUTES.items()})
        return len(nodes)


class WidenToFloat32(_NamedPass):
    """Requires: a graph in bf16 or fp16. Ensures: the same graph in fp32, for a runtime without 16-bit kernels."""

    def edit(self, model: ir.Model) -> int:
        narrow = {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        widened = [value for value in values if value.dtype in narrow]
        for value in widened:
            value.dtype = ir.DataType.FLOAT
        for node in model.graph:
            if node.op_type == "Cast" and node.attributes["to"].as_int() in narrow:
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
        constants = [
            node
            for node in model.graph
            if any(attr.type == ir.AttributeType.TENSOR for attr in node.attributes.values())
        ]
        indices = [value.dtype in INDEX_DTYPES for value in model.graph.initializers.values()]
        if constants or not all(indices):
            raise PassError("a 16-bit constant would have to be converted: none is expected")
        return len(widened)


def count_ops(model: ir.Model) -> dict[str, int]:
    """How many nodes of each declared operator the graph has; none of an operator is no entry."""
    found = [node.op_type for node in model.graph if node.domain == DOMAIN]
    return {decl.name: found.count(decl.name) for decl in OPS if decl.name in found}
