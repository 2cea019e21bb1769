"""A request and what it asks for.

Owns: the state of one sequence while it is served. Must not know the scheduler, the batch or the executor.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class SamplingParams:
    """max_new_tokens: at least 1. ignore_eos: go on behind an end-of-sequence token."""

    max_new_tokens: int = 64
    ignore_eos: bool = False


@dataclass(eq=False)
class Request:
    """A sequence being served. Of two requests that with the higher priority comes first, else that with the lower id.

    num_computed: tokens whose keys and values are in the cache. block_ids: int32, as the block table needs them.
    block_hashes: of its first full blocks, as far as anybody has asked.
    """

    request_id: int
    prompt_ids: tuple[int, ...] = field(repr=False)
    params: SamplingParams
    priority: int = 0
    output_ids: list[int] = field(default_factory=list, repr=False)
    num_computed: int = 0
    num_preemptions: int = 0
    block_ids: array[int] = field(default_factory=lambda: array("i"), repr=False)
    block_hashes: list[bytes] = field(default_factory=list, repr=False)
    finish_reason: str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def max_tokens(self) -> int:
        return len(self.prompt_ids) + self.params.max_new_tokens

    def tokens(self, start: int, end: int) -> list[int]:
        """Prompt and output tokens start to end - 1."""
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt]
        return [*self.prompt_ids[start:end], *self.output_ids[: max(0, end - num_prompt)]]

    def append(self, token_id: int, eos_token_ids: tuple[int, ...]) -> None:
        """Takes a sampled token and decides whether it was the last."""
        self.output_ids.append(token_id)
        if token_id in eos_token_ids and not self.params.ignore_eos:
            self.finish_reason = "stop"
        elif len(self.output_ids) == self.params.max_new_tokens:
            self.finish_reason = "length"


def check_token_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises InputError if a token is not in the vocabulary."""
    outside = [token for token in token_ids if not 0 <= token < vocab_size]
    if outside:
        raise InputError(
            "prompt",
            got=f"token ids {outside[:8]}",
            expected=f"0 to {vocab_size - 1}",
            remedy="use the model's own tokenizer",
        )


@dataclass(frozen=True)
class Completion:
    """What a request produced; finish_reason: `stop` (end-of-sequence token, which is the last) or `length`."""

    token_ids: tuple[int, ...]
    finish_reason: str
