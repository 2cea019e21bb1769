"""Stages of a pipeline on two hosts of a Ray cluster: one rank's tokens, and an end in time when one is lost."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest
from click.testing import CliRunner
from layout_check import DATA
from ray_hosts import RayHosts, run_hosts, stage_pids, strike, wait_for_stages

from qwen3moe_engine.layout import Layout
from qwen3moe_engine.parallel.verdict import EXIT_CODE
from qwen3moe_export.cli import main

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 10.0
PP2 = Layout(pp=2)
ENDLESS = ("--input-len", 4, "--output-len", 500, "--num-requests", 2000, "--warmup", 0)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with run_hosts(tmp_path_factory.mktemp("hosts")) as running:
        yield running


def test_tokens_are_those_of_one_rank(hosts: RayHosts, bench):
    weights = bench.model("trained").checkpoint
    common = ("--weights", weights, "--prompts", DATA / "prompts.txt", "--max-new-tokens", 24, "--json")
    process = hosts.start("generate", bench.export("trained", PP2), *common)
    alone = CliRunner().invoke(main, [str(word) for word in ("generate", bench.export("trained", Layout()), *common)])
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found, expected = ([row["token_ids"] for row in json.loads(text)] for text in (output, alone.stdout))
    assert len(found) == 20 and found == expected
    wait_for_stages(0, LIMIT_SECONDS)


def test_a_lost_stage_ends_the_others(hosts: RayHosts, bench):
    process = hosts.start(
        "bench", "throughput", bench.export("trained", PP2), "--weights", bench.model("trained").checkpoint, *ENDLESS
    )
    wait_for_stages(2, 60)
    time.sleep(3)
    strike(stage_pids()[:1], signal.SIGKILL)
    start = time.monotonic()
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    wait_for_stages(0, LIMIT_SECONDS)
    print(f"{time.monotonic() - start:.2f} s")
    assert process.returncode == EXIT_CODE
    assert re.search(r"^Error: rank [01] of 2: its process or its host ended$", errors, re.MULTILINE), errors


def test_stages_end_with_who_schedules(hosts: RayHosts, bench):
    process = hosts.start(
        "bench", "throughput", bench.export("trained", PP2), "--weights", bench.model("trained").checkpoint, *ENDLESS
    )
    wait_for_stages(2, 60)
    process.kill()
    process.communicate()
    print(f"{wait_for_stages(0, LIMIT_SECONDS):.2f} s")


def test_more_stages_than_the_cluster_has_room_for(hosts: RayHosts, bench):
    export = bench.export("trained", Layout(pp=3))
    process = hosts.start("generate", export, "--weights", bench.model("trained").checkpoint, "--prompt", "a")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    expected = "Ray cluster: got hosts of 1 CPU; 1 CPU, expected room for 3 stages, each on one host with 1 CPU"
    assert expected in errors, errors


@pytest.mark.parametrize(
    ("layout", "address", "said"),
    [
        (Layout(ep=2, pp=1), "auto", "--ray: got an export for EP2, expected one for a pipeline"),
        (PP2, "127.0.0.1:1", "--ray 127.0.0.1:1: got .* expected a Ray cluster"),
    ],
    ids=str,
)
def test_what_cannot_be_spread_is_refused(bench, layout, address, said):
    options = ("--weights", bench.model("trained").checkpoint, "--prompt", "a", "--ray", address)
    result = CliRunner().invoke(main, ["generate", str(bench.export("trained", layout)), *map(str, options)])
    assert result.exit_code == 2
    assert re.search(said, result.output), result.output
