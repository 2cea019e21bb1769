"""What a load asks for: prompts and numbers of tokens.

Owns: drawing prompts at random and taking them from lines. Must not know servers, engines or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class WorkItem:
    """One request. prompt: text or token ids. max_tokens: of the output."""

    prompt: str | tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class LengthRange:
    """Tokens, `low` to `high`, each as likely."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, what: str) -> LengthRange:
        """From `128` or `64-256`. Raises InputError for anything else."""
        low, dash, high = text.partition("-")
        try:
            lengths = cls(int(low), int(high if dash else low))
        except ValueError:
            lengths = cls(0, 0)
        if not 1 <= lengths.low <= lengths.high:
            expected, remedy = "a number of tokens or a range of them", "write for example 128 or 64-256"
            raise InputError(what, got=repr(text), expected=expected, remedy=remedy)
        return lengths

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        return rng.integers(self.low, self.high, count, endpoint=True).tolist()

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class RandomPrompts:
    """Token ids below vocab_size, each as likely; the first prefix_len are the same in all prompts."""

    input_len: LengthRange
    vocab_size: int
    prefix_len: int = 0

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
        prefix = rng.integers(0, self.vocab_size, self.prefix_len).tolist()
        own = [rng.integers(0, self.vocab_size, length).tolist() for length in self.input_len.draw(rng, count)]
        return [(*prefix, *tokens) for tokens in own]


@dataclass(frozen=True)
class GivenPrompts:
    """Texts in their order, from the first again if there are too few."""

    texts: tuple[str, ...]

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        return list(islice(cycle(self.texts), count))


def make_workload(
    prompts: RandomPrompts | GivenPrompts, output_len: LengthRange, num_requests: int, seed: int
) -> list[WorkItem]:
    """The same for the same arguments."""
    rng = np.random.default_rng(seed)
    drawn: Sequence[str | tuple[int, ...]] = prompts.draw(rng, num_requests)
    lengths = output_len.draw(rng, num_requests)
    return [WorkItem(prompt, length) for prompt, length in zip(drawn, lengths, strict=True)]
