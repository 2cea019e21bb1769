"""The custom operators, declared once, as data.

Owns: names, versions, inputs, outputs and attributes of every operator in the `qwen3moe` domain. Torch, ONNX and C++
are checked against these declarations. Must not know torch, onnx or TensorRT.

Legend: T tokens of all sequences packed (ragged), B sequences, H hidden size, D head_dim, Hq query heads, Hkv key/value
heads, E experts, E_local experts held here, R rows of a map of experts with replicas, I expert width, P rows of
the rotary table, N rows and K columns of a weight, M rows and C columns of any matrix, world_size ranks of the group.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "qwen3moe"
PLUGIN_NAMESPACE = "qwen3moe"

ACTIVATION = "activation"
FLOAT32 = "float32"
INT32 = "int32"


@dataclass(frozen=True)
class TensorDecl:
    """A tensor of an operator.

    dtype: `activation` (bf16, fp16 or fp32, the same throughout one call), `float32` or `int32`.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class AttributeDecl:
    """A compile-time constant of an operator: `kind` is `int` or `float`."""

    name: str
    kind: str


@dataclass(frozen=True)
class OpDecl:
    """An operator. `aliases` maps an output's name to the input whose memory it shares in an engine."""

    name: str
    version: int
    inputs: tuple[TensorDecl, ...]
    outputs: tuple[TensorDecl, ...]
    attributes: tuple[AttributeDecl, ...]
    aliases: tuple[tuple[str, str], ...] = ()


# Token t of sequence b (cu_seqlens[b] <= t < cu_seqlens[b + 1]) stands in its sequence's cache at index
#   p = context_lens[b] - (cu_seqlens[b + 1] - cu_seqlens[b]) + (t - cu_seqlens[b])
# that is in block block_table[b, p // block_size], slot p % block_size, and attends to indices 0..p.
# context_lens counts the new tokens. A sequence may have no new token. Tokens at or past cu_seqlens[B] are padding:
# they write no key or value, and their rows of `out` are zero. Entries of block_table past a sequence's blocks are
# ignored. Query and key heads are RMS-normalised over D, then rotated (halves paired: i with i + D/2) by row
# positions[t] of the table, whose first D/2 columns are cosines and last D/2 sines.
PAGED_ATTENTION = OpDecl(
    name="PagedAttention",
    version=1,
    inputs=(
        TensorDecl("qkv", ACTIVATION, ("T", "(Hq + 2 Hkv) D")),
        TensorDecl("q_norm_weight", ACTIVATION, ("D",)),
        TensorDecl("k_norm_weight", ACTIVATION, ("D",)),
        TensorDecl("cos_sin_cache", FLOAT32, ("P", "D")),
        TensorDecl("positions", INT32, ("T",)),
        TensorDecl("kv_cache", ACTIVATION, ("num_blocks", "2", "Hkv", "block_size", "D")),
        TensorDecl("block_table", INT32, ("B", "max_blocks")),
        TensorDecl("cu_seqlens", INT32, ("B + 1",)),
        TensorDecl("context_lens", INT32, ("B",)),
    ),
    outputs=(
        TensorDecl("out", ACTIVATION, ("T", "Hq D")),
        TensorDecl("kv_cache_out", ACTIVATION, ("num_blocks", "2", "Hkv", "block_size", "D")),
    ),
    attributes=(
        AttributeDecl("num_heads", "int"),
        AttributeDecl("num_kv_heads", "int"),
        AttributeDecl("head_dim", "int"),
        AttributeDecl("scale", "float"),
        AttributeDecl("eps", "float"),
    ),
    aliases=(("kv_cache_out", "kv_cache"),),
)

# Softmax of router_logits over all E in fp32, the top_k largest (the lower index first among equals), divided by their
# sum if norm_topk_prob; then the sum over the chosen experts e of weight * down[s] @ (silu(g) * u), where
# [g; u] = gate_up[s] @ x and s = expert_map[e]. An expert with slot -1 is not held here and adds nothing.
MOE = OpDecl(
    name="MoE",
    version=1,
    inputs=(
        TensorDecl("hidden", ACTIVATION, ("T", "H")),
        TensorDecl("router_logits", ACTIVATION, ("T", "E")),
        TensorDecl("gate_up", ACTIVATION, ("E_local", "2 I", "H")),
        TensorDecl("down", ACTIVATION, ("E_local", "H", "I")),
        TensorDecl("expert_map", INT32, ("E",)),
    ),
    outputs=(TensorDecl("out", ACTIVATION, ("T", "H")),),
    attributes=(AttributeDecl("top_k", "int"), AttributeDecl("norm_topk_prob", "int")),
)

