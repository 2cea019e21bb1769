"""Every layout of ranks on CPU against one rank, as a table: errors, tokens, bytes read, times.

    python benchmarks/parallel_cpu.py > benchmarks/results/parallel_cpu.md

Ranks run ONNX Runtime and reduce through shared memory. The step that is timed has 30 new tokens of four sequences.
With more ranks than cores they take turns, so times are those of the machinery, and no gain is to be seen.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parallel"))
from layout_check import TOLERANCE, Bench, mixed_batches

from qwen3moe_engine.layout import Layout
from qwen3moe_engine.parallel.verdict import RankFailedError

NUM_NEW = 32
NUM_STEPS = 50
LAYOUTS = (
    Layout(tp=2), Layout(tp=4), Layout(ep=2), Layout(ep=4), Layout(ep=2, attention="replicated"),
    Layout(ep=4, attention="replicated"), Layout(pp=2), Layout(pp=3), Layout(tp=2, pp=2), Layout(ep=2, pp=2),
    Layout(ep=2, pp=2, attention="replicated"),
)  # fmt: skip


def main() -> None:
    cores, tie = os.cpu_count(), f"{TOLERANCE:g}"
    print(f"# Many ranks on a CPU\n\n{platform.processor() or platform.machine()}, {cores} cores; {NUM_NEW} new tokens")
    print(f"for each of 20 prompts. A difference is a tie where one rank's two best logits are within {tie}.\n")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), NUM_NEW)
        print("| model | layout | max error | equal prompts | ties | wrong | % of bytes by rank | start s | step ms |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name in ("trained", "one_kv_head"):
            for layout in LAYOUTS:
                print_layout(bench, name, layout)
        print("\n## Faults\n\nTP4 of the trained model. Seconds until the group has ended.\n")
        print("| fault | s | message |\n|---|---|---|")
        print_fault(bench, "SIGKILL in prefill", signal.SIGKILL, 200)
        print_fault(bench, "SIGKILL in decode", signal.SIGKILL, 1)
        print_fault(bench, "SIGSTOP in decode", signal.SIGSTOP, 1)


def print_layout(bench: Bench, name: str, layout: Layout) -> None:
    found = bench.compare(name, layout)
    total = sum(file.stat().st_size for file in bench.model(name).checkpoint.glob("*.safetensors"))
    shares = " ".join(f"{100 * num_bytes / total:.1f}" for num_bytes in found.bytes_read)
    start = time.perf_counter()
    batch = mixed_batches(vocab_size=100)[-1]
    with bench.ranks(name, layout) as executor:
        started = time.perf_counter()
        for _ in range(NUM_STEPS):
            executor.execute(batch).rows()
        ended = time.perf_counter()
    num_ties = len(found.differences) - found.num_wrong
    print(
        f"| {name} | {layout} | {found.max_error:.1e} | {found.num_equal}/20 | {num_ties} | {found.num_wrong} "
        f"| {shares} | {started - start:.1f} | {1e3 * (ended - started) / NUM_STEPS:.1f} |",
        flush=True,
    )


def print_fault(bench: Bench, name: str, number: signal.Signals, num_tokens: int) -> None:
    with bench.ranks("trained", Layout(tp=4)) as executor:
        victim, times = multiprocessing.active_children()[0], []

        def strike() -> None:
            times.append(time.perf_counter())
            assert victim.pid is not None
            os.kill(victim.pid, number)

        threading.Timer(0.5, strike).start()
        try:
            while True:
                bench.step(executor, bench.model("trained").prompts[0], num_tokens)
        except RankFailedError as error:
            print(f"| {name} | {time.perf_counter() - times[0]:.2f} | {error} |", flush=True)


if __name__ == "__main__":
    main()
