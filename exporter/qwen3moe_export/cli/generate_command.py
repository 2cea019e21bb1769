"""`qwen3moe-export generate`: completions of prompts by an executor. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.opened_export import OpenedExport
from qwen3moe_engine.request import Completion
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_export.cli.executors import executor_options, load_engine, open_export, weights_option
from qwen3moe_export.cli.layout_options import layout_options, require_layout
from qwen3moe_export.cli.progress import spinner
from qwen3moe_export.cli.prompt_file import read_prompts
from qwen3moe_export.cli.sampling_options import sampling_options
from qwen3moe_plugins.errors import InputError


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@weights_option
@executor_options
@layout_options
@click.option("--prompt", help="Text to continue.")
@click.option("--prompt-ids", help="Token ids to continue, such as 5,9,77.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A text file with a prompt a line.")
@sampling_options
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder with tokenizer.json.  [default: that of --weights]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a list of token_ids, text, finish_reason and what was asked for."
)
def command(
    options: EngineOptions,
    layout: Layout | None,
    params: SamplingParams,
    export: Path,
    weights: Path | None,
    prompt: str | None,
    prompt_ids: str | None,
    prompts: Path | None,
    tokenizer: Path | None,
    as_json: bool,
) -> None:
    """Continue prompts with EXPORT, run by ONNX Runtime on the CPU or by TensorRT, on as many ranks as it is for.

    \b
    Examples:
      qwen3moe-export generate export --weights Qwen3-30B-A3B --prompt "Once upon a time"
      qwen3moe-export generate export --weights Qwen3-30B-A3B --prompts p.txt --temperature 0.7 --top-p 0.8 --seed 7
      qwen3moe-export generate export --weights export/weights.safetensors --prompt-ids 5,9,77 --json
      qwen3moe-export generate export --weights Qwen3-30B-A3B --executor tensorrt --plan engine.plan --prompt Hi
    """
    if sum(given is not None for given in (prompt, prompt_ids, prompts)) != 1:
        raise click.UsageError("give exactly one of --prompt, --prompt-ids and --prompts")
    if params.logprobs is not None and not as_json:
        raise click.UsageError("--logprobs goes with --json")
    opened = open_export(export, weights, options, tokenizer)
    require_layout(layout, opened.manifest, export)
    token_ids = _parse_ids(prompt_ids) if prompt_ids is not None else _encode(opened, prompt, prompts)
    engine = load_engine(opened, opened.num_blocks_for(token_ids, params))
    with spinner("generating"):
        completions = engine.generate(token_ids, params)
    _print(completions, as_json)


def _parse_ids(text: str) -> list[list[int]]:
    try:
        return [[int(item) for item in text.split(",")]]
    except ValueError:
        raise InputError(
            "--prompt-ids", got=repr(text), expected="integers with commas between", remedy="write for example 5,9,77"
        ) from None


def _encode(opened: OpenedExport, prompt: str | None, prompts: Path | None) -> list[list[int]]:
    if opened.tokenizer is None:
        got = "none" if opened.weights is None else f"no tokenizer.json beside {opened.weights}"
        remedy = "give it, or prompts as ids with --prompt-ids"
        raise InputError("--tokenizer", got=got, expected="a folder with tokenizer.json", remedy=remedy)
    lines = [prompt or ""] if prompts is None else read_prompts(prompts)
    return [opened.tokenizer.encode(line) for line in lines]


def _print(completions: list[Completion], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_as_row(completion) for completion in completions], indent=1))
        return
    for completion in completions:
        click.echo(completion.text if completion.text is not None else ",".join(map(str, completion.token_ids)))


def _as_row(completion: Completion) -> dict[str, Any]:
    """Without what the request has none of, such as the seed of greedy decoding, and without its timing."""
    optional, values = ("logprobs", "seed"), asdict(completion)
    del values["timing"]
    return {key: value for key, value in values.items() if value is not None or key not in optional}