# MoE of experts that may have replicas on several ranks. Row (positions[t] % R) of expert_map says which of them this
# rank serves token t with; in all rows that have one, an expert's slot is the same. load_out[e] is load[e] and how many
# tokens ahead of the padding, which begins at cu_seqlens[B], expert e served here; it wraps at 2^32.
BALANCED_MOE = OpDecl(
    name="BalancedMoE",
    version=1,
    inputs=(
        *MOE.inputs[:-1],
        TensorDecl("expert_map", INT32, ("R", "E")),
        TensorDecl("positions", INT32, ("T",)),
        TensorDecl("cu_seqlens", INT32, ("B + 1",)),
        TensorDecl("load", INT32, ("E",)),
    ),
    outputs=(*MOE.outputs, TensorDecl("load_out", INT32, ("E",))),
    attributes=MOE.attributes,
    aliases=(("load_out", "load"),),
)

# weight * x / sqrt(mean(x^2) + eps) over H, in fp32, rounded once.
RMS_NORM = OpDecl(
    name="RMSNorm",
    version=1,
    inputs=(TensorDecl("x", ACTIVATION, ("T", "H")), TensorDecl("weight", ACTIVATION, ("H",))),
    outputs=(TensorDecl("out", ACTIVATION, ("T", "H")),),
    attributes=(AttributeDecl("eps", "float"),),
)

# residual_out = x + residual, rounded; out = RMSNorm(residual_out).
ADD_RMS_NORM = OpDecl(
    name="AddRMSNorm",
    version=1,
    inputs=(
        TensorDecl("x", ACTIVATION, ("T", "H")),
        TensorDecl("residual", ACTIVATION, ("T", "H")),
        TensorDecl("weight", ACTIVATION, ("H",)),
    ),
    outputs=(TensorDecl("out", ACTIVATION, ("T", "H")), TensorDecl("residual_out", ACTIVATION, ("T", "H"))),
    attributes=(AttributeDecl("eps", "float"),),
)

# x @ weight^T, sums in fp32, rounded once.
LINEAR = OpDecl(
    name="Linear",
    version=1,
    inputs=(TensorDecl("x", ACTIVATION, ("T", "K")), TensorDecl("weight", ACTIVATION, ("N", "K"))),
    outputs=(TensorDecl("out", ACTIVATION, ("T", "N")),),
    attributes=(),
)

# The same, not rounded: for logits.
LINEAR_FLOAT32 = OpDecl(
    name="LinearFloat32",
    version=1,
    inputs=LINEAR.inputs,
    outputs=(TensorDecl("out", FLOAT32, ("T", "N")),),
    attributes=(),
)

# The sum of x over the ranks of the group. A rank has one group at any time, so no attribute names it. Every rank calls
# with the same shape, in the same order; all get the same bits.
ALL_REDUCE = OpDecl(
    name="AllReduce",
    version=1,
    inputs=(TensorDecl("x", ACTIVATION, ("T", "H")),),
    outputs=(TensorDecl("out", ACTIVATION, ("T", "H")),),
    attributes=(),
)

# AddRMSNorm of AllReduce(x): what stands between the layers of a group of ranks, as one operator.
ALL_REDUCE_ADD_RMS_NORM = OpDecl(
    name="AllReduceAddRMSNorm",
    version=1,
    inputs=ADD_RMS_NORM.inputs,
    outputs=ADD_RMS_NORM.outputs,
    attributes=ADD_RMS_NORM.attributes,
)

# The x of every rank of the group, rank after rank: row r * M + m of `out` is row m of rank r.
ALL_GATHER = OpDecl(
    name="AllGather",
    version=1,
    inputs=(TensorDecl("x", ACTIVATION, ("M", "C")),),
    outputs=(TensorDecl("out", ACTIVATION, ("world_size M", "C")),),
    attributes=(AttributeDecl("world_size", "int"),),
)

OPS: tuple[OpDecl, ...] = (
    PAGED_ATTENTION,
    MOE,
    BALANCED_MOE,
    RMS_NORM,
    ADD_RMS_NORM,
    LINEAR,
    LINEAR_FLOAT32,
    ALL_REDUCE,
    ALL_GATHER,
    ALL_REDUCE_ADD_RMS_NORM,
)

# What has no local function: a runtime without the operator must fail, as no function of one rank's tensors is right.
COLLECTIVES: tuple[OpDecl, ...] = (ALL_REDUCE, ALL_GATHER)
