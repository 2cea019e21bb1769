"""Requests that schemathesis makes of the server's own description: right ones, nearly right ones, wrong ones.

Every answer must be of a status that is described, in the form described, within the time; none may be a server's
error; what the description forbids must be refused, and so must requests without the key. Not checked is that all it
allows is accepted: it cannot say that a prompt and its answer must fit the pool together.

For more than the run here, start a server as below and give schemathesis --max-time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import httpx
from server_process import run_server

KEY = "secret"
MAX_EXAMPLES, MAX_SECONDS = 15, 20  # of each operation, beside those at the borders; of each answer
# answers of at most 64 tokens, 16 at once, so that what is asked for takes milliseconds
NARROW = ("--kv-tokens", "64", "--max-concurrency", "16")


def test_no_request_finds_a_server_error_or_an_untold_answer(export, checkpoint, tmp_path):
    with run_server(export, checkpoint, *NARROW, QWEN3MOE_API_KEY=KEY) as server:
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
        command += [f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}", "--no-color"]
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--seed", "1"]
        command += ["--max-examples", str(MAX_EXAMPLES), "--request-timeout", str(MAX_SECONDS)]
        command += ["--generation-database", "none", "--no-shrink"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert found and int(found[1]) == int(found[2]) > 500, done.stdout
        metrics = server.until_idle()
        assert metrics['qwen3moe_requests_total{finish_reason="length"}'] > 20, "hardly any was right"
        assert metrics['qwen3moe_requests_total{finish_reason="error"}'] == 0
    assert not any("Traceback" in line for line in server.log), "".join(server.log)


def test_the_description_is_of_this_server(server):
    described = httpx.get(f"{server.url}/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert schemas["CompletionRequest"]["properties"]["model"]["enum"] == ["qwen3moe-tiny"]
    assert schemas["CompletionRequest"]["additionalProperties"] is False
    assert "ValidationError" not in str(described) and "securitySchemes" not in described["components"]
    errors = {"400", "401", "404", "413", "429", "500", "503"}
    for path, chunk in (("/v1/completions", "CompletionChunk"), ("/v1/chat/completions", "ChatChunk")):
        answers = described["paths"][path]["post"]["responses"]
        assert set(answers) == {"200"} | errors
        assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
        assert chunk in schemas and chunk in str(answers["200"]["content"]["text/event-stream"])
        for status in errors:
            assert answers[status]["content"]["application/json"]["schema"] == {
                "$ref": "#/components/schemas/ErrorBody"
            }
