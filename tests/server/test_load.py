"""Many clients at once: no error, no lost token; and a signal to stop in the middle of it.

The same for ten minutes, with memory and throughput, is benchmarks/load_server.py.
"""

from __future__ import annotations

import asyncio
import math

import pytest
from server_process import MODEL, run_server

from qwen3moe_engine.bench.arrivals import ClosedLoop, Poisson
from qwen3moe_engine.bench.client import run_load
from qwen3moe_engine.bench.figures import measure
from qwen3moe_engine.bench.target import Target
from qwen3moe_engine.bench.workload import LengthRange, RandomPrompts, make_workload

PROMPTS = RandomPrompts(LengthRange(4, 30), vocab_size=2045, prefix_len=20)
OUTPUT_LEN = LengthRange(4, 70)


def load(url: str, num_requests: int, arrivals: ClosedLoop | Poisson, seed: int):
    target = Target(url, MODEL, counts_tokens=True, timeout=120.0)
    return run_load(target, arrivals, make_workload(PROMPTS, OUTPUT_LEN, num_requests, seed))


@pytest.fixture(scope="module")
def small_server(export, checkpoint):
    """Its pool is too small for the 32 sequences that may run, so that some are preempted."""
    with run_server(export, checkpoint, "--kv-tokens", "1024") as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("arrivals", [ClosedLoop(64), Poisson(400.0, seed=3)], ids=["64 clients", "Poisson"])
def test_no_error_and_no_lost_token(small_server, arrivals):
    before = small_server.metrics()
    figures = measure(asyncio.run(load(small_server.url, 128, arrivals, seed=1)))
    assert figures.is_clean and figures.num_successful == 128, figures
    grown = {name: value - before[name] for name, value in small_server.until_idle().items()}
    assert grown["qwen3moe_preemptions_total"] > 0, grown
    assert grown["qwen3moe_prefix_hit_tokens_total"] > 0, grown
    assert grown["qwen3moe_generation_tokens_total"] == figures.num_output_tokens


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted(export, checkpoint):
    async def terminate_under_load(server):
        accepted = asyncio.ensure_future(load(server.url, 60, Poisson(math.inf, 0), seed=2))
        await asyncio.to_thread(server.until, lambda found: open_requests(found) == 60)
        server.terminate()
        await asyncio.sleep(0.2)
        return await accepted, await load(server.url, 3, Poisson(math.inf, 0), seed=3)

    with run_server(export, checkpoint, "--grace-period", "60") as server:
        accepted, late = map(measure, asyncio.run(terminate_under_load(server)))
        assert accepted.is_clean and accepted.num_successful == 60, accepted
        assert late.num_successful == 0 and set(late.errors) <= {"HTTP 503", "no connection"}, late
        assert server.wait() == 0


def open_requests(metrics: dict[str, float]) -> float:
    return metrics["qwen3moe_requests_running"] + metrics["qwen3moe_requests_waiting"]
