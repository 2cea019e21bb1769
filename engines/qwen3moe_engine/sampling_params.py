"""What a request asks of the sampler, and when it ends.

Owns: the ranges, checked when the parameters are made, so that nothing behind them checks again. Must not know logits.
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property

from qwen3moe_plugins.errors import InputError

MAX_LOGPROBS = 20  # OpenAI's limit
INT32_MAX, UINT64_MAX, FLOAT_MAX = 2**31 - 1, 2**64 - 1, sys.float_info.max


@dataclass(frozen=True)
class Range:
    """Whole numbers or any, from low to high. hint: what to do about a number outside."""

    low: float
    high: float
    hint: str
    whole: bool = False

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= self.high  # no NaN is

    def __str__(self) -> str:
        end = "or above" if self.high in (FLOAT_MAX, INT32_MAX) else f"to {self.high}"
        return f"{'an integer' if self.whole else 'a number'}, {self.low} {end}"


# top_k is the kernel's int32 and seed its uint64; penalties and biases have OpenAI's ranges
RANGES = {
    "max_new_tokens": Range(1, INT32_MAX, "ask for at least one token", whole=True),
    "min_new_tokens": Range(0, INT32_MAX, "0 is off", whole=True),
    "temperature": Range(0, FLOAT_MAX, "0 is greedy"),
    "top_k": Range(0, INT32_MAX, "0 is off", whole=True),
    "top_p": Range(0, 1, "1 is off"),
    "min_p": Range(0, 1, "0 is off"),
    "presence_penalty": Range(-2, 2, "0 is off"),
    "frequency_penalty": Range(-2, 2, "0 is off"),
    "repetition_penalty": Range(0.01, 100, "1 is off"),
    "seed": Range(0, UINT64_MAX, "leave it out for one of the system's", whole=True),
    "logprobs": Range(0, MAX_LOGPROBS, "leave it out for none", whole=True),
}
OPTIONAL = ("seed", "logprobs")
BIAS = Range(-100, 100, "100 all but forces a token, -100 all but bans it")
COLLECTIONS = (
    ("stop", tuple, "a tuple of strings"),
    ("stop_token_ids", tuple, "a tuple of token ids"),
    ("logit_bias", dict, "a dict of numbers by token id"),
)
TOKEN_ID = Range(0, INT32_MAX, "give ids of the vocabulary", whole=True)


@dataclass(frozen=True)
class SamplingParams:
    """Raises InputError for what is out of range.

    ignore_eos: go on behind an end-of-sequence token. min_new_tokens: no end before, except by max_new_tokens.
    temperature: 0 is greedy, the others in docs/design.md. seed: None draws one for each request.
    stop, stop_token_ids: strings and tokens that end the text, which holds neither. logit_bias: added, by token id.
    logprobs: how many of the best tokens to give with their log-probabilities, beside the chosen one's; None: none.
    """

    max_new_tokens: int = 64
    ignore_eos: bool = False
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] = field(default_factory=dict, hash=False)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                _check(name, value, allowed)
        if self.min_new_tokens > self.max_new_tokens:
            limit = f"at most max_new_tokens, {self.max_new_tokens}"
            raise InputError("min_new_tokens", got=self.min_new_tokens, expected=limit, remedy="lower it")
        self._check_collections()

    def _check_collections(self) -> None:
        for name, kind, expected in COLLECTIONS:
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(name, got=repr(value), expected=expected, remedy=f"make it a {kind.__name__}")
        if not all(isinstance(item, str) and item for item in self.stop):
            expected, remedy = "strings, none of them empty", "leave the others out"
            raise InputError("stop", got=repr(self.stop), expected=expected, remedy=remedy)
        for token_id in self.stop_token_ids:
            _check("stop_token_ids", token_id, TOKEN_ID)
        for token_id, bias in self.logit_bias.items():
            _check("logit_bias", token_id, TOKEN_ID)
            _check("logit_bias", bias, BIAS)

    @cached_property
    def adjusts_logits(self) -> bool:
        """Whether the sampler may see other logits than the model's."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1)
        return any(penalties) or bool(self.logit_bias) or self.min_new_tokens > 0

    def seeded(self) -> SamplingParams:
        """With a seed, from the operating system if there is none: what was drawn can be drawn again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(64))

    def is_ended_by(self, token_id: int, eos_token_ids: tuple[int, ...]) -> bool:
        return token_id in self.stop_token_ids or (not self.ignore_eos and token_id in eos_token_ids)

    def ending_token_ids(self, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
        return self.stop_token_ids if self.ignore_eos else (*self.stop_token_ids, *eos_token_ids)


def _check(name: str, value: object, allowed: Range) -> None:
    if not allowed.holds(value):
        raise InputError(name, got=repr(value), expected=allowed, remedy=allowed.hint)
