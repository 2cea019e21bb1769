"""What a server is told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ServerSettings:
    """model_name: what requests call the model. api_key: None lets everybody in.

    max_body_bytes: of a request. max_prompt_tokens: None for what the engine can hold. max_choices: sequences that one
    request may ask for, prompts times n. max_concurrency: sequences that may be open, running or waiting.
    grace_seconds: for accepted requests to finish in when the server is told to stop.
    """

    model_name: str
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 4 << 20
    max_prompt_tokens: int | None = None
    max_choices: int = 128
    max_concurrency: int = 512
    grace_seconds: float = 30.0
