"""The TensorRT executor: a plan on one GPU.

Owns: the engine, its execution contexts, and the order of what a step puts on the stream. What is bound lies in
`bindings`, graphs of steps in `step_graphs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch, pad_batch
from qwen3moe_engine.block_manager import num_blocks_for
from qwen3moe_engine.checkpoint import Checkpoint
from qwen3moe_engine.draw_columns import DrawColumns, columns_of
from qwen3moe_engine.logits import Draw
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.phases import Phases
from qwen3moe_engine.random_model import RandomWeights
from qwen3moe_engine.tensorrt.bindings import Bindings
from qwen3moe_engine.tensorrt.cuda import Stream, use_device
from qwen3moe_engine.tensorrt.device_logits import DeviceLogits, DrawnTokens, StepLogits
from qwen3moe_engine.tensorrt.expert_slots import DeviceExperts
from qwen3moe_engine.tensorrt.flavour import load_tensorrt
from qwen3moe_engine.tensorrt.hidden_states import OUTPUT, HiddenStatesOutput
from qwen3moe_engine.tensorrt.loading import LoadReport, stream_weights
from qwen3moe_engine.tensorrt.open_kernels import open_kernels
from qwen3moe_engine.tensorrt.plan import check_gpu, check_plan, load_plan_info
from qwen3moe_engine.tensorrt.random_weights import WeightMaker, fill_weights, random_checkpoint
from qwen3moe_engine.tensorrt.step_graphs import StepGraphs
from qwen3moe_engine.weights import Progress, WeightPlan, plan_manifest
from qwen3moe_plugins.errors import InputError
from qwen3moe_plugins.kernels import KernelLibrary
from qwen3moe_plugins.library import KERNELS, find_library

DECODE, ANY_STEP = 0, 1  # the plan's profiles


@dataclass(frozen=True)
class TensorRTConfig:
    """num_blocks: of the KV pool; None for as many as leave `1 - memory_fraction` of the GPU free.

    max_logits: rows of a step, None for the plan's max_seqs. cuda_graphs: replay decode steps, and prompts of up to
    graph_prompt tokens, each size captured when it is met first.
    random_weights: made on the device instead of read from a checkpoint. device: CUDA ordinal.
    """

    num_blocks: int | None = None
    memory_fraction: float = 0.9
    max_logits: int | None = None
    cuda_graphs: bool = True
    graph_prompt: int = 1024
    random_weights: RandomWeights | None = None
    device: int = 0


class TensorRTExecutor:
    """Runs `plan`. Raises InputError if plan, export, plugins, GPU and weights do not fit together.

    checkpoint: None with `random_weights` in the configuration. group_rank: this rank's place in its group, where the
    export is for more than one; then its collectives need a `Communicator`. num_bytes_read: of the
    checkpoint. weights, experts: what a `Rebalancer` moves. phases: of the start.
    """

    def __init__(
        self,
        export: Path,
        manifest: Manifest,
        plan: Path,
        checkpoint: Checkpoint | None,
        config: TensorRTConfig,
        progress: Progress,
        plugin_folder: Path | None = None,
        group_rank: int = 0,
    ):
        self.phases = Phases()
        with self.phases("loading TensorRT, checking the plan"):
            info, self.device = load_plan_info(plan), use_device(config.device)
            check_gpu(info, plan, self.device.name, self.device.compute_capability)
            kernels = open_kernels(find_library(KERNELS, plugin_folder), self.device)
            self._tensorrt = load_tensorrt(info.flavour, plugin_folder)
            check_plan(info, plan, export, self._tensorrt.plugin_library, info.flavour, self._tensorrt.version)
        is_random = checkpoint is None
        weights = plan_manifest(manifest, checkpoint or random_checkpoint(manifest), group_rank)
        self.num_bytes_read = 0 if is_random else sum(plan.num_bytes_read for plan in weights)
        self._config, self._limits = config, info.limits
        self._block_table_width = num_blocks_for(info.limits.max_context, info.limits.block_size)
        self.block_size, self.max_model_len = info.limits.block_size, info.limits.max_context
        with self.phases("deserializing the plan"):
            self._engine = self._deserialize(plan)
        with self.phases("weights"):
            self._stream = Stream()
            self._bindings = Bindings(manifest, info.limits, self._stream, group_rank)
            self.weights, maker = weights, self._maker(manifest, kernels) if is_random else None
            self.load_report = self._load(manifest, weights, maker, progress)
            self.experts = DeviceExperts(manifest, self._bindings, self._stream, maker, progress)
        with self.phases("memory of steps, KV pool, contexts"):
            self._place_step(manifest, kernels)
            self._contexts = {profile: self._make_context(profile) for profile in (DECODE, ANY_STEP)}
        # hidden states come and go by the host, so only a whole model is captured
        self._graphs = self._make_graphs() if config.cuda_graphs and manifest.part.layout.pp == 1 else None
        with self.phases("CUDA graphs"):
            self._capture_decode_steps()

    def _place_step(self, manifest: Manifest, kernels: KernelLibrary) -> None:
        """Memory for what a step takes and gives, and all that is left for keys and values."""
        limits, memory = self._limits, self._bindings.memory
        max_logits = self._config.max_logits or limits.max_seqs
        self._logits = DeviceLogits(max_logits, manifest.dims.vocab_size, kernels, memory, self._stream)
        max_tokens = {DECODE: limits.max_seqs, ANY_STEP: limits.max_tokens}
        given_on = 1 if manifest.part.is_last else limits.max_tokens  # the last stage has no such output
        hidden_size = manifest.dims.hidden_size
        self._hidden_states = HiddenStatesOutput(given_on, hidden_size, manifest.dtype, memory, self._stream)
        self._inputs = {
            profile: self._bindings.make_step_inputs(count, min(count, max_logits))
            for profile, count in max_tokens.items()
        }
        self._scratch_bytes = self._tensorrt.scratch_bytes(self._engine)
        self._scratch = memory.allocate(self._scratch_bytes, "activations")
        reserve_bytes = (1.0 - self._config.memory_fraction) * self.device.total_memory
        self.num_blocks = self._bindings.place_kv_pool(self._config.num_blocks, reserve_bytes)

    def execute(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> StepLogits:
        """`hidden_states`: what the stage before gave, fp32 [num_tokens, hidden_size]."""
        self._run(batch, hidden_states)
        return self._logits.of_step(len(batch.logits_indices))

    def launch(self, batch: Batch, draws: Sequence[Draw]) -> DrawnTokens:
        """`OverlappingExecutor.launch`."""
        return self.launch_columns(batch, columns_of(draws))

    def launch_columns(self, batch: Batch, draws: DrawColumns) -> DrawnTokens:
        """The same, of a rank."""
        self._logits.send(draws)  # ahead of the step, so that its inputs follow without a wait between
        self._run(batch)
        return self._logits.start_draw(len(draws["offset"]))

    def forward(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """A step of a stage before the last: what enters the next, fp32 [num_tokens, hidden_size]."""
        self.execute(batch, hidden_states)
        return self._hidden_states.fetch(len(batch.tokens))

    def profile(self, batch: Batch) -> list[tuple[str, float]]:
        """Runs a step, without a CUDA graph, as TensorRT times it: name of each layer, milliseconds."""
        profile = self._profile_for(len(batch.tokens))
        context, profiler = self._make_context(profile), self._tensorrt.new_profiler()
        context.profiler = profiler  # which 8.6 does not take off again
        self._inputs[profile].send(batch.inputs())
        self._enqueue(context, batch.inputs())
        self._stream.synchronize()
        return profiler.layers

    def close(self) -> None:
        self._stream.synchronize()
        if self._graphs is not None:
            self._graphs.close()
        self._contexts.clear()
        for inputs in self._inputs.values():
            inputs.close()
        self._logits.close()
        self._hidden_states.close()
        self._bindings.close()
        self._stream.close()

    def __enter__(self) -> TensorRTExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _deserialize(self, plan: Path) -> Any:
        self._runtime = self._tensorrt.trt.Runtime(self._tensorrt.logger)  # must outlive the engine
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            where = f"{self.device.name} ({self.device.compute_capability})"
            raise InputError(
                str(plan),
                got=f"a plan that TensorRT {self._tensorrt.version} refuses on {where}",
                expected="one built for this GPU",
                remedy="build it again with --target",
            )
        return engine

    def _load(
        self,
        manifest: Manifest,
        weights: list[WeightPlan],
        maker: WeightMaker | None,
        progress: Progress,
    ) -> LoadReport:
        addresses = self._bindings.addresses
        if maker is not None:
            return fill_weights(weights, addresses, maker, self._stream)
        return stream_weights(weights, addresses, manifest.dtype, self._stream, progress)

    def _maker(self, manifest: Manifest, kernels: KernelLibrary) -> WeightMaker:
        assert self._config.random_weights is not None, "neither a checkpoint nor a seed"
        return WeightMaker(self._config.random_weights, manifest.dims.top_k, kernels, self._stream.handle)

    def _make_context(self, profile: int) -> Any:
        """A context with every address bound. All share one scratch memory, as only one runs at a time."""
        context = self._tensorrt.new_context(self._engine, self._scratch, self._scratch_bytes)
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise RuntimeError(f"TensorRT refused profile {profile}; its messages stand above")
        addresses = self._bindings.addresses | self._inputs[profile].addresses
        addresses |= {"logits": self._logits.address, OUTPUT: self._hidden_states.address}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            assert context.set_tensor_address(name, addresses[name]), name
        for name, shape in self._bindings.shapes.items():
            assert context.set_input_shape(name, shape), (name, shape)
        return context

    def _run(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> None:
        """Enqueues a step."""
        shape = self._graphs.shape_for(batch) if self._graphs is not None else None
        if shape is not None:
            batch = pad_batch(batch, shape.num_tokens, shape.num_seqs, self._block_table_width)
        profile, arrays = self._profile_for(len(batch.tokens)), self._arrays(batch, hidden_states)
        inputs = self._inputs[profile]
        inputs.send(arrays)
        if batch.carried:
            self._logits.carry(batch.carried, inputs.addresses["input_ids"])
        if self._graphs is not None and shape is not None:
            self._graphs.run(shape, arrays)
        else:
            self._enqueue(self._contexts[profile], arrays)

    def _arrays(self, batch: Batch, hidden_states: NDArray[np.float32] | None) -> dict[str, NDArray]:
        """A step's inputs by name."""
        if hidden_states is None:
            return batch.inputs()
        return batch.inputs() | {"hidden_states": hidden_states.astype(self._hidden_states.dtype)}

    def _enqueue(self, context: Any, arrays: dict[str, NDArray]) -> None:
        for name in self._inputs[DECODE].addresses:
            if not context.set_input_shape(name, arrays[name].shape):
                raise RuntimeError(f"{name} {arrays[name].shape} is outside the plan's profile {self._limits}")
        if not context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT could not run a step; its messages stand above")

    def _profile_for(self, num_tokens: int) -> int:
        return DECODE if num_tokens <= self._limits.max_seqs else ANY_STEP

    def _make_graphs(self) -> StepGraphs:
        limits = self._limits
        max_prompt = min(self._config.graph_prompt, limits.max_tokens)
        return StepGraphs(
            limits.max_seqs,
            max_prompt,
            self._stream,
            lambda num_tokens: self._make_context(self._profile_for(num_tokens)),
            self._enqueue,
        )

    def _capture_decode_steps(self) -> None:
        """With sequences that are all empty."""
        if self._graphs is None:
            return
        for shape in self._graphs.decode_shapes:
            arrays = self._inputs[DECODE].empty_decode_step(shape.num_seqs, self._block_table_width)
            self._inputs[DECODE].send(arrays)
            self._graphs.run(shape, arrays)
        self._stream.synchronize()
