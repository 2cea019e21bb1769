"""A server and how it is asked.

Owns: the requests' JSON. Must not know the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3moe_engine.bench.workload import WorkItem

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True)
class Target:
    """url: such as http://127.0.0.1:8000. ignore_eos: outputs have the length asked for; an extension of OpenAI's API
    that vLLM and SGLang have. counts_tokens: asks for log-probabilities, which name every token. timeout: seconds of a
    request. extra_body: more of the request's JSON.
    """

    url: str
    model: str
    endpoint: str = "completions"
    api_key: str | None = field(default=None, repr=False)
    ignore_eos: bool = True
    counts_tokens: bool = False
    timeout: float = 600.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def completions_url(self) -> str:
        return self.url + PATHS[self.endpoint]

    def body(self, item: WorkItem) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "max_tokens": item.max_tokens, "temperature": 0.0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        is_chat = self.endpoint == "chat"
        if is_chat:
            body["messages"] = [{"role": "user", "content": item.prompt}]
        else:
            body["prompt"] = item.prompt
        if self.counts_tokens:
            body["logprobs"] = True if is_chat else 0
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | dict(self.extra_body)
