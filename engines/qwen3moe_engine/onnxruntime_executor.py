"""The ONNX Runtime executor: any machine with a CPU.

Owns: the session, the weights as OrtValues, and the KV pool. The graph's local functions do the work, so it needs no
plugin; they are functional, so each step writes the KV pool anew into a second buffer and the two change places.
ONNX Runtime has no bf16 arithmetic on CPU: it runs the export's fp32 graph, with weights rounded to the export's dtype.
Of a group it is one rank, and of a pipeline one stage; who its peers are it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.checkpoint import NUMPY_DTYPES, Checkpoint
from qwen3moe_engine.logits import HostLogits
from qwen3moe_engine.manifest import InputSpec, Manifest
from qwen3moe_engine.parallel.python_ops import register_collectives, serving
from qwen3moe_engine.parallel.rebalancing import Arrival, Rebalancer
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.weights import (
    Progress,
    WeightPlan,
    convert,
    cos_sin_cache,
    plan_manifest,
    rank_constants,
    read_weight,
)

COMPUTE_DTYPE = "fp32"


@dataclass(frozen=True)
class OnnxRuntimeConfig:
    """num_blocks, block_size: of the KV pool, fp32. num_threads: 0 for as many as cores."""

    num_blocks: int
    block_size: int = 16
    num_threads: int = 0


class OnnxRuntimeExecutor:
    """Runs `graph`, a file of the export (by default the manifest's graph in fp32) with the weights of `checkpoint`.

    group, group_rank: the ranks it reduces with and its place among them, where the export is for more than one.
    num_bytes_read: of the checkpoint.
    """

    def __init__(
        self,
        export: Path,
        manifest: Manifest,
        checkpoint: Checkpoint,
        config: OnnxRuntimeConfig,
        progress: Progress,
        graph: Path | None = None,
        group: SharedGroup | None = None,
        group_rank: int = 0,
    ):
        import onnxruntime

        self.num_blocks, self.block_size = config.num_blocks, config.block_size
        self.max_model_len = manifest.dims.max_position_embeddings
        plans = plan_manifest(manifest, checkpoint, group_rank)
        self.num_bytes_read = sum(plan.num_bytes_read for plan in plans)
        self._group, self._dtype = group, manifest.dtype
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.num_threads
        if group is not None:
            options.register_custom_ops_library(register_collectives())
        path = graph or export / manifest.graph_of(COMPUTE_DTYPE)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._arrays: dict[str, NDArray] = {}
        self._bind_constants(manifest, plans, group_rank, progress)
        self._loads = [spec.name for spec in manifest.of_kind("load")]
        # what a step changes: it reads one of two and writes the other
        changed = [*manifest.of_kind("kv_cache"), *manifest.of_kind("load")]
        self._states = {spec.name: self._zeros(spec) for spec in changed}
        self._spares = {spec.name: self._zeros(spec) for spec in changed}
        self._step_inputs = [spec.name for kind in ("hidden_states", "batch") for spec in manifest.of_kind(kind)]
        self._aliases = {output.name: output.aliases for output in manifest.outputs if output.aliases}
        self._others = [output.name for output in self._session.get_outputs() if output.name not in self._aliases]
        self.rebalancer = Rebalancer(manifest, plans, self, group, group_rank) if self._loads and group else None

    def execute(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> HostLogits:
        return HostLogits(self.execute_all(batch, hidden_states)["logits"])

    def forward(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """A step of a stage before the last: what enters the next, fp32 [num_tokens, hidden_size]."""
        return self.execute_all(batch, hidden_states)["hidden_states_out"]

    def execute_all(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> dict[str, NDArray]:
        """Every output but the KV caches, by name. `hidden_states`: what the stage before gave."""
        given = batch.inputs() | ({} if hidden_states is None else {"hidden_states": hidden_states})
        for name in self._step_inputs:
            self._binding.bind_cpu_input(name, np.ascontiguousarray(given[name]))
        for output, state in self._aliases.items():
            self._binding.bind_ortvalue_input(state, self._states[state])
            self._binding.bind_ortvalue_output(output, self._spares[state])
        for name in self._others:
            self._binding.bind_output(name, "cpu")
        with serving(self._group):
            self._session.run_with_iobinding(self._binding)
        self._states, self._spares = self._spares, self._states
        values = self._binding.get_outputs()[len(self._aliases) :]  # in the order they were bound
        return {name: value.numpy() for name, value in zip(self._others, values, strict=True)}

    def rebalance(self) -> int:
        """Moves experts between the ranks of the group to where their work is even. Returns how many came to this."""
        return self.rebalancer.run() if self.rebalancer is not None else 0

    def loads(self) -> NDArray[np.uint32]:
        """As `ExpertSlots`."""
        return np.stack([self._states[name].numpy() for name in self._loads]).view(np.uint32)

    def take_in(self, arrivals: Sequence[Arrival]) -> None:
        """As `ExpertSlots`."""
        for arrival in arrivals:
            name = arrival.plan.spec.name
            self._arrays[name][arrival.slot] = convert(read_weight(arrival.plan, self._dtype), COMPUTE_DTYPE, name)

    def bind(self, constants: dict[str, NDArray]) -> None:
        """As `ExpertSlots`."""
        for name, array in constants.items():
            self._bind(name, array)

    def abort(self, reason: str) -> None:
        """Its collectives hear of it from the group's board."""

    def close(self) -> None:
        """Nothing outlives the object."""

    def _bind_constants(self, manifest: Manifest, plans: list[WeightPlan], group_rank: int, progress: Progress) -> None:
        """Weights, expert maps and the rotary table."""
        for plan in progress(plans, "loading weights"):
            rounded = read_weight(plan, manifest.dtype)
            self._bind(plan.spec.name, convert(rounded, COMPUTE_DTYPE, plan.spec.name))
        tables = {spec.name: cos_sin_cache(manifest.rope, self.max_model_len) for spec in manifest.of_kind("rope")}
        self.bind(rank_constants(manifest, group_rank) | tables)

    def _bind(self, name: str, array: NDArray) -> None:
        """To an input that steps do not change. It reads the array itself, which must outlive the session."""
        value = self._value(array)
        assert value.data_ptr() == array.ctypes.data, "a copy would not see an expert that moves in"
        self._arrays[name] = array
        self._binding.bind_ortvalue_input(name, value)

    def _zeros(self, spec: InputSpec) -> Any:
        sizes = {"num_blocks": self.num_blocks, "block_size": self.block_size}
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        dtype = spec.dtype if spec.dtype == "int32" else COMPUTE_DTYPE
        return self._value(np.zeros(shape, NUMPY_DTYPES[dtype]))
