"""libqwen3moe_kernels through ctypes: the structures of `include/qwen3moe/kernels.h`, and the operators.

Owns: the Python view of the C API. Must not know torch or TensorRT; pointers and the stream are plain integers.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path

BF16, FP16, FP32 = 0, 1, 2
DTYPES = {"bf16": BF16, "fp16": FP16}  # of weights and activations, by the manifest's names


class KernelError(RuntimeError):
    """A kernel returned a status other than success."""


def _structure(name: str, fields: list[tuple[str, type]]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": fields})


PagedAttentionShape = _structure(
    "PagedAttentionShape",
    [(name, c_int32) for name in (
        "dtype", "num_tokens", "num_seqs", "num_heads", "num_kv_heads", "head_dim",
        "num_blocks", "block_size", "max_blocks", "num_positions")]
    + [("scale", c_float), ("eps", c_float)],
)  # fmt: skip
PagedAttentionTensors = _structure(
    "PagedAttentionTensors",
    [(name, c_void_p) for name in (
        "qkv", "q_norm_weight", "k_norm_weight", "cos_sin_cache", "positions", "kv_cache",
        "block_table", "cu_seqlens", "context_lens", "out")],
)  # fmt: skip
MoEShape = _structure(
    "MoEShape",
    [(name, c_int32) for name in (
        "dtype", "num_tokens", "hidden_size", "intermediate_size",
        "num_experts", "num_local_experts", "top_k", "norm_topk_prob", "map_rows", "num_seqs")],
)  # fmt: skip
MoETensors = _structure(
    "MoETensors",
    [(name, c_void_p) for name in (
        "hidden", "router_logits", "gate_up", "down", "expert_map", "out", "positions", "cu_seqlens", "load")],
)  # fmt: skip
RMSNormShape = _structure(
    "RMSNormShape", [("dtype", c_int32), ("num_tokens", c_int32), ("hidden_size", c_int32), ("eps", c_float)]
)
RMSNormTensors = _structure(
    "RMSNormTensors", [(name, c_void_p) for name in ("x", "residual", "weight", "out", "residual_out")]
)
LinearShape = _structure(
    "LinearShape", [(name, c_int32) for name in ("dtype", "out_float32", "num_tokens", "in_features", "out_features")]
)
LinearTensors = _structure("LinearTensors", [(name, c_void_p) for name in ("x", "weight", "out")])
FillShape = _structure(
    "FillShape",
    [(name, c_uint64) for name in ("count", "columns", "row_stride", "first", "seed")]
    + [("dtype", c_int32), ("low", c_float), ("high", c_float)],
)
FillTensors = _structure("FillTensors", [("values", c_void_p)])
SampleShape = _structure("SampleShape", [("num_rows", c_int32), ("vocab_size", c_int32)])
SampleTensors = _structure(
    "SampleTensors",
    [(name, c_void_p) for name in (
        "logits", "temperature", "top_k", "top_p", "min_p", "seed", "offset", "token")],
)  # fmt: skip
# Of include/qwen3moe/collective.h; they need a communicator.
AllReduceShape = _structure("AllReduceShape", [("count", c_int64), ("dtype", c_int32)])
AllReduceTensors = _structure("AllReduceTensors", [("x", c_void_p), ("out", c_void_p)])
AllGatherShape = _structure("AllGatherShape", [("count", c_int64), ("dtype", c_int32), ("world_size", c_int32)])
AllGatherTensors = _structure("AllGatherTensors", [("x", c_void_p), ("out", c_void_p)])

_OPS = {
    "paged_attention": (PagedAttentionShape, PagedAttentionTensors),
    "moe": (MoEShape, MoETensors),
    "rms_norm": (RMSNormShape, RMSNormTensors),
    "linear": (LinearShape, LinearTensors),
    "fill": (FillShape, FillTensors),
    "sample": (SampleShape, SampleTensors),
    "all_reduce": (AllReduceShape, AllReduceTensors),
    "all_reduce_add_rms_norm": (RMSNormShape, RMSNormTensors),
    "all_gather": (AllGatherShape, AllGatherTensors),
}


class KernelLibrary:
    """The loaded library. `path` names the shared object; OSError if it cannot be loaded."""

    def __init__(self, path: Path | str):
        self._library = ctypes.CDLL(str(path))
        self._library.qwen3moe_last_error.restype = ctypes.c_char_p
        self._library.qwen3moe_version.restype = ctypes.c_char_p

    @property
    def version(self) -> str:
        return self._library.qwen3moe_version().decode()

    @property
    def architectures(self) -> str:
        """The GPUs it was built for, as `check_architectures` takes them."""
        function = self._library.qwen3moe_architectures
        function.restype = ctypes.c_char_p
        return function().decode()

    def workspace_size(self, op: str, shape: ctypes.Structure) -> int:
        """Bytes of scratch memory that `op`, one of the names in `_OPS`, needs at `shape`."""
        function = getattr(self._library, f"qwen3moe_{op}_workspace_size")
        function.argtypes, function.restype = [ctypes.POINTER(_OPS[op][0])], c_size_t
        return function(ctypes.byref(shape))

    def run(
        self,
        op: str,
        shape: ctypes.Structure,
        tensors: ctypes.Structure,
        workspace: int,
        workspace_size: int,
        stream: int,
    ) -> None:
        """Enqueues `op` on `stream`. `workspace` is a device address. Raises KernelError with the library's message."""
        function = getattr(self._library, f"qwen3moe_{op}")
        shape_type, tensors_type = _OPS[op]
        pointers = [ctypes.POINTER(shape_type), ctypes.POINTER(tensors_type)]
        function.argtypes, function.restype = [*pointers, c_void_p, c_size_t, c_void_p], c_int32
        status = function(ctypes.byref(shape), ctypes.byref(tensors), workspace, workspace_size, stream)
        if status != 0:
            raise KernelError(f"{op}: status {status}: {self._library.qwen3moe_last_error().decode()}")
