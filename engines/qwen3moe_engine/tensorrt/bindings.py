"""Device memory behind every input and output of a plan.

Owns: where each binding lies and how large it may get. Addresses never change, so that CUDA graphs stay valid. Must not
know TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.checkpoint import NUMPY_DTYPES
from qwen3moe_engine.manifest import InputSpec, Manifest
from qwen3moe_engine.tensorrt.cuda import DeviceMemory, PinnedBuffer, Stream, free_memory
from qwen3moe_engine.tensorrt.plan import Limits
from qwen3moe_engine.weights import cos_sin_cache, expert_map, num_bytes_of
from qwen3moe_plugins.errors import InputError

_ALIGNMENT = 256  # bytes, of each input in the staging buffer


@dataclass(frozen=True)
class _Staged:
    """A batch input's part of the staging buffer, in bytes."""

    offset: int
    capacity: int


class Bindings:
    """`addresses` of all bindings by name; `shapes` of those inputs whose shape no step changes."""

    def __init__(self, manifest: Manifest, limits: Limits, max_logits: int, stream: Stream):
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.memory = DeviceMemory()
        self._manifest, self._limits, self._stream = manifest, limits, stream
        for spec in manifest.of_kind("weight"):
            self._place(spec)
        self._place_expert_maps_and_rope()
        self._staging = self._place_batch(max_logits)
        self._host_inputs = PinnedBuffer(sum(_align(staged.capacity) for staged in self._staging.values()))
        row_bytes = manifest.dims.vocab_size * NUMPY_DTYPES["fp32"].itemsize
        self.addresses["logits"] = self.memory.allocate(max_logits * row_bytes, "logits")
        self._host_logits = PinnedBuffer(max_logits * row_bytes)

    def close(self) -> None:
        self._host_inputs.close()
        self._host_logits.close()
        self.memory.close()

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

    def send(self, batch: Batch) -> None:
        """Enqueues the copy of a step's inputs. The previous step must have ended: it read the same staging buffer."""
        for name, array in batch.inputs().items():
            staged = self._staging[name]
            assert array.nbytes <= staged.capacity, (name, array.shape)
            flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            self._host_inputs.bytes[staged.offset : staged.offset + array.nbytes] = flat
            self._stream.to_device(self.addresses[name], self._host_inputs.address + staged.offset, array.nbytes)

    def fetch_logits(self, num_rows: int) -> NDArray[np.float32]:
        """The first rows of the logits, [num_rows, vocab_size], once the stream has come so far."""
        vocab_size = self._manifest.dims.vocab_size
        num_bytes = num_rows * vocab_size * NUMPY_DTYPES["fp32"].itemsize
        self._stream.to_host(self._host_logits.address, self.addresses["logits"], num_bytes)
        self._stream.synchronize()
        return self._host_logits.bytes[:num_bytes].view(np.float32).reshape(num_rows, vocab_size).copy()

    def _place(self, spec: InputSpec) -> None:
        self.addresses[spec.name] = self.memory.allocate(num_bytes_of(spec), spec.name)
        self.shapes[spec.name] = spec.static_shape

    def _place_expert_maps_and_rope(self) -> None:
        arrays: dict[InputSpec, NDArray] = {spec: expert_map(spec) for spec in self._manifest.of_kind("expert_map")}
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

    def _place_batch(self, max_logits: int) -> dict[str, _Staged]:
        limits = self._limits
        largest = {
            "num_tokens": limits.max_tokens,
            "num_seqs": limits.max_seqs,
            "num_seqs_plus_1": limits.max_seqs + 1,
            "max_blocks": num_blocks_for(limits.max_context, limits.block_size),
            "num_logits": max_logits,
        }
        staging, offset = {}, 0
        for spec in self._manifest.of_kind("batch"):
            num_bytes = num_bytes_of(self._sized(spec, **largest))
            self.addresses[spec.name] = self.memory.allocate(num_bytes, spec.name)
            staging[spec.name] = _Staged(offset, num_bytes)
            offset += _align(num_bytes)
        return staging

    def _sized(self, spec: InputSpec, **sizes: int) -> InputSpec:
        """`spec` with its dynamic dimensions given sizes."""
        sizes = {"block_size": self._limits.block_size} | sizes
        return replace(spec, shape=tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape))


def _align(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
