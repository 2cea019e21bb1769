"""The TensorRT executor's order of copies, graphs and draws on a simulated stream, with a fake engine behind them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fake_executor import EOS, VOCAB_SIZE, FakeExecutor, expected_tokens
from hypothesis import HealthCheck, given, settings
from schedules import Driver, Schedule, schedules
from simulated_cuda import SimulatedCuda, array_at

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.draw_columns import PARAMETERS
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.logits import Draw, HostLogits
from qwen3moe_engine.manifest import InputSpec
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.tensorrt import cuda
from qwen3moe_engine.tensorrt.device_logits import DeviceLogits
from qwen3moe_engine.tensorrt.executor import ANY_STEP, DECODE, TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.tensorrt.plan import Limits
from qwen3moe_engine.tensorrt.step_inputs import StepInputs

BLOCK_SIZE, MAX_PROMPT, MAX_NEW_TOKENS = 4, 30, 18
LIMITS = Limits(max_tokens=32, max_seqs=6, max_context=MAX_PROMPT + MAX_NEW_TOKENS, block_size=BLOCK_SIZE)
NUM_SCHEDULES = 250


class SimulatedExecutor(TensorRTExecutor):
    """Memory, stream, graphs and the way of a step are the executor's own; the engine and the sampling kernel are
    functions of what lies in memory when they run."""

    def __init__(self, num_blocks: int, stream_cuda: SimulatedCuda, graphs: bool):
        self.cuda, self.fake = stream_cuda, FakeExecutor(num_blocks, BLOCK_SIZE, LIMITS.max_context)
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, BLOCK_SIZE, LIMITS.max_context
        self._limits, self._config = LIMITS, TensorRTConfig(cuda_graphs=graphs)
        self._block_table_width = num_blocks_for(LIMITS.max_context, BLOCK_SIZE)
        self._stream, self._memory = cuda.Stream(), cuda.DeviceMemory()
        self._logits = DeviceLogits(LIMITS.max_seqs, VOCAB_SIZE, self, self._memory, self._stream)
        self._inputs = {
            profile: StepInputs(self._specs(num_tokens), self._memory, self._stream)
            for profile, num_tokens in ((DECODE, LIMITS.max_seqs), (ANY_STEP, LIMITS.max_tokens))
        }
        self._contexts = {profile: self._make_context(profile) for profile in (DECODE, ANY_STEP)}
        self._graphs = self._make_graphs() if graphs else None
        self._capture_decode_steps()

    def _specs(self, num_tokens: int) -> list[InputSpec]:
        max_seqs = LIMITS.max_seqs
        shapes = {
            "input_ids": (num_tokens,),
            "positions": (num_tokens,),
            "block_table": (max_seqs, self._block_table_width),
            "cu_seqlens": (max_seqs + 1,),
            "context_lens": (max_seqs,),
            "logits_indices": (max_seqs,),
        }
        return [InputSpec(name, "batch", "int32", shape) for name, shape in shapes.items()]

    def _make_context(self, profile: int) -> int:
        return profile

    def _enqueue(self, context: Any, arrays: dict[str, np.ndarray]) -> None:
        shapes = {name: array.shape for name, array in arrays.items()}
        self.cuda.enqueue(lambda: self._step(self._inputs[context].addresses, shapes))

    def _step(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        arrays = {name: array_at(addresses[name], shape, np.int32).copy() for name, shape in shapes.items()}
        batch = Batch(arrays.pop("input_ids"), **arrays)
        if batch.cu_seqlens[-1]:
            values = self.fake.execute(batch).rows()
            array_at(self._logits.address, values.shape, np.float32)[:] = values

    def workspace_size(self, *_: Any) -> int:
        return 0

    def run(self, op: str, shape: Any, tensors: Any, *_: Any) -> None:
        """The sampling kernel."""
        assert op == "sample"
        count, pointers = shape.num_rows, {name: getattr(tensors, name) for name in ("logits", "token", *PARAMETERS)}

        def sample() -> None:
            columns = {name: array_at(pointers[name], (count,), dtype) for name, dtype in PARAMETERS.items()}
            offsets = columns.pop("offset").tolist()
            rows = [{name: column[row].item() for name, column in columns.items()} for row in range(count)]
            draws = [Draw(SamplingParams(1, **row), offset) for row, offset in zip(rows, offsets, strict=True)]
            logits = array_at(pointers["logits"], (count, VOCAB_SIZE), np.float32)
            array_at(pointers["token"], (count,), np.int32)[:] = HostLogits(logits).draw(draws)

        self.cuda.enqueue(sample)


def live(schedule: Schedule, graphs: bool) -> Counter:
    simulated = SimulatedCuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "cudart", simulated)
        num_blocks = num_blocks_for(schedule.max_tokens, BLOCK_SIZE) + schedule.spare_blocks
        executor = SimulatedExecutor(num_blocks, simulated, graphs)
        max_step_tokens = max(schedule.max_step_tokens, schedule.max_seqs)
        blocks = BlockManager(num_blocks, BLOCK_SIZE)
        scheduler = Scheduler(blocks, executor.max_model_len, max_step_tokens, schedule.max_seqs, schedule.max_waiting)
        engine = Engine(executor, scheduler, VOCAB_SIZE, (EOS,))
        assert engine._max_in_flight == 2
        call_midway = lambda call: setattr(executor.fake, "on_execute", call)  # noqa: E731
        requests = Driver(engine, scheduler, schedule, VOCAB_SIZE, call_midway).run()
    for arrival, request in zip(schedule.arrivals, requests, strict=True):
        if request is not None:
            expected = expected_tokens(request.prompt_ids, arrival.params)
            is_whole = request.finish_reason != "abort"
            assert request.output_ids == (expected if is_whole else expected[: len(request.output_ids)])
    stats = engine.stats()
    return Counter(schedules=1, preemptions=stats.num_preemptions, graphs=simulated.num_launches)


@pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "CUDA graphs"])
def test_tokens_are_those_of_each_request_alone(graphs):
    totals: Counter = Counter()

    @settings(max_examples=NUM_SCHEDULES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(schedules(MAX_PROMPT, MAX_NEW_TOKENS))
    def run(schedule):
        totals.update(live(schedule, graphs))

    run()
    assert totals["preemptions"] > 0 and (totals["graphs"] > NUM_SCHEDULES) == graphs
