"""The custom operators as ONNX local functions: what runs where no plugin is registered.

Owns: loop-free bodies in standard operators, for any dtype of activations and any value of the dynamic dimensions. A
runtime that has a kernel for the operator never looks at them. MoE computes every local expert for every token: simple,
and right, but dense. KV caches must hold no NaN, as masked scores still meet their values; runtimes zero-fill them.
PagedAttention is one long function because a local function is one graph: its paragraphs are its parts.

Legend: as in qwen3moe_plugins.ops; n tokens without padding, L the longest run of new tokens, S the longest context,
G query heads a key/value head serves.
"""

# onnxscript compiles these bodies: they are not run as Python, and its attribute parameters must be annotated.
# mypy: ignore-errors

from __future__ import annotations

import onnx
from onnxscript import FLOAT, INT32, INT64, script
from onnxscript import opset23 as op
from onnxscript.values import Opset

from qwen3moe_engine.parallel.python_ops import PYTHON_OP_DOMAIN, collective_name
from qwen3moe_plugins.ops import (
    ADD_RMS_NORM,
    BALANCED_MOE,
    COLLECTIVES,
    DOMAIN,
    LINEAR,
    LINEAR_FLOAT32,
    MOE,
    PAGED_ATTENTION,
    RMS_NORM,
    OpDecl,
)

_LOWEST = -3.0e38  # masked scores: finite, so that a fully masked row (padding) does not become NaN


