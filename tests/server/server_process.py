"""A server of the trained model in a process of its own, started by the command itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS, STOP_SECONDS = 60, 30
MODEL = "qwen3moe-tiny"


@dataclass
class ServerProcess:
    """url: without a slash at the end. log: what it has written so far."""

    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    url: str = ""

    def client(self, **settings) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0} | settings)

    def post(self, path: str, **request) -> httpx.Response:
        return httpx.post(self.url + path, timeout=60, **request)

    def metrics(self) -> dict[str, float]:
        """Values by name, with the labels as Prometheus writes them."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=60).text)
        return {
            sample.name + "".join(f'{{{key}="{value}"}}' for key, value in sample.labels.items()): sample.value
            for family in families
            for sample in family.samples
        }

    def until(self, condition: Callable[[dict[str, float]], bool], seconds: float = 20.0) -> dict[str, float]:
        """The metrics, once they meet the condition."""
        end = time.monotonic() + seconds
        while not condition(metrics := self.metrics()):
            assert time.monotonic() < end, metrics
            time.sleep(0.01)
        return metrics

    def until_idle(self) -> dict[str, float]:
        """The metrics, once nothing runs, waits or holds a block."""
        return self.until(lambda found: not any(found[f"qwen3moe_{name}"] for name in IDLE))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(STOP_SECONDS)

    def read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"serving .* at (http://\S+)", line):
                self.url = found[1]


IDLE = ("requests_running", "requests_waiting", "kv_blocks_used")


@contextmanager
def run_server(export: Path, checkpoint: Path, *options: str, **environment: str) -> Iterator[ServerProcess]:
    """With a pool of 2,048 tokens, and steps of one thread. Whatever happens, it is gone at the end."""
    code = "from qwen3moe_export.cli import main; main(prog_name='qwen3moe-export')"
    command = [sys.executable, "-c", code, "serve", str(export), "--weights", str(checkpoint), "--port", "0"]
    command += ["--threads", "1", "--kv-tokens", "2048", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    server = ServerProcess(process)
    reader = threading.Thread(target=server.read_log)
    reader.start()
    try:
        end = time.monotonic() + START_SECONDS
        while not server.url:
            assert process.poll() is None and time.monotonic() < end, "".join(server.log)
            time.sleep(0.02)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()
        reader.join()
        process.stderr.close()
