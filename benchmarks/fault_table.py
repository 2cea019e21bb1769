"""What becomes of a group of ranks when something happens to one of them, as a table. Needs no torch. Linux.

    python benchmarks/fault_table.py EXPORT --weights CHECKPOINT [--executor tensorrt]

EXPORT is for two ranks; with TensorRT its plan lies in it, with at least 512 tokens a step and of context, and there
are two GPUs of which nobody else makes use. Every case is the command line with endless work, from outside: the exit
code, seconds from the fault to the end of the last process of the group, what was said, and what is left: processes,
listening ports, memory of GPUs. A case passes with the exit code and words that it names, within ten seconds, if
nothing is left.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE, Popen

import click
from group_process import GroupProcess, Leftovers
from other_rank import write_other

HERE = Path(__file__).parent
CLI = (sys.executable, "-c", "from qwen3moe_export.cli import main; main()")
LIMIT_SECONDS = 10.0
WORK = {
    "prefill": ("--input-len", "480", "--output-len", "1", "--num-requests", "8000"),
    "decode": ("--input-len", "4", "--output-len", "500", "--num-requests", "4000"),
    "little": ("--input-len", "4", "--output-len", "20", "--num-requests", "8"),
}
ROOM_BYTES = 3 << 30  # beside what occupies the GPU: for all of a rank but the KV pool asked for
KV_TOKENS = 8_000_000  # 8 GB of the trained model's on each of two ranks
IN_STEP = r"(in|after) step \d+"
STOP, KILLED = signal.SIGSTOP, -signal.SIGKILL
SILENT = "no sign of life for 8 s"


@dataclass(frozen=True)
class Case:
    """What is run, what happens to which rank and when, and how that should end. at: seconds after the start of the
    ranks' processes, "load" while they start, "work" once steps run, None for what goes wrong by itself."""

    name: str
    exit_code: int
    says: str
    work: str = "decode"
    rank: int = 1
    signal: signal.Signals = signal.SIGKILL
    at: float | str | None = "work"


KILLS = (
    Case("rank 1: SIGKILL, its process just started", 3, r"rank 1 of 2: killed by SIGKILL at start-up", at=0.3),
    Case("rank 1: SIGKILL while it loads", 3, r"rank 1 of 2: killed by SIGKILL at start-up", at="load"),
    Case("rank 1: SIGKILL in prefill", 3, rf"rank 1 of 2: killed by SIGKILL {IN_STEP}", work="prefill"),
    Case("rank 1: SIGKILL in decode", 3, rf"rank 1 of 2: killed by SIGKILL {IN_STEP}"),
    Case("rank 0: SIGKILL in decode", KILLED, "", rank=0),
)
STOPS = (
    Case("rank 1: SIGSTOP in decode", 3, rf"rank 1 of 2: {SILENT} {IN_STEP}", signal=STOP),
    Case("rank 0: SIGSTOP in decode", KILLED, rf"rank 0 of 2: {SILENT} {IN_STEP}", rank=0, signal=STOP),
)
OTHER = Case("rank 1 reads another export", 2, r"rank 1: .*got \w{12}, expected \w{12} as on rank 0", at=None)
TP4 = Case("--tp 4 of an export for two", 2, "expected TP4", at=None)
NO_ROOM = Case("GPU 1 has no room for rank 1's KV pool", 2, r"rank 1 of 2: .*GB of free GPU memory", at=None)
FULL = Case("GPU 1 is full", 2, r"rank 1 of 2: .*[mM]emory", at=None)
ONE_GPU = Case("one GPU is visible", 2, r"GPUs: got 1, expected 2, one for each rank", at=None)