@script(Opset(DOMAIN, PAGED_ATTENTION.version), default_opset=op)
def PagedAttention(
    qkv, q_norm_weight, k_norm_weight, cos_sin_cache, positions, kv_cache, block_table, cu_seqlens, context_lens,
    num_heads: int, num_kv_heads: int, head_dim: int, scale: float, eps: float,
):  # fmt: skip
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[-1])
    num_q = op.Reshape(op.Constant(value_int=num_heads), one)
    num_kv = op.Reshape(op.Constant(value_int=num_kv_heads), one)
    size = op.Reshape(op.Constant(value_int=head_dim), one)

    # starts, lengths, context: int64 [B]; n = cu_seqlens[B]
    bounds = op.Cast(cu_seqlens, to=INT64.dtype)
    context = op.Cast(context_lens, to=INT64.dtype)
    starts = op.Slice(bounds, zero, last, zero)
    ends = op.Slice(bounds, one, op.Shape(bounds), zero)
    lengths = ends - starts
    n = op.Gather(bounds, last)
    num_seqs = op.Shape(context)

    # the n real tokens: heads [n, Hq + 2 Hkv, D], rotary rows [n, 1, D]
    tokens = op.Slice(qkv, zero, n, zero)
    heads = op.Reshape(tokens, op.Concat(zero, last, size, axis=0))
    queries_keys, value = op.Split(heads, op.Concat(num_q + num_kv, num_kv, axis=0), axis=1)
    cos_sin = op.Unsqueeze(op.Gather(cos_sin_cache, op.Slice(positions, zero, n, zero)), one)
    cos, sin = op.Split(cos_sin, axis=-1, num_outputs=2)

    # RMS norm and rotation of queries and keys together, in fp32
    norm_weight = op.Concat(
        op.Expand(op.Unsqueeze(q_norm_weight, zero), op.Concat(num_q, one, axis=0)),
        op.Expand(op.Unsqueeze(k_norm_weight, zero), op.Concat(num_kv, one, axis=0)),
        axis=0,
    )
    x = op.Cast(queries_keys, to=FLOAT.dtype)
    mean_square = op.ReduceMean(x * x, last)
    normed = x / op.Sqrt(mean_square + op.Constant(value_float=eps)) * op.Cast(norm_weight, to=FLOAT.dtype)
    first, second = op.Split(normed, axis=-1, num_outputs=2)
    rotated = op.Concat(first * cos - second * sin, second * cos + first * sin, axis=-1)
    query, key = op.Split(op.CastLike(rotated, qkv), op.Concat(num_q, num_kv, axis=0), axis=1)

    # sequence and cache index of each token: int64 [n]
    token = op.Range(op.Squeeze(zero), op.Squeeze(n), op.Squeeze(one))
    seq = op.ReduceSum(op.Cast(op.Unsqueeze(token, one) >= ends, to=INT64.dtype), one, keepdims=0)
    offset = token - op.Gather(starts, seq)
    index = op.Gather(context, seq) - op.Gather(lengths, seq) + offset

    # the cache as rows of D: row (block, k or v, head, slot) is ((block * 2 + k or v) * Hkv + head) * block_size + slot
    cache_shape = op.Shape(kv_cache)
    block_size = op.Gather(cache_shape, op.Constant(value_ints=[3]))
    rows = op.Reshape(kv_cache, op.Concat(last, size, axis=0))
    key_or_value = op.Constant(value=onnx.helper.make_tensor("kv", onnx.TensorProto.INT64, [2, 1], [0, 1]))
    kv_head = op.Range(op.Squeeze(zero), op.Squeeze(num_kv), op.Squeeze(one))
    plane = (key_or_value * num_kv + kv_head) * block_size  # [2, Hkv]
    table = op.Cast(block_table, to=INT64.dtype)
    stride = num_kv * block_size * op.Constant(value_ints=[2])

    # new keys and values [n, 2, Hkv, D] into their rows
    block = op.GatherND(table, op.Concat(op.Unsqueeze(seq, one), op.Unsqueeze(index / block_size, one), axis=1))
    base = block * stride + op.Mod(index, block_size)
    new_rows = op.Unsqueeze(base, op.Constant(value_ints=[1, 2])) + plane
    new_values = op.Concat(op.Unsqueeze(key, one), op.Unsqueeze(value, one), axis=1)
    rows_out = op.ScatterND(rows, op.Unsqueeze(new_rows, op.Constant(value_ints=[3])), new_values)
    kv_cache_out = op.Reshape(rows_out, cache_shape)

    # context of every sequence, [2, B, Hkv, S, D]; past its end row 0, which the mask hides
    longest = op.ReduceMax(context, keepdims=0)
    position = op.Range(op.Squeeze(zero), longest, op.Squeeze(one))
    in_context = position < op.Unsqueeze(context, one)  # [B, S]
    column = op.Expand(op.Unsqueeze(position / block_size, zero), op.Shape(in_context))
    safe_column = op.Where(in_context, column, zero)
    context_block = op.Where(in_context, op.GatherElements(table, safe_column, axis=1), zero)
    context_base = context_block * stride + op.Mod(position, block_size)
    kv_plane = op.Unsqueeze(plane, op.Constant(value_ints=[1, 3]))  # [2, 1, Hkv, 1]
    context_rows = kv_plane + op.Unsqueeze(context_base, one)  # [2, B, Hkv, S]
    keys, values = op.Split(op.Gather(rows_out, context_rows), axis=0, num_outputs=2)
    keys_t = op.Transpose(op.Squeeze(keys, zero), perm=[0, 1, 3, 2])  # [B, Hkv, D, S]

    # queries padded to the longest run, [B, Hkv, G * L, D]
    run = op.ReduceMax(lengths, keepdims=0)
    run_offset = op.Range(op.Squeeze(zero), run, op.Squeeze(one))
    source = op.Min(op.Unsqueeze(starts, one) + run_offset, n - one)  # [B, L]
    num_run = op.Reshape(run, one)
    group = num_q / num_kv
    padded = op.Reshape(op.Gather(query, source), op.Concat(num_seqs, num_run, num_kv, group, size, axis=0))
    grouped = op.Transpose(padded, perm=[0, 2, 3, 1, 4])
    flat = op.Reshape(grouped, op.Concat(num_seqs, num_kv, last, size, axis=0))

    # masked softmax in fp32 over [B, Hkv, G, L, S]
    scores = op.Cast(op.MatMul(flat, keys_t), to=FLOAT.dtype) * op.Constant(value_float=scale)
    limit = op.Unsqueeze(context - lengths, one) + run_offset  # [B, L]
    visible = op.Unsqueeze(position <= op.Unsqueeze(limit, op.Constant(value_ints=[2])), op.Constant(value_ints=[1, 2]))
    split_shape = op.Concat(num_seqs, num_kv, group, num_run, last, axis=0)
    masked = op.Where(visible, op.Reshape(scores, split_shape), op.Constant(value_float=_LOWEST))
    probs = op.Reshape(op.CastLike(op.Softmax(masked, axis=-1), qkv), op.Shape(scores))
    attended = op.MatMul(probs, op.Squeeze(values, zero))

    # back to packed tokens [n, Hq * D], then rows of zeros for padding
    unpacked = op.Transpose(op.Reshape(attended, op.Shape(grouped)), perm=[0, 3, 1, 2, 4])
    by_row = op.Reshape(unpacked, op.Concat(num_seqs * num_run, num_q * size, axis=0))
    real = op.Gather(by_row, seq * run + offset)
    num_padding = op.Shape(qkv, start=0, end=1) - n
    out = op.Pad(real, op.Concat(zero, zero, num_padding, zero, axis=0))
    return out, kv_cache_out


