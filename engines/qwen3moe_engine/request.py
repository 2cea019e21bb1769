"""A request and what it asks for.

Owns: the state of one sequence while it is served. Must not know the scheduler, the batch or the executor.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter

from qwen3moe_engine.detokenizer import Detokenizer
from qwen3moe_engine.logprobs import TokenLogprobs
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.timing import Timing
from qwen3moe_plugins.errors import InputError


@dataclass(eq=False)
class Request:
    """A sequence being served. Of two requests that with the higher priority comes first, else that with the lower id.

    num_known: tokens of prompt and output; max_tokens: the most there may be.
    num_computed: tokens whose keys and values are in the cache, or will be when the steps in flight have run.
    num_pending: tokens that those steps will give. block_ids: int32, as the block table needs them.
    block_hashes: of its first full blocks, as far as anybody has asked. num_cached: prompt tokens that the prefix cache
    held as it started. arrived, started, first_token, last_token: `perf_counter` seconds, once they are known.
    """

    request_id: int
    prompt_ids: tuple[int, ...] = field(repr=False)
    params: SamplingParams
    priority: int = 0
    output_ids: list[int] = field(default_factory=list, repr=False)
    num_computed: int = 0
    num_pending: int = 0
    num_preemptions: int = 0
    block_ids: array[int] = field(default_factory=lambda: array("i"), repr=False)
    block_hashes: list[bytes] = field(default_factory=list, repr=False)
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    detokenizer: Detokenizer | None = None
    num_cached: int = 0
    arrived: float = field(default_factory=perf_counter, repr=False)
    started: float | None = field(default=None, repr=False)
    first_token: float | None = field(default=None, repr=False)
    last_token: float | None = field(default=None, repr=False)
    num_known: int = field(init=False, repr=False)  # a scheduler asks hundreds of requests each step
    max_tokens: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.num_known = len(self.prompt_ids) + len(self.output_ids)
        self.max_tokens = len(self.prompt_ids) + self.params.max_new_tokens

    @property
    def num_tokens(self) -> int:
        """With those to come from steps in flight."""
        return self.num_known + self.num_pending

    def tokens(self, start: int, end: int) -> list[int]:
        """Prompt and output tokens start to end - 1, as far as they are known."""
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt]
        return [*self.prompt_ids[start:end], *self.output_ids[: max(0, end - num_prompt)]]

    def append(self, token_id: int, eos_token_ids: tuple[int, ...], logprobs: TokenLogprobs | None = None) -> None:
        """Takes a sampled token and decides whether it was the last."""
        self.output_ids.append(token_id)
        self.num_known += 1
        self.last_token = perf_counter()
        if self.first_token is None:
            self.first_token = self.last_token
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if self.params.is_ended_by(token_id, eos_token_ids):
            self.finish_reason = "stop"
        elif len(self.output_ids) == self.params.max_new_tokens:
            self.finish_reason = "length"
        if self.detokenizer is not None:
            self._append_text(token_id, self.detokenizer)

    def _append_text(self, token_id: int, detokenizer: Detokenizer) -> None:
        if self.finish_reason != "stop":  # a token that ends the text is not in it
            detokenizer.append(token_id, may_stop=len(self.output_ids) > self.params.min_new_tokens)
        if self.finish_reason:
            detokenizer.finish()
        if detokenizer.stopped:
            self.finish_reason = "stop"

    def completion(self) -> Completion:
        logprobs = tuple(self.logprobs) if self.params.logprobs is not None else None
        text = self.detokenizer.text if self.detokenizer else None
        seed = self.params.seed if self.params.temperature > 0 else None
        return Completion(tuple(self.output_ids), str(self.finish_reason), text, logprobs, seed, self.timing())

    def start(self, num_cached: int) -> None:
        """It runs for the first time, behind what the prefix cache holds of it."""
        self.num_cached, self.started = num_cached, perf_counter()

    def timing(self) -> Timing | None:
        """None before the first token."""
        if self.started is None or self.first_token is None or self.last_token is None:
            return None
        return Timing(
            queue=self.started - self.arrived,
            first_token=self.first_token - self.arrived,
            per_token=(self.last_token - self.first_token) / max(1, len(self.output_ids) - 1),
            total=self.last_token - self.arrived,
        )


def check_token_ids(token_ids: Iterable[int], vocab_size: int, what: str = "prompt") -> None:
    """Raises InputError if a token is not in the vocabulary."""
    outside = [token for token in token_ids if not 0 <= token < vocab_size]
    if outside:
        raise InputError(
            what,
            got=f"token ids {outside[:8]}",
            expected=f"0 to {vocab_size - 1}",
            remedy="use the model's own tokenizer",
        )


def check_params(params: SamplingParams, vocab_size: int, has_tokenizer: bool) -> None:
    """Raises InputError for what this model, or an engine without a tokenizer, cannot do."""
    check_token_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
    check_token_ids(params.logit_bias, vocab_size, "logit_bias")
    if params.stop and not has_tokenizer:
        remedy = "give --tokenizer, or tokens to stop at"
        raise InputError("stop", got="strings", expected="a tokenizer to find them with", remedy=remedy)


@dataclass(frozen=True)
class Completion:
    """What a request produced.

    finish_reason: `length`, or `stop`: at an end-of-sequence token or one of stop_token_ids, which is the last and not
    in the text, or at a stop string, before which the text is cut. text: where the engine has a tokenizer. logprobs:
    where they were asked for, one a token. seed: where tokens were drawn by it; draws the same again. timing: differs
    from run to run, so it is left out where completions are compared.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    text: str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    seed: int | None = None
    timing: Timing | None = field(default=None, compare=False)
