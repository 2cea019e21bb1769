"""The ONNX local functions against the eager operators, on inputs that no export brings about."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from qwen3moe_export.onnx_functions import BalancedMoE, Linear, LinearFloat32, MoE, PagedAttention
from qwen3moe_export.ops import balanced_moe, moe, paged_attention
from qwen3moe_plugins.ops import DOMAIN


def function_session(function, inputs: dict[str, torch.Tensor], attributes: dict) -> onnxruntime.InferenceSession:
    """A model of one node that calls `function`."""
    elem_types = {torch.float32: onnx.TensorProto.FLOAT, torch.int32: onnx.TensorProto.INT32}
    outputs = {"load_out": onnx.TensorProto.INT32}
    proto = function.to_function_proto()
    node = onnx.helper.make_node(proto.name, list(inputs), list(proto.output), domain=DOMAIN, **attributes)
    graph = onnx.helper.make_graph(
        [node], "one_node",
        [onnx.helper.make_tensor_value_info(name, elem_types[x.dtype], [None] * x.dim()) for name, x in inputs.items()],
        [onnx.helper.make_tensor_value_info(name, outputs.get(name, onnx.TensorProto.FLOAT), None)
         for name in proto.output],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid(DOMAIN, 1), onnx.helper.make_opsetid("", 23)]
    model = onnx.helper.make_model(graph, functions=[proto], opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run_function(function, inputs: dict[str, torch.Tensor], attributes: dict) -> list[torch.Tensor]:
    session = function_session(function, inputs, attributes)
    return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


@pytest.mark.parametrize("norm_topk_prob", [0, 1])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_moe_function_honours_expert_map(top_k, norm_topk_prob):
    """8 experts, 5 of them here, in other slots than their numbers."""
    generator = torch.Generator().manual_seed(top_k)
    tensors = dict(hidden=(11, 12), router_logits=(11, 8), gate_up=(5, 14, 12), down=(5, 12, 7))
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in tensors.items()}
    inputs["expert_map"] = torch.tensor([3, -1, 0, 4, -1, 2, -1, 1], dtype=torch.int32)
    attributes = {"top_k": top_k, "norm_topk_prob": norm_topk_prob}
    expected = moe(**inputs, **attributes)
    torch.testing.assert_close(run_function(MoE, inputs, attributes)[0], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(expected.abs().sum(-1) == 0, absent_everywhere(inputs, top_k)), "only absent experts: zero"


def absent_everywhere(inputs: dict[str, torch.Tensor], top_k: int) -> torch.Tensor:
    chosen = inputs["router_logits"].topk(top_k).indices
    return (inputs["expert_map"][chosen] < 0).all(-1)


def test_moe_of_all_ranks_adds_up():
    """Two halves of the experts, each with its own map, sum to the whole."""
    generator = torch.Generator().manual_seed(0)
    hidden, logits = (torch.randn(9, size, generator=generator) for size in (12, 6))
    gate_up, down = torch.randn(6, 10, 12, generator=generator), torch.randn(6, 12, 5, generator=generator)
    whole = moe(hidden, logits, gate_up, down, torch.arange(6, dtype=torch.int32), 2, 1)
    maps = torch.tensor([[0, 1, 2, -1, -1, -1], [-1, -1, -1, 0, 1, 2]], dtype=torch.int32)
    parts = [
        run_function(
            MoE,
            {
                "hidden": hidden,
                "router_logits": logits,
                "gate_up": gate_up[rows],
                "down": down[rows],
                "expert_map": expert_map,
            },
            {"top_k": 2, "norm_topk_prob": 1},
        )[0]
        for rows, expert_map in zip((slice(0, 3), slice(3, 6)), maps, strict=True)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-5, atol=1e-5)


def test_moe_prefers_the_lower_expert_among_equals():
    hidden, logits = torch.ones(1, 2), torch.tensor([[1.0, 2.0, 2.0, 2.0]])
    gate_up = torch.arange(1, 5).float().reshape(4, 1, 1).expand(4, 2, 2).contiguous()
    inputs = {"hidden": hidden, "router_logits": logits, "gate_up": gate_up, "down": torch.ones(4, 2, 1),
              "expert_map": torch.arange(4, dtype=torch.int32)}  # fmt: skip
    attributes = {"top_k": 2, "norm_topk_prob": 1}
    expected = torch.stack([torch.nn.functional.silu(x) * x for x in torch.tensor([4.0, 6.0])]).mean()
    torch.testing.assert_close(moe(**inputs, **attributes), expected.expand(1, 2))
    torch.testing.assert_close(run_function(MoE, inputs, attributes)[0], expected.expand(1, 2))


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_balanced_moe_function(top_k):
    """Three rows of a map, two sequences and three tokens of padding: each token is served as by MoE with its row."""
    generator = torch.Generator().manual_seed(top_k)
    tensors = dict(hidden=(11, 12), router_logits=(11, 8), gate_up=(5, 14, 12), down=(5, 12, 7))
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in tensors.items()}
    attributes = {"top_k": top_k, "norm_topk_prob": 1}
    rows = torch.tensor([[3, -1, 0, 4, -1, 2, -1, 1], [3, -1, -1, 4, -1, 2, -1, -1], [-1, -1, 0, -1, -1, 2, -1, 1]])
    more = {
        "expert_map": rows.to(torch.int32),
        "positions": torch.tensor([0, 1, 2, 3, 4, 17, 18, 0, 0, 1, 2], dtype=torch.int32),
        "cu_seqlens": torch.tensor([0, 5, 8], dtype=torch.int32),
        "load": torch.arange(8, dtype=torch.int32),
    }
    expected_out, expected_load = balanced_moe(**inputs, **more, **attributes)
    out, load = run_function(BalancedMoE, inputs | more, attributes)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-5)
    assert torch.equal(load, expected_load)

    of_token = more["positions"] % 3
    plain = [moe(**inputs, expert_map=row, **attributes) for row in more["expert_map"]]
    torch.testing.assert_close(out, torch.stack(plain)[of_token, torch.arange(11)], rtol=1e-5, atol=1e-5)
    chosen = inputs["router_logits"].topk(top_k).indices
    served = [
        sum(expert in chosen[token] and rows[of_token[token], expert] >= 0 for token in range(8)) for expert in range(8)
    ]
    assert (load - more["load"]).tolist() == served


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("block_size", [3, 16])
def test_paged_attention_function(num_heads, num_kv_heads, block_size):
    """Prefill, continuation, decode, two sequences without new tokens (one without any), and padding at the end."""
    generator = torch.Generator().manual_seed(num_heads)
    head_dim, new, contexts, num_padding = 8, [7, 4, 1, 0, 0], [7, 21, 17, 9, 0], 3
    num_blocks_of = [-(-context // block_size) for context in contexts]
    num_blocks = sum(num_blocks_of) + 3
    order = torch.randperm(num_blocks, generator=generator)
    table = torch.full((len(new), max(num_blocks_of) + 2), -999, dtype=torch.int32)
    for row, ids in zip(table, order.split([*num_blocks_of, 3]), strict=False):
        row[: len(ids)] = ids
    num_tokens = sum(new) + num_padding
    inputs = {
        "qkv": torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, generator=generator),
        "q_norm_weight": torch.rand(head_dim, generator=generator) + 0.5,
        "k_norm_weight": torch.rand(head_dim, generator=generator) + 0.5,
        "cos_sin_cache": torch.randn(40, head_dim, generator=generator),
        "positions": torch.randint(40, (num_tokens,), generator=generator, dtype=torch.int32),
        "kv_cache": torch.randn(num_blocks, 2, num_kv_heads, block_size, head_dim, generator=generator),
        "block_table": table,
        "cu_seqlens": torch.tensor([0, *np.cumsum(new)], dtype=torch.int32),
        "context_lens": torch.tensor(contexts, dtype=torch.int32),
    }
    attributes = dict(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=0.3, eps=1e-5)
    out, kv_cache = run_function(PagedAttention, inputs, attributes)
    expected_out, expected_cache = paged_attention(**inputs, **attributes)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kv_cache, expected_cache, rtol=1e-5, atol=1e-6)

    for found in (out, expected_out):
        assert not found[-num_padding:].any(), "rows of padding are zero"
        assert found[:-num_padding].any(-1).all()
    written = torch.zeros(num_blocks, block_size, dtype=torch.bool)
    for row, num_new, context in zip(table.tolist(), new, contexts, strict=True):
        for index in range(context - num_new, context):
            written[row[index // block_size], index % block_size] = True
    for found in (kv_cache, expected_cache):
        changed = (found != inputs["kv_cache"]).any(dim=-1).any(dim=2).any(dim=1)
        assert torch.equal(changed, written), "new tokens are written, and nothing else"


@pytest.mark.parametrize("function", [Linear, LinearFloat32], ids=lambda function: function.name)
def test_linear_function(function):
    generator = torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(5, 12, generator=generator), "weight": torch.randn(7, 12, generator=generator)}
    expected = torch.nn.functional.linear(**inputs)
    torch.testing.assert_close(run_function(function, inputs, {})[0], expected, rtol=1e-5, atol=1e-5)