@script(Opset(DOMAIN, MOE.version), default_opset=op)
def MoE(hidden, router_logits, gate_up, down, expert_map, top_k: int, norm_topk_prob: int):
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[-1])

    # routing weights as a dense [T, E_local]: zero where an expert was not chosen
    probs = op.Softmax(op.Cast(router_logits, to=FLOAT.dtype), axis=-1)
    best, chosen = op.TopK(probs, op.Reshape(op.Constant(value_int=top_k), one), axis=-1)
    renormalise = op.Cast(op.Constant(value_int=norm_topk_prob), to=onnx.TensorProto.BOOL)
    total = op.Where(renormalise, op.ReduceSum(best, last), op.Constant(value_float=1.0))
    by_expert = op.ScatterElements(op.ConstantOfShape(op.Shape(probs)), chosen, best / total, axis=1)
    slots = op.Range(op.Squeeze(zero), op.Squeeze(op.Shape(gate_up, start=0, end=1)), op.Squeeze(one))
    is_in_slot = op.Unsqueeze(op.Cast(expert_map, to=INT64.dtype), one) == slots
    weights = op.MatMul(by_expert, op.Cast(is_in_slot, to=FLOAT.dtype))

    # every expert for every token, tokens in columns: the weights [E_local, rows, columns] need no transposition
    hidden_t = op.Transpose(hidden, perm=[1, 0])
    gate, up = op.Split(op.MatMul(gate_up, hidden_t), axis=1, num_outputs=2)
    activated = gate * op.Sigmoid(gate) * up
    by_slot = op.Cast(op.MatMul(down, activated), to=FLOAT.dtype)  # [E_local, H, T]
    weighted = by_slot * op.Unsqueeze(op.Transpose(weights, perm=[1, 0]), one)
    out = op.Transpose(op.ReduceSum(weighted, zero, keepdims=0), perm=[1, 0])
    return op.CastLike(out, hidden)


