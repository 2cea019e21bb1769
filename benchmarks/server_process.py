"""A server of ours as a child process, watched from outside.

Owns: starting it, learning where it serves, its memory, its end. Must not know what is asked of it. Linux.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SERVING = re.compile(r"^serving .* at (http://\S+)$", re.MULTILINE)  # printed just before it listens

OPEN_REQUESTS = re.compile(r"^qwen3moe_requests_(?:running|waiting) (\S+)$", re.MULTILINE)


class ServerProcess:
    """url: where it serves."""

    def __init__(self, process: subprocess.Popen[bytes], url: str):
        self._process, self.url = process, url

    def resident_bytes(self) -> int:
        """Memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024

    def num_open_requests(self) -> int:
        """That run or wait."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            found = OPEN_REQUESTS.findall(response.read().decode())
        return sum(int(float(value)) for value in found)

    def terminate(self) -> None:
        """SIGTERM, and back at once."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout)


@contextmanager
def run_server(command: Sequence[str], log: Path, timeout: float = 120.0) -> Iterator[ServerProcess]:
    """Once it is ready, within `timeout` seconds, else RuntimeError; `log` gets what it prints. Killed at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield ServerProcess(process, _wait_until_ready(process, log, timeout))
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, timeout: float) -> str:
    """Returns its URL."""
    deadline = time.perf_counter() + timeout
    while time.perf_counter() < deadline and process.poll() is None:
        if (found := SERVING.search(log.read_text())) and _answers(f"{found[1]}/ready"):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"server: got none within {timeout} s; its log:\n{log.read_text()}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
