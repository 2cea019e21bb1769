"""What is asked of a server or an engine under load: the options of it, and the workload they make.

Owns: the command line's names of a workload.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.bench.workload import GivenPrompts, LengthRange, RandomPrompts, WorkItem, make_workload
from qwen3moe_export.cli.option_group import option_group
from qwen3moe_export.cli.prompt_file import read_prompts


@dataclass(frozen=True)
class Load:
    """As given on the command line; `items` are the requests to measure, `warmup` those before."""

    prompts: RandomPrompts | GivenPrompts
    output_len: LengthRange
    num_requests: int
    num_warmup: int
    seed: int

    def draw(self) -> tuple[list[WorkItem], list[WorkItem]]:
        """warmup, items: all drawn together, so that random prompts to measure are none that were seen before."""
        items = make_workload(self.prompts, self.output_len, self.num_warmup + self.num_requests, self.seed)
        return items[: self.num_warmup], items[self.num_warmup :]

    def __str__(self) -> str:
        if isinstance(self.prompts, GivenPrompts):
            kind = f"{len(self.prompts.texts)} given prompts"
        else:
            shared = f"{self.prompts.prefix_len} shared + " if self.prompts.prefix_len else ""
            kind = f"random prompts of {shared}{self.prompts.input_len} tokens"
        return f"{self.num_requests} requests, {kind}, outputs of {self.output_len} tokens, seed {self.seed}"


def _make(
    prompts: Path | None, input_len: str, output_len: str, prefix_len: int, vocab_size: int, **counts: Any
) -> Load:
    lengths = LengthRange.parse(output_len, "--output-len")
    if prompts is not None:
        return Load(GivenPrompts(tuple(read_prompts(prompts))), lengths, **counts)
    drawn = RandomPrompts(LengthRange.parse(input_len, "--input-len"), vocab_size, prefix_len)
    return Load(drawn, lengths, **counts)


_NATURAL, _POSITIVE = click.IntRange(min=0), click.IntRange(min=1)
load_options = option_group(
    "load",
    _make,
    (
        click.option("--prompts", type=click.Path(path_type=Path), help="A text file with a prompt a line."),
        click.option(
            "--input-len", default="256", show_default=True, help="Tokens of a random prompt: 256, or 64-512."
        ),
        click.option("--output-len", default="128", show_default=True, help="Tokens to make: 128, or 64-512."),
        click.option("--prefix-len", type=_NATURAL, default=0, help="Tokens that random prompts share, in front."),
        click.option(
            "--vocab-size",
            type=_POSITIVE,
            default=1000,
            show_default=True,
            help="Random tokens are below it; special ones, in most vocabularies, are not.",
        ),
        click.option("--num-requests", type=_POSITIVE, default=100, show_default=True),
        click.option("--warmup", "num_warmup", type=_NATURAL, default=1, show_default=True, help="Requests before."),
        click.option("--seed", type=_NATURAL, default=0, show_default=True, help="Of prompts, lengths and arrivals."),
    ),
)
