"""How to choose tokens: the options of it, and the SamplingParams they ask for.

Owns: the command line's names of SamplingParams. Ranges and defaults are SamplingParams' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from qwen3moe_engine.sampling_params import MAX_LOGPROBS, SamplingParams
from qwen3moe_export.cli.option_group import option_group

DEFAULTS = SamplingParams()


def _option(name: str, type_: Any, help_: str) -> Callable[..., Any]:
    default = getattr(DEFAULTS, name.removeprefix("--").replace("-", "_"))
    return click.option(name, type=type_, default=default, show_default=default is not None, help=help_)


OPTIONS = (
    _option("--max-new-tokens", click.IntRange(min=1), "Tokens to make at most."),
    _option("--min-new-tokens", int, "No end before so many tokens."),
    click.option("--ignore-eos", is_flag=True, help="Go on behind the end-of-sequence token."),
    _option("--temperature", float, "Divides the logits; 0 takes the most likely token."),
    _option("--top-k", int, "Draw from the most likely tokens, so many; 0 is off."),
    _option("--top-p", float, "Draw from the fewest tokens with this probability together; 1 is off."),
    _option("--min-p", float, "Draw from tokens with this share of the highest probability; 0 is off."),
    _option("--seed", int, "Draws the same tokens each time.  [default: one of the system's for each prompt]"),
    click.option("--stop", multiple=True, help="End before this text; may be repeated."),
    _option("--presence-penalty", float, "Taken off logits of tokens in the output."),
    _option("--frequency-penalty", float, "Taken off as often as a token is in the output."),
    _option("--repetition-penalty", float, "Divides positive logits of tokens seen, multiplies negative; 1 is off."),
    _option("--logprobs", int, f"With --json: log-probabilities, with so many of the best, 0 to {MAX_LOGPROBS}."),
)


sampling_options = option_group("params", SamplingParams, OPTIONS)
