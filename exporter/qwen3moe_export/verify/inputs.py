"""What every stage is given: sequences, the schedule in which they arrive, and prompts to continue.

Owns: choosing them from text, and the one packed schedule, which mixes prefill, chunked prefill, decoding and sequences
without a new token in the same steps. Must not know any stage.

The default text, sample.txt, is public domain: a chapter of Jane Austen's "Pride and Prejudice" and one of the books of
Samuel as worded in the World English Bible. tests/data/README.md says where the copies come from. The small checkpoint
in tests/data was not trained on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_plugins.errors import InputError

SAMPLE = Path(__file__).with_name("sample.txt")
PROMPT_LENGTHS = (3, 5, 9, 16, 27, 40)
_RANDOM_SEED = 0
_CHUNK = 32  # tokens of a chunk of a prompt
_NUM_DECODED = 8  # tokens that go one a step


@dataclass(frozen=True)
class ScheduledTokens:
    """The next `num_new` tokens of a sequence; 0 for a sequence that is in the batch with nothing new."""

    sequence: int
    num_new: int


Step = tuple[ScheduledTokens, ...]


@dataclass(frozen=True)
class Inputs:
    """sequences: token ids int32 [length] each, teacher-forced in the order of `schedule`. prompts: int32 [length]
    each, continued greedily by `max_new_tokens`. source: where the ids come from, for people."""

    source: str
    sequences: tuple[NDArray[np.int32], ...]
    schedule: tuple[Step, ...]
    prompts: tuple[NDArray[np.int32], ...]
    max_new_tokens: int

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    def chunks(self, sequence: int) -> list[int]:
        """How many tokens of one sequence come in each of its steps."""
        return [item.num_new for step in self.schedule for item in step if item.sequence == sequence]

    def phases(self) -> dict[str, NDArray[np.bool_]]:
        """Which of the positions of all sequences, bool [num_tokens], are computed how: `prefill` into an empty cache,
        `extend` by several tokens behind what is cached, `decode` by one. Phases without a position are left out."""
        names = [
            ("prefill" if start == 0 else "decode" if num_new == 1 else "extend", num_new)
            for sequence in range(len(self.sequences))
            for chunks in [self.chunks(sequence)]
            for start, num_new in zip(np.cumsum([0, *chunks]), chunks, strict=False)
        ]
        of_position = np.repeat([name for name, _ in names], [num_new for _, num_new in names])
        return {name: of_position == name for name in ("prefill", "extend", "decode") if name in of_position}


def _whole(length: int) -> list[int]:
    return [length]


def _in_chunks(length: int) -> list[int]:
    return [min(_CHUNK, length - start) for start in range(0, length, _CHUNK)]


def _with_pause(length: int) -> list[int]:
    return [length - length // 2, 0, length // 2]


def _then_decode(length: int) -> list[int]:
    num_decoded = min(_NUM_DECODED, length - 1)
    return [length - num_decoded] + [1] * num_decoded


# Tokens, how they arrive, and the step of the first: 344 tokens in 12 steps of at most 98, as a CPU that computes every
# expert for every token, and logits over 151,936 tokens in fp32 (0.6 MB a position), allow no more.
_PLAN: tuple[tuple[int, Callable[[int], list[int]], int], ...] = (
    (96, _in_chunks, 0),
    (64, _then_decode, 0),
    (48, _with_pause, 1),
    (41, _whole, 1),
    (33, _then_decode, 2),
    (29, _with_pause, 2),
    (23, _then_decode, 3),
    (10, _whole, 3),
)


def make_inputs(
    vocab_size: int, max_model_len: int, max_new_tokens: int, tokenizer: Tokenizer | None, text: Path | None
) -> Inputs:
    """Sequences and prompts from `text` (sample.txt if None), or seeded random ids where there is no tokenizer.

    Lengths are cut to what the model allows. Raises InputError if the text is too short or does not fit the model.
    """
    if max_new_tokens >= max_model_len:
        raise InputError(
            "--max-new-tokens",
            got=max_new_tokens,
            expected=f"less than the model's {max_model_len} positions",
            remedy="lower it",
        )
    lengths = [min(length, max_model_len) for length, _, _ in _PLAN]
    prompt_lengths = [min(length, max_model_len - max_new_tokens) for length in PROMPT_LENGTHS]
    needed = sum(lengths) + sum(prompt_lengths)
    source, ids = _token_ids(vocab_size, tokenizer, text, needed)
    parts = np.split(ids[:needed], np.cumsum([*lengths, *prompt_lengths])[:-1])
    sequences, prompts = tuple(parts[: len(lengths)]), tuple(parts[len(lengths) :])
    return Inputs(source, sequences, _schedule(lengths), prompts, max_new_tokens)


def _schedule(lengths: list[int]) -> tuple[Step, ...]:
    arrivals = [(start, way(length)) for length, (_, way, start) in zip(lengths, _PLAN, strict=True)]
    num_steps = max(start + len(chunks) for start, chunks in arrivals)
    return tuple(
        tuple(
            ScheduledTokens(sequence, chunks[step - start])
            for sequence, (start, chunks) in enumerate(arrivals)
            if start <= step < start + len(chunks)
        )
        for step in range(num_steps)
    )


def _token_ids(
    vocab_size: int, tokenizer: Tokenizer | None, text: Path | None, needed: int
) -> tuple[str, NDArray[np.int32]]:
    if tokenizer is None:
        if text is not None:
            raise InputError(
                "--text",
                got="a checkpoint without tokenizer.json",
                expected="one with it",
                remedy="leave --text away to compare on random token ids",
            )
        ids = np.random.default_rng(_RANDOM_SEED).integers(0, vocab_size, needed, dtype=np.int32)
        return "random token ids (the checkpoint has no tokenizer.json)", ids
    path = text or SAMPLE
    ids = np.array(tokenizer.encode(_read(path)), np.int32)
    if len(ids) < needed:
        raise InputError(
            str(path), got=f"{len(ids)} tokens", expected=f"at least {needed}", remedy="give a longer text"
        )
    if ids.max() >= vocab_size:
        raise InputError(
            "tokenizer.json",
            got=f"token id {ids.max()}",
            expected=f"0 to {vocab_size - 1}",
            remedy="check that tokenizer.json and config.json belong together",
        )
    return path.name, ids


def _read(path: Path) -> str:
    if not path.is_file():
        raise InputError("--text", got=f"no file {path}", expected="a text file", remedy="check the path")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), got=str(error), expected="text in UTF-8", remedy="convert the file") from None
