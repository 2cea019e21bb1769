"""What a server tells Prometheus.

Owns: names and buckets. Queues, blocks and their totals are read from the engine's statistics when they are asked for;
times are observed as tokens come.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwen3moe_engine.async_engine import AsyncEngine
from qwen3moe_engine.output_stream import OutputStream, RequestOutput

# seconds; 1.6 to 2.5 times as much from one to the next
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0)

GAUGES = (
    ("requests_waiting", "Requests in the queue.", "num_waiting"),
    ("requests_running", "Requests that hold blocks.", "num_running"),
    ("kv_blocks", "Blocks of the KV pool.", "num_blocks"),
    ("kv_blocks_used", "Blocks that requests hold.", "num_blocks_used"),
    ("kv_blocks_cached", "Blocks that nobody holds and a prefix may find.", "num_blocks_cached"),
)
COUNTERS = (
    ("prompt_tokens", "Tokens of admitted prompts.", "num_prompt_tokens"),
    ("prefix_hit_tokens", "Tokens of admitted prompts that the prefix cache held.", "num_prefix_hits"),
    ("preemptions", "Times a request gave up its blocks to be computed again.", "num_preemptions"),
    ("evictions", "Blocks that the prefix cache gave up.", "num_evictions"),
)
PREFIX = "qwen3moe_"


class Metrics:
    """Of one server; has a registry of its own."""

    def __init__(self, engine: AsyncEngine):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        own: dict[str, Any] = {"namespace": PREFIX.rstrip("_"), "registry": self._registry}
        self._tokens = Counter("generation_tokens", "Tokens sent to clients.", **own)
        self._requests = Counter(
            "requests", "Sequences that ended: stop, length, abort or error.", ["finish_reason"], **own
        )
        for reason in ("stop", "length", "abort", "error"):
            self._requests.labels(reason)
        times: dict[str, Any] = {"buckets": REQUEST_BUCKETS, **own}
        self._queue = Histogram("queue_seconds", "From arrival to the first step.", **times)
        self._first = Histogram("time_to_first_token_seconds", "From arrival to the first token.", **times)
        self._total = Histogram("request_seconds", "From arrival to the last token.", **times)
        self._next = Histogram("inter_token_seconds", "From one token to the next.", buckets=TOKEN_BUCKETS, **own)

    def observe(self, stream: OutputStream, output: RequestOutput, previous: float | None) -> None:
        """An output of a stream; previous: the time of the one before."""
        self._tokens.inc(len(output.token_ids))
        if previous is None:
            self._first.observe(output.time - stream.arrived)
        else:
            self._next.observe(output.time - previous)
        if output.finish_reason is not None and output.timing is not None:
            self._queue.observe(output.timing.queue)
            self._total.observe(output.timing.total)

    def count(self, finish_reason: str) -> None:
        """The end of a sequence."""
        self._requests.labels(finish_reason).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, engine: AsyncEngine):
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        for name, about, field in GAUGES:
            yield GaugeMetricFamily(PREFIX + name, about, getattr(stats, field))
        for name, about, field in COUNTERS:
            yield CounterMetricFamily(PREFIX + name, about, getattr(stats, field))
        usage = stats.num_blocks_used / stats.num_blocks
        yield GaugeMetricFamily(PREFIX + "kv_usage_ratio", "Share of the KV pool that requests hold.", usage)
        yield GaugeMetricFamily(PREFIX + "ready", "Whether requests are taken.", float(self._engine.is_ready))
