"""Two replicas behind a local Ray Serve, deployed as docs/ray.md says: streams are whole, or break off visibly."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import socket
import time
import urllib.request
import warnings
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray_cluster import RayCluster, run_ray

from qwen3moe_engine.bench.arrivals import Poisson
from qwen3moe_engine.bench.client import run_load
from qwen3moe_engine.bench.figures import measure
from qwen3moe_engine.bench.target import Target
from qwen3moe_engine.bench.workload import LengthRange, RandomPrompts, make_workload
from qwen3moe_plugins.errors import InputError

MODEL = "tiny"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "ray.md"


@pytest.fixture(scope="module")
def ray_deployment():
    """Imported where it is used, as it takes seconds; Ray's own models warn of what pydantic deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from qwen3moe_engine.server import ray_deployment
    return ray_deployment


@pytest.fixture(scope="module")
def cluster(export, checkpoint, tmp_path_factory):
    """The deployment file of the document, with paths and a port of this test."""
    folder = tmp_path_factory.mktemp("ray")
    deployment = yaml.safe_load(re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = deployment["http_options"]["port"] = probe.getsockname()[1]
    arguments = deployment["applications"][0]["args"]
    assert arguments["num_replicas"] == 2
    arguments |= {"export": str(export), "weights": str(checkpoint)}
    arguments["server"]["model_name"] = MODEL
    (folder / "replicas.yaml").write_text(yaml.safe_dump(deployment))
    with run_ray(folder / "replicas.yaml", f"http://127.0.0.1:{port}", folder) as running:
        yield running


def load(cluster: RayCluster, num_requests: int, output_len: int, seed: int, timeout: float = 120.0):
    """All at once."""
    prompts = RandomPrompts(LengthRange(4, 40), vocab_size=2045)
    items = make_workload(prompts, LengthRange(output_len, output_len), num_requests, seed)
    target = Target(cluster.url, MODEL, counts_tokens=True, timeout=timeout)
    return run_load(target, Poisson(math.inf, 0), items)


def num_running(cluster: RayCluster) -> int:
    with urllib.request.urlopen(f"{cluster.url}/metrics", timeout=10) as response:
        return int(float(re.search(r"^qwen3moe_requests_running (\S+)$", response.read().decode(), re.MULTILINE)[1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_replica": 2},
        {"num_replicas": 0},
        {"engine": {"max_seq": 3}},
        {"engine": {"kv_tokens": "many"}},
        {"server": {"model_name": "a", "max_concurency": 1}},
        {"server": {}},
    ],
)
def test_wrong_arguments_of_a_deployment_are_refused(ray_deployment, wrong):
    right = {"export": "export", "weights": "weights", "server": {"model_name": "a"}}
    assert ray_deployment.Replicas(**right).num_replicas == 1
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ray_deployment.Replicas(**right | wrong)


def test_options_that_do_not_go_together_are_refused_before_ray_is_asked(ray_deployment):
    wrong = ray_deployment.Replicas(export="export", engine={"executor": "tensorrt"}, server={"model_name": "a"})
    with pytest.raises(InputError, match="weights: got neither"):
        ray_deployment.build(wrong)


@pytest.mark.slow
def test_streams_of_two_replicas_are_whole(cluster):
    assert len(cluster.replica_pids()) == 2
    figures = measure(asyncio.run(load(cluster, 40, output_len=12, seed=1)))
    assert figures.is_clean and figures.num_successful == 40, figures
    assert figures.itl.p90 > 1.0, "tokens came one by one"


@pytest.mark.slow
def test_clients_that_leave_free_what_they_held(cluster):
    """Through Ray's proxy as without it: 1,500 tokens of each would take minutes."""
    left = measure(asyncio.run(load(cluster, 20, output_len=1500, seed=4, timeout=1.5)))
    assert left.errors == {"timeout": 20}
    deadline = time.monotonic() + 20
    while any(num_running(cluster) for _ in range(8)):  # of either replica, as the proxy chooses
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_killed_replica_loses_no_request_silently(cluster):
    """Each request, of those that run and of those that wait, has all its tokens or an error. To a client that only
    reads to the end of the body a cut one would look whole; so the connection has to break."""

    async def kill_under_load():
        requests = asyncio.ensure_future(load(cluster, 80, output_len=100, seed=2))
        await asyncio.sleep(1.5)
        os.kill(cluster.replica_pids()[0], signal.SIGKILL)
        return await requests

    records = asyncio.run(kill_under_load())
    figures = measure(records)
    assert figures.num_successful > 0 and figures.errors, figures
    assert figures.num_lost_tokens == 0, figures
    assert all(kind in ("disconnected", "error in stream") or kind.startswith("HTTP 5") for kind in figures.errors), (
        figures
    )
    assert any(record.error and record.chunk_times for record in records), "none was killed in the middle of a stream"

    after = measure(asyncio.run(load(cluster, 10, output_len=12, seed=3)))
    assert after.is_clean, after
    deadline = time.monotonic() + 60
    while len(cluster.replica_pids()) < 2:
        assert time.monotonic() < deadline, "Ray put no other in its place"
        time.sleep(0.2)
