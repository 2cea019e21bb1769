"""A Ray cluster of two hosts on this one: what the command line does on it, and what happens to its stages.

Run as a script with a number of cores it is the cluster, each host with so many, until its standard input ends; it
prints its address.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 30
CLI = (sys.executable, "-c", "from qwen3moe_export.cli import main; main()")


@dataclass(frozen=True)
class RayHosts:
    address: str
    environment: dict[str, str]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """A command of ours, whose pipeline is spread over the hosts."""
        command = [*CLI, *map(str, arguments), "--ray", self.address]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.environment, text=True, **pipes)


@contextmanager
def run_hosts(home: Path, num_cpus: int = 1) -> Iterator[RayHosts]:
    """Each with `num_cpus`. home: where Ray keeps the token its processes know each other by. Whatever happens, all are
    gone at the end."""
    environment = os.environ | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    with (home / "log").open("wb") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        cluster = subprocess.Popen([sys.executable, __file__, str(num_cpus)], env=environment, **pipes)
    try:
        assert cluster.stdout is not None and cluster.stdin is not None
        address = cluster.stdout.readline().decode().strip()
        assert ":" in address, (home / "log").read_text()
        yield RayHosts(address, environment)
    finally:
        cluster.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            cluster.wait(STOP_SECONDS)
        cluster.kill()
        cluster.wait()


def stage_pids() -> list[int]:
    """By the name that Ray gives an actor's process. A rank of a stage that is none has its parent's."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdecimal() and (path / "cmdline").read_text().startswith("ray::RayStage"):
                found.append(int(path.name))
    return sorted(found)


def wait_for_stages(count: int, seconds: float) -> float:
    """Until so many are left, or a failure; returns how long that took."""
    start = time.monotonic()
    while len(stage_pids()) != count:
        assert time.monotonic() - start < seconds, stage_pids()
        time.sleep(0.05)
    return time.monotonic() - start


def strike(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def main() -> None:
    from ray.cluster_utils import Cluster

    room = {"num_cpus": int(sys.argv[1]), "object_store_memory": 80 * 2**20}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # of its own: in Ray's it would be what "auto" finds
        head = room | {"include_dashboard": False, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**room, temp_dir=folder)
        print(cluster.address, flush=True)
        sys.stdin.read()
        cluster.shutdown()


if __name__ == "__main__":
    main()
