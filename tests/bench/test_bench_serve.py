"""`bench serve` against a server that knows what it did: figures are within milliseconds of the truth, counts exact."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import FakeServer, run_fake_server

from qwen3moe_engine.bench.arrivals import ClosedLoop, Poisson
from qwen3moe_engine.bench.client import run_load
from qwen3moe_engine.bench.figures import Latencies, measure
from qwen3moe_engine.bench.target import Target
from qwen3moe_engine.bench.workload import GivenPrompts, LengthRange, RandomPrompts, make_workload
from qwen3moe_export.cli import main

PROMPTS = RandomPrompts(LengthRange(4, 12), 100)
# Client and server share an interpreter, and the machine with other tests: 2 ms where there is nobody else, more than
# 10 where ten processes share two cores. A part that is counted too often or not at all would be GAP off.
MEDIAN_MS, MOST_MS, GAP = 20.0, 500.0, 0.05


@pytest.fixture(scope="module")
def module_server():
    with run_fake_server() as fake:
        yield fake


@pytest.fixture
def server(module_server) -> FakeServer:
    module_server.served.clear()
    module_server.most_running = 0
    return module_server


def load(server, items, arrivals=None, **settings):
    return asyncio.run(run_load(Target(server.url, "fake", **settings), arrivals or Poisson(math.inf, 0), items))


def assert_near(measured_seconds, true_seconds):
    late = 1e3 * (np.array(measured_seconds) - np.array(true_seconds))
    assert np.median(np.abs(late)) < MEDIAN_MS and np.abs(late).max() < MOST_MS, late


@pytest.mark.parametrize(("endpoint", "prompts"), [("completions", PROMPTS), ("chat", GivenPrompts(("hello", "you")))])
def test_latencies_are_those_of_the_server(server, endpoint, prompts):
    """Compared, smallest first, with what the server noted: so its own lateness is no error of the client."""
    items = make_workload(prompts, LengthRange(8, 16), 24, seed=4)
    records = load(server, items, ClosedLoop(6), endpoint=endpoint, extra_body={"first": 2 * GAP, "gap": GAP})
    served, latencies = server.served, Latencies.of(records)
    assert not any(record.error for record in records)
    assert sorted(len(r.chunk_times) for r in records) == sorted(len(s.sent) for s in served)
    assert_near(sorted(latencies.ttft), sorted(s.sent[0] - s.received for s in served))
    assert_near(sorted(latencies.itl), sorted(gap for s in served for gap in np.diff(s.sent)))
    assert_near(sorted(latencies.tpot), sorted((s.sent[-1] - s.sent[0]) / (len(s.sent) - 1) for s in served))
    assert_near(sorted(latencies.e2e), sorted(s.sent[-1] - s.received for s in served))


def test_throughput_is_exact(server):
    items = make_workload(PROMPTS, LengthRange(4, 20), 40, seed=5)
    records = load(server, items, Poisson(200.0, 7), extra_body={"first": 0.02, "gap": 0.002})
    figures = measure(records)
    num_prompt, num_output = sum(len(item.prompt) for item in items), sum(item.max_tokens for item in items)
    assert (figures.num_prompt_tokens, figures.num_output_tokens, figures.num_successful) == (
        num_prompt,
        num_output,
        40,
    )
    assert figures.output_throughput * figures.duration == pytest.approx(num_output)
    assert figures.total_throughput * figures.duration == pytest.approx(num_prompt + num_output)
    span = max(s.ended for s in server.served) - min(s.received for s in server.served)
    assert span - 0.01 < figures.duration < span + 0.3


def test_concurrency_is_what_the_server_sees(server):
    items = make_workload(PROMPTS, LengthRange(5, 5), 20, seed=6)
    load(server, items, ClosedLoop(4), extra_body={"gap": 0.01})
    assert server.most_running == 4 and len(server.served) == 20


def test_several_tokens_in_a_part(server):
    """One gap between parts, and every token counted."""
    items = make_workload(PROMPTS, LengthRange(12, 12), 4, seed=6)
    body = {"tokens_per_part": 4, "gap": 0.03}
    records = load(server, items, counts_tokens=True, extra_body=body)
    figures = measure(records)
    assert [len(record.chunk_times) for record in records] == [3] * 4
    assert [record.num_counted for record in records] == [12] * 4 and figures.is_clean
    assert 25 < figures.itl.p50 < 60 and figures.tpot.p50 == pytest.approx(2 * figures.itl.mean / 11, rel=0.5)


@pytest.mark.parametrize(
    ("fail", "kind"),
    [("status", "HTTP 503"), ("cut", "disconnected"), ("end", "truncated"), ("error", "error in stream")],
)
def test_a_failure_is_told_by_its_kind(server, fail, kind):
    items = make_workload(PROMPTS, LengthRange(6, 6), 3, seed=6)
    figures = measure(load(server, items, extra_body={"fail": fail}))
    assert figures.errors == {kind: 3} and figures.num_successful == 0 and figures.messages[kind]


def test_other_requests_go_on_beside_a_failure(server):
    items = make_workload(PROMPTS, LengthRange(6, 6), 8, seed=6)
    good = load(server, items)
    figures = measure([*good, *load(server, items[:2], extra_body={"fail": "status"})])
    assert figures.num_successful == 8 and figures.errors == {"HTTP 503": 2} and figures.num_output_tokens == 48


def test_a_lost_token_is_seen(server):
    """With one token a part, the stream misses what the usage counts."""
    items = make_workload(PROMPTS, LengthRange(6, 6), 5, seed=6)
    figures = measure(load(server, items, counts_tokens=True, extra_body={"fail": "lose"}))
    assert figures.num_lost_tokens == 5 and not figures.errors and not figures.is_clean


def test_a_request_that_hangs_times_out(server):
    items = make_workload(PROMPTS, LengthRange(2, 2), 2, seed=6)
    figures = measure(load(server, items, timeout=0.2, extra_body={"gap": 5.0}))
    assert figures.errors == {"timeout": 2}


def test_no_server_is_no_connection():
    items = make_workload(PROMPTS, LengthRange(2, 2), 2, seed=6)
    figures = measure(load(FakeServer(url="http://127.0.0.1:9"), items))
    assert figures.errors == {"no connection": 2}


def run(*arguments: object, **environment: str):
    return CliRunner().invoke(main, ["bench", "serve", *map(str, arguments)], env=environment)


def test_the_command_writes_table_json_and_plot(server, tmp_path):
    json_file, plot = tmp_path / "load.json", tmp_path / "load.svg"
    workload = ("--num-requests", 12, "--warmup", 2, "--input-len", 9, "--output-len", "4-6")
    outputs = ("--json", json_file, "--plot", plot)
    result = run("--url", f"{server.url}/", "--rate", 100, *workload, *outputs, "--extra-body", '{"gap": 0.01}')
    assert result.exit_code == 0, result.output
    assert "12 of 12 requests" in result.output and "(TTFT)" in result.output
    written = json.loads(json_file.read_text())
    assert written["target"]["model"] == "fake" and written["load"]["num_requests"] == 12
    assert written["figures"]["num_output_tokens"] == sum(s.body["max_tokens"] for s in server.served[2:])
    assert len(server.served) == 14 and {s.body["gap"] for s in server.served} == {0.01}
    assert len({tuple(s.body["prompt"]) for s in server.served}) == 14, "no prompt twice"
    assert ET.parse(plot).getroot().tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["load.json", "load.svg"]


def test_the_command_sends_lines_of_a_file_as_a_chat(server, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Who?\n\nWhy?\n")
    result = run("--url", server.url, "--endpoint", "chat", "--prompts", prompts, "--num-requests", 4,
                 "--concurrency", 1, "--warmup", 0, "--count-tokens", "--heed-eos")  # fmt: skip
    assert result.exit_code == 0, result.output
    sent = [s.body["messages"][0]["content"] for s in server.served]
    assert sent == ["Who?", "Why?", "Who?", "Why?"]
    assert all("ignore_eos" not in s.body and s.body["logprobs"] is True for s in server.served)


def test_the_key_comes_from_the_environment_and_is_not_written(tmp_path):
    with run_fake_server(api_key="secret") as locked:
        arguments = ("--url", locked.url, "--num-requests", 2, "--json", tmp_path / "a.json")
        assert run(*arguments, OPENAI_API_KEY="secret").exit_code == 0
        assert "secret" not in (tmp_path / "a.json").read_text()
        refused = run(*arguments, OPENAI_API_KEY="")
        assert refused.exit_code == 2 and "HTTP 401" in refused.output, "the warm-up tells it"


def test_the_exit_code_tells_of_failures(server):
    result = run("--url", server.url, "--num-requests", 3, "--warmup", 0, "--extra-body", '{"fail": "end"}')
    assert result.exit_code == 1 and "truncated: 3" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "3", "--concurrency", "2"], "give one of --rate and --concurrency"),
        (["--rate", "0"], "--rate: got 0.0"),
        (["--rate", "nan"], "--rate: got nan"),
        (["--endpoint", "chat"], "give --prompts"),
        (["--input-len", "9-3"], "--input-len"),
        (["--extra-body", "[]"], "--extra-body"),
        (["--plot", "load.bmp"], "--plot"),
        (["--plot", "no/such/folder/load.svg"], "no such folder"),
        (["--prompts", "missing.txt"], "missing.txt"),
        (["--url", "localhost:8000"], "--url: got localhost:8000"),
        (["--url", "http://127.0.0.1:9"], "expected an OpenAI-compatible server"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_sent(server, arguments, message):
    result = run("--url", server.url, *arguments)
    assert result.exit_code == 2 and message in result.output, result.output
    assert not server.served


@pytest.mark.parametrize("missing", ["aiohttp", "matplotlib"])
def test_a_missing_library_is_told_before_anything_is_sent(server, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "qwen3moe_engine.bench.client")
    result = run("--url", server.url, "--plot", "load.svg")
    assert result.exit_code == 2 and f"package {missing}" in result.output and "[bench]" in result.output
    assert not server.served


def test_plots_of_nothing_but_failures(server, tmp_path: Path):
    plot = tmp_path / "load.png"
    assert run("--url", server.url, "--num-requests", 2, "--warmup", 0, "--extra-body", '{"fail": "status"}',
               "--plot", plot).exit_code == 1  # fmt: skip
    assert plot.read_bytes()[:4] == b"\x89PNG"
