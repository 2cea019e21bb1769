"""The command line in a process of its own, with its time and peak memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# ru_maxrss would count the parent's pages between fork and exec: VmHWM starts anew with the program.
_MAIN = """
import sys, time
start = time.perf_counter()
from qwen3moe_export.cli import main
main(sys.argv[1:], standalone_mode=False)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - start, time.process_time(), peak)
"""


@dataclass(frozen=True)
class Measurement:
    """`cpu_seconds` does not depend on what else the machine does, so that is what tests bound."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} s of CPU), peak {self.peak_bytes / 1e9:.2f} GB"


def run_measured(*args: str | Path) -> Measurement:
    """Runs `qwen3moe-export ARGS`, which must succeed."""
    command = [sys.executable, "-c", _MAIN, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    seconds, cpu_seconds, peak_kib = done.stdout.splitlines()[-1].split()
    return Measurement(float(seconds), float(cpu_seconds), int(peak_kib) * 1024)