@dataclass(frozen=True)
class Bench:
    export: Path
    weights: Path
    executor: str

    @property
    def has_gpus(self) -> bool:
        return self.executor == "tensorrt"

    def options(self, export: Path) -> tuple[str, ...]:
        return (str(export), "--weights", str(self.weights), "--executor", self.executor)

    def command(self, work: str) -> tuple[str, ...]:
        return (*CLI, "bench", "throughput", *self.options(self.export), "--warmup", "0", *WORK[work])


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), required=True)
@click.option("--executor", type=click.Choice(("onnxruntime", "tensorrt")), default="tensorrt")
def main(export: Path, weights: Path, executor: str) -> None:
    bench, passed = Bench(export, weights, executor), []
    print("| fault | exit code | seconds | said | left: processes, ports, MiB of each GPU | verdict |")
    print("|---|---|---|---|---|---|", flush=True)
    start_seconds, ended = run_without_fault(bench)
    passed.append(ended)
    passed += [run_signal(case, bench, start_seconds) for case in KILLS]
    with tempfile.TemporaryDirectory() as folder:
        other = write_other(export, Path(folder) / "other")
        command = (sys.executable, str(HERE / "other_rank.py"), str(other), *bench.command("little")[len(CLI) :])
        passed.append(run_case(OTHER, command, bench.has_gpus))
    wrong = (*CLI, "generate", *bench.options(export), "--prompt", "Once", "--tp", "4")
    passed.append(run_case(TP4, wrong, bench.has_gpus))
    passed += run_gpu_cases(bench) if bench.has_gpus else []
    passed += [run_signal(case, bench, start_seconds) for case in STOPS]
    sys.exit(0 if all(passed) else 1)


def run_without_fault(bench: Bench) -> tuple[float, bool]:
    """Also how many seconds ranks take to start, from their processes' first moment."""
    case = Case("none", 0, r"requests/s", at=None)
    begin = time.perf_counter()
    group = GroupProcess(bench.command("little"), has_gpus=bench.has_gpus)
    group.wait_for_ranks()
    started = time.perf_counter()
    passed = report(case, group, begin)
    duration = re.search(r"^([\d.]+) s: ", group.output, re.MULTILINE)
    return group.ended_at - started - float(duration[1] if duration else 0), passed


def run_signal(case: Case, bench: Bench, start_seconds: float) -> bool:
    at = {"load": 0.3 * start_seconds, "work": 1.25 * start_seconds + 1.0}.get(str(case.at), case.at)
    return run_case(replace(case, at=at), bench.command(case.work), bench.has_gpus)


def run_gpu_cases(bench: Bench) -> list[bool]:
    command = bench.command("little")
    one_gpu = run_case(ONE_GPU, command, True, {"CUDA_VISIBLE_DEVICES": "0"})
    with occupied(1, ROOM_BYTES):
        no_room = run_case(NO_ROOM, (*command, "--kv-tokens", str(KV_TOKENS)), True)
    with occupied(1, 64 << 20):
        full = run_case(FULL, command, True)
    return [one_gpu, no_room, full]


def run_case(case: Case, command: tuple[str, ...], has_gpus: bool, variables: dict[str, str] | None = None) -> bool:
    group = GroupProcess(command, os.environ | (variables or {}), has_gpus)
    since = time.perf_counter()
    if case.at is not None:
        group.wait_for_ranks()
        time.sleep(float(case.at))
        since = time.perf_counter()
        group.send(case.rank, case.signal)
    return report(case, group, since)


def report(case: Case, group: GroupProcess, since: float) -> bool:
    """Prints a row; whether the group ended as it should."""
    left: Leftovers = group.wait()
    seconds = group.ended_at - since
    said = next((line for line in reversed(group.errors.splitlines()) if line.startswith("Error: ")), "")
    in_time = case.at is None or seconds < LIMIT_SECONDS
    as_said = re.search(case.says, said if case.exit_code else group.output) is not None
    passed = in_time and as_said and group.exit_code == case.exit_code and left.is_nothing
    cells = (case.name, group.exit_code, f"{seconds:.2f}", said.removeprefix("Error: ").replace("|", "/"), left)
    print(f"| {' | '.join(map(str, cells))} | {'pass' if passed else 'FAIL'} |", flush=True)
    if not passed:
        print(f"{group.output[-2000:]}\n{group.errors[-4000:]}", file=sys.stderr, flush=True)
    return passed


@contextmanager
def occupied(device: int, room_bytes: int) -> Iterator[None]:
    """Another process has all of the GPU's memory but so much."""
    code = (
        "from cuda.bindings import runtime as r; import sys; "
        f"r.cudaSetDevice({device}); free = r.cudaMemGetInfo()[1]; "
        f"print(r.cudaMalloc(free - {room_bytes})[0], flush=True); sys.stdin.read()"
    )
    with ExitStack() as stack:
        process = stack.enter_context(Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE))
        stack.callback(process.kill)
        assert process.stdout is not None
        assert b"cudaSuccess" in (answer := process.stdout.readline()), answer
        yield


if __name__ == "__main__":
    main()
