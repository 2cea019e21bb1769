"""All requests through an engine at once, and what came of it. Must not know which executor it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3moe_engine.bench.workload import WorkItem
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class ThroughputFigures:
    """duration: s, from the first request queued to the last token. Throughputs: a second.

    mean_step: ms, with all that the host does between steps. mean_step_seqs, mean_step_tokens: what a step had;
    seq_occupancy, token_occupancy: as shares of what it may have. Totals are of tokens.
    """

    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_prefix_hits: int
    num_preemptions: int
    num_steps: int
    duration: float
    request_throughput: float
    output_throughput: float
    total_throughput: float
    mean_step: float
    mean_step_seqs: float
    mean_step_tokens: float
    seq_occupancy: float
    token_occupancy: float


def measure_throughput(
    engine: Engine, items: Sequence[WorkItem], max_seqs: int, max_step_tokens: int
) -> ThroughputFigures:
    """Outputs are as long as asked, whatever the model says. max_seqs, max_step_tokens: of a step of the engine."""
    params = [SamplingParams(item.max_tokens, ignore_eos=True) for item in items]
    before, start = engine.stats(), time.perf_counter()
    completions = engine.generate([item.prompt for item in items], params)
    duration, after = time.perf_counter() - start, engine.stats()

    def grown(name: str) -> int:
        return int(getattr(after, name)) - int(getattr(before, name))

    num_output = sum(len(completion.token_ids) for completion in completions)
    num_prompt, num_steps = grown("num_prompt_tokens"), grown("num_steps")
    step_seqs, step_tokens = grown("num_step_seqs") / num_steps, grown("num_step_tokens") / num_steps
    return ThroughputFigures(
        num_requests=len(items),
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
        num_prefix_hits=grown("num_prefix_hits"),
        num_preemptions=grown("num_preemptions"),
        num_steps=num_steps,
        duration=duration,
        request_throughput=len(items) / duration,
        output_throughput=num_output / duration,
        total_throughput=(num_prompt + num_output) / duration,
        mean_step=duration / num_steps * 1e3,
        mean_step_seqs=step_seqs,
        mean_step_tokens=step_tokens,
        seq_occupancy=step_seqs / max_seqs,
        token_occupancy=step_tokens / max_step_tokens,
    )