@script(Opset(DOMAIN, BALANCED_MOE.version), default_opset=op)
def BalancedMoE(
    hidden, router_logits, gate_up, down, expert_map, positions, cu_seqlens, load, top_k: int, norm_topk_prob: int
):
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[-1])

    # each token's experts and where they are for it: [T, top_k]
    probs = op.Softmax(op.Cast(router_logits, to=FLOAT.dtype), axis=-1)
    best, chosen = op.TopK(probs, op.Reshape(op.Constant(value_int=top_k), one), axis=-1)
    renormalise = op.Cast(op.Constant(value_int=norm_topk_prob), to=onnx.TensorProto.BOOL)
    total = op.Where(renormalise, op.ReduceSum(best, last), op.Constant(value_float=1.0))
    row = op.Mod(op.Cast(positions, to=INT64.dtype), op.Shape(expert_map, start=0, end=1))
    slot = op.GatherElements(op.Gather(op.Cast(expert_map, to=INT64.dtype), row), chosen, axis=1)

    # tokens that an expert served
    token = op.Range(op.Squeeze(zero), op.Squeeze(op.Shape(hidden, start=0, end=1)), op.Squeeze(one))
    is_token = op.Unsqueeze(token, one) < op.Gather(op.Cast(cu_seqlens, to=INT64.dtype), last)
    served = op.Cast(op.And(slot > last, is_token), to=INT32.dtype)
    load_out = op.ScatterElements(load, op.Reshape(chosen, last), op.Reshape(served, last), axis=0, reduction="add")

    # routing weights as a dense [T, E_local], then as in MoE
    slots = op.Range(op.Squeeze(zero), op.Squeeze(op.Shape(gate_up, start=0, end=1)), op.Squeeze(one))
    is_in_slot = op.Cast(op.Unsqueeze(slot, last) == slots, to=FLOAT.dtype)
    weights = op.ReduceSum(op.Unsqueeze(best / total, last) * is_in_slot, one, keepdims=0)
    hidden_t = op.Transpose(hidden, perm=[1, 0])
    gate, up = op.Split(op.MatMul(gate_up, hidden_t), axis=1, num_outputs=2)
    activated = gate * op.Sigmoid(gate) * up
    by_slot = op.Cast(op.MatMul(down, activated), to=FLOAT.dtype)
    weighted = by_slot * op.Unsqueeze(op.Transpose(weights, perm=[1, 0]), one)
    out = op.Transpose(op.ReduceSum(weighted, zero, keepdims=0), perm=[1, 0])
    return op.CastLike(out, hidden), load_out


@script(Opset(DOMAIN, RMS_NORM.version), default_opset=op)
def RMSNorm(x, weight, eps: float):
    x32 = op.Cast(x, to=FLOAT.dtype)
    mean_square = op.ReduceMean(x32 * x32, op.Constant(value_ints=[-1]))
    normed = x32 / op.Sqrt(mean_square + op.Constant(value_float=eps)) * op.Cast(weight, to=FLOAT.dtype)
    return op.CastLike(normed, x)


@script(Opset(DOMAIN, ADD_RMS_NORM.version), default_opset=op)
def AddRMSNorm(x, residual, weight, eps: float):
    residual_out = x + residual
    x32 = op.Cast(residual_out, to=FLOAT.dtype)
    mean_square = op.ReduceMean(x32 * x32, op.Constant(value_ints=[-1]))
    normed = x32 / op.Sqrt(mean_square + op.Constant(value_float=eps)) * op.Cast(weight, to=FLOAT.dtype)
    return op.CastLike(normed, x), residual_out


@script(Opset(DOMAIN, LINEAR.version), default_opset=op)
def Linear(x, weight):
    return op.Gemm(x, weight, transB=1)


@script(Opset(DOMAIN, LINEAR_FLOAT32.version), default_opset=op)
def LinearFloat32(x, weight):
    return op.Gemm(op.Cast(x, to=FLOAT.dtype), op.Cast(weight, to=FLOAT.dtype), transB=1)


_FUNCTIONS = (PagedAttention, MoE, BalancedMoE, RMSNorm, AddRMSNorm, Linear, LinearFloat32)


def local_functions() -> list[onnx.FunctionProto]:
    """One function for each declared operator."""
    return [*(function.to_function_proto() for function in _FUNCTIONS), *map(_collective, COLLECTIVES)]


def _collective(decl: OpDecl) -> onnx.FunctionProto:
    """No standard operator reaches another rank. The body calls one that the runtime registers under PYTHON_OP_DOMAIN,
    so that a runtime without it refuses the graph instead of computing one rank's part of the sum."""
    call = onnx.helper.make_node(collective_name(decl), ["x"], ["found"], domain=PYTHON_OP_DOMAIN)
    typed = onnx.helper.make_node("CastLike", ["found", "x"], ["out"])  # the type of a foreign operator is unknown
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(PYTHON_OP_DOMAIN, 1)]
    attributes = [attribute.name for attribute in decl.attributes]
    return onnx.helper.make_function(DOMAIN, decl.name, ["x"], ["out"], [call, typed], opsets, attributes)
