"""TensorRT-RTX takes the plugins into networks and plans, and a bad node fails the build by name instead of crashing.

Runs without a GPU: TensorRT-RTX builds plans for architectures that are not there. Running plans is tested elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import pytest
from onnx import TensorProto, helper

from qwen3moe_engine.tensorrt.flavour import load_tensorrt
from qwen3moe_plugins import ops
from qwen3moe_plugins.library import PLUGINS

trt = pytest.importorskip("tensorrt_rtx")

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 2, 64, 16
HIDDEN, EXPERTS, EXPERT_WIDTH = 256, 8, 64
SIZES = {
    "(Hq + 2 Hkv) D": (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, "D": HEAD_DIM, "Hkv": NUM_KV_HEADS, "2": 2,
    "block_size": BLOCK_SIZE, "P": 128, "H": HIDDEN, "E": EXPERTS, "E_local": EXPERTS, "I": EXPERT_WIDTH,
    "R": 24, "2 I": 2 * EXPERT_WIDTH, "K": HIDDEN, "N": 104, "C": 48,
}  # fmt: skip
DYNAMIC = {
    "T": (1, 8, 64), "B": (1, 2, 4), "B + 1": (2, 3, 5), "num_blocks": (1, 8, 32), "max_blocks": (1, 4, 8),
    "M": (1, 2, 4),
}  # fmt: skip
ATTRIBUTES = {
    "PagedAttention": {
        "num_heads": NUM_HEADS, "num_kv_heads": NUM_KV_HEADS, "head_dim": HEAD_DIM, "scale": 0.125, "eps": 1e-6,
    },
    "MoE": {"top_k": 2, "norm_topk_prob": 1},
    "BalancedMoE": {"top_k": 2, "norm_topk_prob": 1},
    "RMSNorm": {"eps": 1e-6},
    "AddRMSNorm": {"eps": 1e-6},
    "Linear": {},
    "LinearFloat32": {},
    "AllReduce": {},
    "AllGather": {"world_size": 3},
    "AllReduceAddRMSNorm": {"eps": 1e-6},
}  # fmt: skip
ELEMENT_TYPES = {ops.FLOAT32: TensorProto.FLOAT, ops.INT32: TensorProto.INT32}
ARCHITECTURES = ("SM80", "SM86", "SM89", "SM120")


class RecordingLogger(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.messages: list[str] = []

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.messages.append(message)


@dataclass
class Nodes:
    """A graph in the making: nodes, and the inputs they read that no node writes."""

    activation: int
    nodes: list = field(default_factory=list)
    inputs: dict[str, tuple[int, tuple]] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)

    def add(self, op: ops.OpDecl, prefix: str = "", sources: dict[str, str] | None = None, **changed_attributes):
        """A node of `op`; its inputs are graph inputs, but for those that `sources` takes from other nodes."""
        names = [(sources or {}).get(tensor.name, prefix + tensor.name) for tensor in op.inputs]
        for name, tensor in zip(names, op.inputs, strict=True):
            if name == prefix + tensor.name:
                dtype = ELEMENT_TYPES.get(tensor.dtype, self.activation)
                self.inputs[name] = (dtype, tensor.shape)
        outputs = {
            f"{prefix}{op.name}.{tensor.name}": ELEMENT_TYPES.get(tensor.dtype, self.activation)
            for tensor in op.outputs
        }
        self.outputs |= outputs
        attributes = {**ATTRIBUTES[op.name], **changed_attributes}
        self.nodes.append(helper.make_node(
            op.name, names, list(outputs), domain=ops.DOMAIN, plugin_namespace=ops.PLUGIN_NAMESPACE, plugin_version="1",
            **{name: value for name, value in attributes.items() if value is not None},
        ))  # fmt: skip

    def model(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, dtype, [SIZES.get(symbol, symbol) for symbol in shape])
            for name, (dtype, shape) in self.inputs.items()
        ]
        outputs = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in self.outputs.items()]
        graph = helper.make_graph(self.nodes, "plugins", inputs, outputs)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(ops.DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture(scope="session")
def plugin_registry(built_library):
    built_library(PLUGINS)
    return load_tensorrt("rtx").trt.get_plugin_registry()  # once a process, as TensorRT refuses a second time


class Build:
    """What TensorRT-RTX makes of a graph: `network` is None if the parser refused it, `plan` if the builder did."""

    def __init__(self, nodes: Nodes, architectures=ARCHITECTURES):
        self.logger = RecordingLogger()
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(0)
        parser = trt.OnnxParser(self.network, self.logger)
        parsed = parser.parse(nodes.model().SerializeToString())
        self.plan = self._plan(nodes, architectures) if parsed else None

    def _plan(self, nodes: Nodes, architectures):
        config = self.builder.create_builder_config()
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        config.num_compute_capabilities = len(architectures)
        for i, architecture in enumerate(architectures):
            config.set_compute_capability(getattr(trt.ComputeCapability, architecture), i)
        profile = self.builder.create_optimization_profile()
        for name, (_, shape) in nodes.inputs.items():
            sizes = [DYNAMIC.get(symbol, (SIZES.get(symbol, symbol),) * 3) for symbol in shape]
            if any(symbol in DYNAMIC for symbol in shape):
                profile.set_shape(name, *zip(*sizes, strict=True))
        config.add_optimization_profile(profile)
        return self.builder.build_serialized_network(self.network, config)

    def layer_types(self):
        return [self.network.get_layer(i).type for i in range(self.network.num_layers)]


def test_registry_has_a_creator_of_each_op(plugin_registry):
    creators = {(creator.name, creator.plugin_version): creator for creator in plugin_registry.all_creators
                if creator.plugin_namespace == ops.PLUGIN_NAMESPACE}  # fmt: skip
    assert creators.keys() == {(op.name, str(op.version)) for op in ops.OPS}
    for op in ops.OPS:
        fields = creators[op.name, str(op.version)].field_names
        assert [plugin_field.name for plugin_field in fields] == [attribute.name for attribute in op.attributes]


@pytest.mark.parametrize("activation", [TensorProto.BFLOAT16, TensorProto.FLOAT16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", ops.OPS, ids=lambda op: op.name)
def test_each_op_builds(plugin_registry, op, architecture, activation):
    nodes = Nodes(activation)
    nodes.add(op)
    build = Build(nodes, (architecture,))
    assert build.layer_types() == [trt.LayerType.PLUGIN_V3]
    assert build.network.num_outputs == len(op.outputs)
    assert build.plan is not None, build.logger.messages


def test_two_layers_share_one_plan_for_all_architectures(plugin_registry):
    """Attention, a projection and MoE, twice: a dynamic T passes through layers that TensorRT has itself."""
    nodes = Nodes(TensorProto.BFLOAT16)
    source = None
    for layer in ("0.", "1."):
        nodes.add(ops.PAGED_ATTENTION, layer, source and {"qkv": source})
        nodes.inputs |= {
            f"{layer}o_proj": (TensorProto.BFLOAT16, (NUM_HEADS * HEAD_DIM, HIDDEN)),
            f"{layer}router": (TensorProto.BFLOAT16, (HIDDEN, EXPERTS)),
            f"{layer}qkv_proj": (TensorProto.BFLOAT16, (HIDDEN, SIZES["(Hq + 2 Hkv) D"])),
        }
        nodes.nodes += [
            helper.make_node("MatMul", [f"{layer}PagedAttention.out", f"{layer}o_proj"], [f"{layer}x"]),
            helper.make_node("MatMul", [f"{layer}x", f"{layer}router"], [f"{layer}logits"]),
        ]
        nodes.add(ops.MOE, layer, {"hidden": f"{layer}x", "router_logits": f"{layer}logits"})
        source = f"{layer}next"
        nodes.nodes.append(helper.make_node("MatMul", [f"{layer}MoE.out", f"{layer}qkv_proj"], [source]))
    nodes.outputs[source] = nodes.activation
    build = Build(nodes)
    assert build.plan is not None, build.logger.messages
    assert build.layer_types().count(trt.LayerType.PLUGIN_V3) == 4


def test_output_shapes_and_types(plugin_registry):
    nodes = Nodes(TensorProto.FLOAT16)
    nodes.add(ops.PAGED_ATTENTION)
    build = Build(nodes)
    out, kv_cache_out = (build.network.get_output(i) for i in range(2))
    assert tuple(out.shape) == (-1, NUM_HEADS * HEAD_DIM)
    assert tuple(kv_cache_out.shape) == (-1, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    assert {out.dtype, kv_cache_out.dtype} == {trt.DataType.HALF}


def test_a_tensor_parallel_block_builds(plugin_registry):
    """The sum over the ranks between a projection and the norm, whose input it feeds."""
    nodes = Nodes(TensorProto.BFLOAT16)
    nodes.inputs |= {
        "attention": (TensorProto.BFLOAT16, ("T", NUM_HEADS * HEAD_DIM)),
        "o_proj": (TensorProto.BFLOAT16, (NUM_HEADS * HEAD_DIM, HIDDEN)),
    }
    nodes.nodes.append(helper.make_node("MatMul", ["attention", "o_proj"], ["partial"]))
    nodes.add(ops.ALL_REDUCE, sources={"x": "partial"})
    nodes.add(ops.ADD_RMS_NORM, sources={"x": "AllReduce.out"})
    build = Build(nodes)
    assert build.plan is not None, build.logger.messages
    assert build.layer_types().count(trt.LayerType.PLUGIN_V3) == 2


@pytest.mark.parametrize("activation", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_a_gather_has_the_rows_of_all_ranks(plugin_registry, activation):
    nodes = Nodes(activation)
    nodes.add(ops.ALL_GATHER)
    nodes.inputs["x"] = (activation, (5, "C"))
    build = Build(nodes)
    out = build.network.get_output(0)
    assert tuple(out.shape) == (3 * 5, SIZES["C"])
    assert out.dtype == build.network.get_input(0).dtype
    assert build.plan is not None, build.logger.messages


@pytest.mark.parametrize(
    ("op", "dtype"), [(ops.LINEAR, trt.DataType.HALF), (ops.LINEAR_FLOAT32, trt.DataType.FLOAT)], ids=["half", "float"]
)
def test_a_linear_has_the_rows_of_its_weight_and_its_declared_type(plugin_registry, op, dtype):
    nodes = Nodes(TensorProto.FLOAT16)
    nodes.add(op)
    out = Build(nodes).network.get_output(0)
    assert (tuple(out.shape), out.dtype) == ((-1, SIZES["N"]), dtype)


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        (ops.PAGED_ATTENTION, {"num_kv_heads": 3}, "num_heads a multiple of num_kv_heads"),
        (ops.PAGED_ATTENTION, {"num_heads": 10}, "qkv: dimension 1"),
        (ops.PAGED_ATTENTION, {"head_dim": 96}, "head_dim 64 or 128, not 96"),
        (ops.PAGED_ATTENTION, {"scale": None}, "missing attribute scale"),
        (ops.PAGED_ATTENTION, {"eps": 1}, "eps is not declared as an int"),
        (ops.MOE, {"top_k": 17}, "got 17 and 16"),
        (ops.MOE, {"top_k": 9}, "experts a token"),
        (ops.MOE, {"norm_topk_prob": 2}, "got 2 and 1"),
        (ops.MOE, {"norm_topk_prob": 1.0}, "norm_topk_prob is not declared as a float"),
        (ops.ALL_GATHER, {"world_size": 0}, "attribute world_size"),
    ],
    ids=lambda value: value.name if isinstance(value, ops.OpDecl) else None,
)
def test_a_wrong_attribute_fails_the_build_by_name(plugin_registry, capfd, op, changes, message):
    nodes = Nodes(TensorProto.BFLOAT16)
    nodes.add(op, **changes)
    assert Build(nodes).plan is None
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("op", "name", "shape", "message"),
    [
        (ops.PAGED_ATTENTION, "block_table", ("B",), "block_table: rank"),
        (ops.PAGED_ATTENTION, "cu_seqlens", ("B",), "cu_seqlens"),
        (ops.PAGED_ATTENTION, "k_norm_weight", (2 * HEAD_DIM,), "k_norm_weight: dimension 0, D"),
        (ops.PAGED_ATTENTION, "kv_cache", ("num_blocks", "2", "Hkv", 48, "D"), "block_size 16, 32 or 64, not 48"),
        (ops.MOE, "hidden", ("T", 96), "gate_up: dimension 2, H"),
        (ops.MOE, "down", ("E_local", "H", 2 * EXPERT_WIDTH), "rows of gate_up"),
        (ops.MOE, "expert_map", ("E", 1), "expert_map: rank"),
        (ops.BALANCED_MOE, "expert_map", (33, "E"), "rows of expert_map"),
        (ops.BALANCED_MOE, "load", (EXPERTS + 1,), "load: dimension 0, E"),
        (ops.LINEAR, "x", ("T", 128), "weight: dimension 1, K"),
        (ops.LINEAR_FLOAT32, "weight", (100, "K"), "rows of weight 100"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_shape_fails_the_build_by_name(plugin_registry, capfd, op, name, shape, message):
    nodes = Nodes(TensorProto.BFLOAT16)
    nodes.add(op)
    nodes.inputs[name] = (nodes.inputs[name][0], shape)
    assert Build(nodes).plan is None
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("op", ops.OPS, ids=lambda op: op.name)
def test_a_missing_input_fails_the_build_by_name(plugin_registry, capfd, op):
    nodes = Nodes(TensorProto.BFLOAT16)
    nodes.add(op)
    nodes.nodes[0].input.pop()
    assert Build(nodes).plan is None
    assert "number of inputs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("op", "name", "dtype"),
    [
        (ops.PAGED_ATTENTION, "positions", TensorProto.INT64),
        (ops.PAGED_ATTENTION, "cos_sin_cache", TensorProto.BFLOAT16),
        (ops.PAGED_ATTENTION, "kv_cache", TensorProto.FLOAT16),
        (ops.MOE, "hidden", TensorProto.FLOAT),
        (ops.MOE, "gate_up", TensorProto.FLOAT16),
        (ops.LINEAR_FLOAT32, "weight", TensorProto.FLOAT),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_type_fails_the_build(plugin_registry, op, name, dtype):
    nodes = Nodes(TensorProto.BFLOAT16)
    nodes.add(op)
    nodes.inputs[name] = (dtype, nodes.inputs[name][1])
    build = Build(nodes)
    assert build.plan is None
    assert build.logger.messages
