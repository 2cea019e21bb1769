"""A local Ray in processes of its own, seen from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS, STOP_SECONDS = 120, 30


@dataclass(frozen=True)
class RayCluster:
    url: str
    head_pid: int

    def replica_pids(self) -> list[int]:
        """By the name that Ray gives the processes of replicas once they run."""
        return [pid for pid in descendants(self.head_pid) if command_of(pid).startswith("ray::ServeReplica")]


@contextmanager
def run_ray(deployment: Path, url: str, home: Path) -> Iterator[RayCluster]:
    """Serves the file `deployment`. home: where Ray keeps the token its processes know each other by. Whatever happens,
    all processes are gone at the end."""
    environment = os.environ | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    log = home / "log"
    with log.open("wb") as output:
        command = [sys.executable, str(Path(__file__).with_name("ray_head.py")), str(deployment)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": output}
        head = subprocess.Popen(command, env=environment, **pipes)
    try:
        assert head.stdout is not None and head.stdin is not None
        lines = iter(head.stdout.readline, b"")
        assert b"ready\n" in lines, log.read_text()
        yield RayCluster(url, head.pid)
    finally:
        left = descendants(head.pid)
        head.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            head.wait(STOP_SECONDS)
        head.kill()
        head.wait()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    parents = {int(path.name): parent_of(path) for path in Path("/proc").iterdir() if path.name.isdecimal()}
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def parent_of(process: Path) -> int:
    """0 for one that has gone."""
    with suppress(OSError):
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
