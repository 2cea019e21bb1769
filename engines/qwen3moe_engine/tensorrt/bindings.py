"""Device memory behind every input and output of a plan.

Owns: where each binding lies and how large it may get. Addresses never change, so that CUDA graphs stay valid. Must not
know TensorRT.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.manifest import InputSpec, Manifest
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, Stream, free_memory
from qwen3moe_engine.tensorrt.plan import Limits
from qwen3moe_engine.tensorrt.step_inputs import StepInputs
from qwen3moe_engine.weights import cos_sin_cache, num_bytes_of, rank_constants
from qwen3moe_plugins.errors import InputError


class Bindings:
    """`addresses` by name, those of a step's inputs excepted; `shapes` of the inputs whose shape no step changes."""

    def __init__(self, manifest: Manifest, limits: Limits, stream: Stream, group_rank: int = 0):
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.memory = DeviceMemory()
        self._manifest, self._limits, self._stream, self._group_rank = manifest, limits, stream, group_rank
        for spec in manifest.of_kind("weight"):
            self._place(spec)
        self._place_constants()
        self._place_loads()

    def close(self) -> None:
        self.memory.close()

    def make_step_inputs(self, max_tokens: int, max_logits: int) -> StepInputs:
        """For steps of so many tokens and rows of logits at most."""
        limits = self._limits
        largest = {
            "num_tokens": max_tokens,
            "num_seqs": limits.max_seqs,
            "num_seqs_plus_1": limits.max_seqs + 1,
            "max_blocks": num_blocks_for(limits.max_context, limits.block_size),
            "num_logits": max_logits,
        }
        kinds = ("hidden_states", "batch")
        specs = [self._sized(spec, **largest) for kind in kinds for spec in self._manifest.of_kind(kind)]
        return StepInputs(specs, self.memory, self._stream)

    def place_kv_pool(self, num_blocks: int | None, reserve_bytes: float) -> int:
        """Allocates `num_blocks` for each layer, by default as many as leave `reserve_bytes` free; returns how many."""
        specs = self._manifest.of_kind("kv_cache")
        block_bytes = sum(num_bytes_of(self._sized(spec, num_blocks=1)) for spec in specs)
        if num_blocks is None:
            num_blocks = min(int((free_memory() - reserve_bytes) // block_bytes), self._limits.max_blocks)
        if num_blocks < 1:
            raise InputError(
                "KV cache",
                got=f"{free_memory() / 1e9:.2f} GB of free GPU memory, {reserve_bytes / 1e9:.2f} GB of it reserved",
                expected=f"room for at least a block of {block_bytes} bytes",
                remedy="lower the plan's limits or use more GPUs",
            )
        for spec in specs:
            self._place(self._sized(spec, num_blocks=num_blocks))
        aliases = {output.name: output.aliases for output in self._manifest.outputs if output.aliases}
        self.addresses |= {output: self.addresses[cache] for output, cache in aliases.items()}
        return num_blocks

    def _place(self, spec: InputSpec) -> None:
        self.addresses[spec.name] = self.memory.allocate(num_bytes_of(spec), spec.name)
        self.shapes[spec.name] = spec.static_shape

    def _place_loads(self) -> None:
        """Zeros, [layers, `load_stride`] int32 at `load_address`, so that one copy brings all."""
        specs = self._manifest.of_kind("load")
        if not specs:
            return
        self.load_stride = -(-self._manifest.dims.num_experts // 64) * 64  # 256 bytes, as TensorRT wants addresses
        zeros = np.zeros((len(specs), self.load_stride), np.int32)
        self.load_address = self.memory.allocate(zeros.nbytes, "loads of experts")
        self._stream.to_device(self.load_address, zeros.ctypes.data, zeros.nbytes)
        self._stream.synchronize()
        for number, spec in enumerate(specs):
            self.addresses[spec.name] = self.load_address + number * self.load_stride * zeros.itemsize
            self.shapes[spec.name] = spec.static_shape

    def _place_constants(self) -> None:
        specs = {spec.name: spec for spec in self._manifest.inputs}
        constants = rank_constants(self._manifest, self._group_rank)
        arrays: dict[InputSpec, NDArray] = {specs[name]: array for name, array in constants.items()}
        arrays |= {
            self._sized(spec, num_positions=self._limits.max_context): cos_sin_cache(
                self._manifest.rope, self._limits.max_context
            )
            for spec in self._manifest.of_kind("rope")
        }
        for spec, array in arrays.items():
            self._place(spec)
            self._stream.to_device(self.addresses[spec.name], array.ctypes.data, array.nbytes)
        self._stream.synchronize()

    def _sized(self, spec: InputSpec, **sizes: int) -> InputSpec:
        """`spec` with its dynamic dimensions given sizes."""
        sizes = {"block_size": self._limits.block_size} | sizes
        return replace(spec, shape=tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape))
