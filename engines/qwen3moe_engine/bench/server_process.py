"""A server as a child process, watched from outside.

Owns: starting it, waiting until it answers, its memory, its end. Must not know what is asked of it. Linux.
"""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class ServerProcess:
    """url: where it answers; log: a file with what it printed."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path):
        self._process, self.url, self.log = process, url, log

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self, path: str, timeout: float) -> None:
        """Until GET `path` answers 200. Raises RuntimeError if that takes longer than `timeout` seconds."""
        deadline = time.perf_counter() + timeout
        while time.perf_counter() < deadline and self.is_running:
            try:
                with urllib.request.urlopen(self.url + path, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"server: got none at {self.url} in {timeout} s; its log:\n{self.log.read_text()}")

    def resident_bytes(self) -> int:
        """Memory of the process alone."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024

    def terminate(self) -> None:
        """SIGTERM, and back at once."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout)


@contextmanager
def run_server(command: Sequence[str], url: str, log: Path) -> Iterator[ServerProcess]:
    """`command` answers at `url`; it is killed at the end if it still runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield ServerProcess(process, url, log)
    finally:
        process.kill()
        process.wait()
