"""Pipelines over two hosts of a Ray cluster beside the same without Ray, and what becomes of faults, as tables.

    python benchmarks/ray_pipeline.py > benchmarks/results/ray_pipeline.md

Both hosts are this one, so steps tell what Ray adds, and nothing of a network.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parallel"))
from layout_check import Bench
from ray_hosts import CLI, RayHosts, run_hosts, stage_pids, wait_for_stages

from qwen3moe_engine.layout import Layout

LAYOUTS = (Layout(pp=2), Layout(tp=2, pp=2))
NUM_RUNS = 3
LOAD = ("--input-len", "8", "--output-len", "100", "--num-requests", "33", "--warmup", "1", "--threads", "1")
ENDLESS = ("--input-len", "4", "--output-len", "500", "--num-requests", "2000", "--warmup", "0", "--threads", "1")
FAULTS: dict[str, tuple[signal.Signals, Callable[[int], list[int]]]] = {
    "a stage's first rank: SIGKILL": (signal.SIGKILL, lambda driver: stage_pids()[-1:]),
    "a stage's first rank: SIGSTOP": (signal.SIGSTOP, lambda driver: stage_pids()[-1:]),
    "who schedules: SIGKILL": (signal.SIGKILL, lambda driver: [driver]),
    "a host's Ray: SIGKILL": (signal.SIGKILL, lambda driver: raylet_pids()[-1:]),
}


def main() -> None:
    where = f"{platform.machine()}, {os.cpu_count()} cores, both hosts this one"
    print(f"# Pipelines over Ray\n\n{where}. ms a step of 32 sequences, of {NUM_RUNS} runs the best.\n")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), num_new=1)
        print("| layout | over Ray | one host without |\n|---|---|---|")
        for layout in LAYOUTS:
            print(f"| {layout} | {step_of(bench, layout, True)} | {step_of(bench, layout, False)} |", flush=True)
        print("\nFaults while PP2 decodes: seconds until nothing is left of it.\n")
        print("| fault | exit code | seconds | said |\n|---|---|---|---|")
        for fault in FAULTS:
            print_fault(bench, fault)


def command(bench: Bench, layout: Layout) -> tuple[str, ...]:
    export, weights = bench.export("trained", layout), bench.model("trained").checkpoint
    return ("bench", "throughput", str(export), "--weights", str(weights))


def step_of(bench: Bench, layout: Layout, over_ray: bool) -> str:
    return f"{min(mean_step(bench, layout, over_ray) for _ in range(NUM_RUNS)):.1f}"


def mean_step(bench: Bench, layout: Layout, over_ray: bool) -> float:
    with tempfile.TemporaryDirectory() as home:
        figures = Path(home) / "figures.json"
        words = (*command(bench, layout), *LOAD, "--json", str(figures))
        if over_ray:
            with run_hosts(Path(home), num_cpus=layout.group_size) as hosts:
                _, errors = hosts.start(*words).communicate()
        else:
            errors = subprocess.run([*CLI, *words], capture_output=True, text=True).stderr
        assert figures.exists(), errors
        return json.loads(figures.read_text())["figures"]["mean_step"]


def print_fault(bench: Bench, fault: str) -> None:
    number, victims = FAULTS[fault]
    with tempfile.TemporaryDirectory() as home, run_hosts(Path(home)) as hosts:
        process = start_endless(bench, hosts)
        for pid in victims(process.pid):
            os.kill(pid, number)
        start = time.perf_counter()
        _, errors = process.communicate()
        wait_for_stages(0, 60)
        seconds = time.perf_counter() - start
    said = next((line for line in errors.splitlines() if line.startswith("Error: ")), "")
    print(f"| {fault} | {process.returncode} | {seconds:.2f} | {said.removeprefix('Error: ')} |", flush=True)


def start_endless(bench: Bench, hosts: RayHosts) -> subprocess.Popen[str]:
    """Once it decodes."""
    process = hosts.start(*command(bench, Layout(pp=2)), *ENDLESS)
    wait_for_stages(2, 60)
    time.sleep(5)
    return process


def raylet_pids() -> list[int]:
    """The head's first."""
    found = subprocess.run(["pgrep", "-f", "raylet/raylet "], capture_output=True, text=True)
    return sorted(map(int, found.stdout.split()))


if __name__ == "__main__":
    main()
