"""From start to SIGTERM: a server that is told to stop finishes what it has accepted, or says that it does not."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import dataclass, field

import httpx
from server_process import MODEL, ServerProcess, run_server

BODY = {"model": MODEL, "prompt": "She was", "temperature": 0, "ignore_eos": True, "stream": True}


@dataclass
class Reader:
    """A client of a stream, in a thread of its own. events: what came, as JSON; done: whether the end was said."""

    server: ServerProcess
    body: dict
    events: list[dict] = field(default_factory=list)
    done: bool = False
    begun: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with httpx.stream("POST", f"{self.server.url}/v1/completions", json=self.body, timeout=60) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                self.begun.set()
                if line == "data: [DONE]":
                    self.done = True
                elif line:
                    self.events.append(json.loads(line.removeprefix("data: ")))

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def num_tokens(self) -> int:
        return sum(len(event["choices"][0]["logprobs"]["tokens"]) for event in self.events if "choices" in event)


def start_readers(server: ServerProcess, count: int, num_tokens: int) -> list[Reader]:
    """All of them accepted."""
    readers = [
        Reader(server, BODY | {"prompt": f"He {index}", "max_tokens": num_tokens, "logprobs": 0})
        for index in range(count)
    ]
    server.until(lambda found: found["qwen3moe_requests_running"] + found["qwen3moe_requests_waiting"] == count)
    return readers


def test_sigterm_under_load(export, checkpoint):
    """40 streams, of which 16 run and the others wait: each gets all of its tokens; later ones are refused."""
    with run_server(export, checkpoint, "--max-seqs", "16", "--grace-period", "60") as server:
        assert httpx.get(f"{server.url}/ready").json() == {"status": "ok"}
        readers = start_readers(server, 40, 40)
        server.terminate()
        server.until(lambda found: not found["qwen3moe_ready"])
        late = server.post("/v1/completions", json=BODY | {"max_tokens": 1, "stream": False})
        ready, alive = (httpx.get(server.url + path) for path in ("/ready", "/health"))
        for reader in readers:
            reader.join()
        assert server.wait() == 0
    assert (late.status_code, late.json()["error"]["code"], late.headers["Retry-After"]) == (503, "shutting_down", "5")
    assert (ready.status_code, alive.status_code) == (503, 200)
    assert all(reader.done and reader.num_tokens == 40 for reader in readers)
    assert len(server.log) == 1, server.log


def test_what_outlasts_the_grace_period_is_told(export, checkpoint):
    with run_server(export, checkpoint, "--grace-period", "0.3") as server:
        streams = start_readers(server, 3, 1900)
        answers: list[httpx.Response] = []
        body = BODY | {"max_tokens": 1900, "stream": False}
        waiting = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", json=body)))
        waiting.start()
        server.until(lambda found: found["qwen3moe_requests_running"] == 4)
        server.terminate()
        for reader in streams:
            reader.join()
        waiting.join()
        assert server.wait() == 0
    for reader in streams:
        assert not reader.done and 0 < reader.num_tokens < 1900
        assert reader.events[-1]["error"]["code"] == "shutting_down"
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "shutting_down")
    assert "4 requests did not finish within 0.3 s\n" in server.log


def test_a_second_signal_ends_the_grace_period(export, checkpoint):
    """SIGINT, which a terminal sends, does as SIGTERM does."""
    with run_server(export, checkpoint, "--grace-period", "600") as server:
        (reader,) = start_readers(server, 1, 1900)
        server.process.send_signal(signal.SIGINT)
        server.until(lambda found: not found["qwen3moe_ready"])
        server.terminate()
        reader.join()
        assert server.wait() == 0
    assert reader.events[-1]["error"]["code"] == "shutting_down"


def test_an_idle_server_ends_at_once(export, checkpoint):
    server_of_all = run_server(export, checkpoint, "--host", "0.0.0.0", QWEN3MOE_API_KEY="")
    with server_of_all as server, httpx.Client() as client:
        client.get(f"http://127.0.0.1:{server.url.rpartition(':')[2]}/health")  # and keeps its connection
        server.terminate()
        assert server.wait() == 0
    assert "warning: 0.0.0.0 is open to others, and there is no API key\n" in server.log
