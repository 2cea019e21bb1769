"""`qwen3moe-export generate`: completions of prompts by an executor. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.request import Completion, Request, check_params, check_token_ids
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_export.cli.executors import ExecutorOptions, capacity_of, executor_options, open_executor
from qwen3moe_export.cli.layout_options import layout_options, require_layout
from qwen3moe_export.cli.progress import spinner
from qwen3moe_export.cli.sampling_options import sampling_options
from qwen3moe_plugins.errors import InputError


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
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
    options: ExecutorOptions,
    layout: Layout | None,
    params: SamplingParams,
    export: Path,
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
    manifest = load_stages(export)[0].manifest
    require_layout(layout, manifest, export)
    manifest.require_token_ids(export)
    text = _tokenizer(tokenizer, options.weights, optional=prompt_ids is not None)
    token_ids = _parse_ids(prompt_ids) if prompt_ids is not None else _encode(text, prompt, prompts)
    check_params(params, manifest.dims.vocab_size, has_tokenizer=text is not None)
    engine = _build_engine(export, manifest, options, token_ids, params, text)
    with spinner("generating"):
        completions = engine.generate(token_ids, params)
    _print(completions, as_json)


def _tokenizer(given: Path | None, weights: Path | None, optional: bool) -> Tokenizer | None:
    """That of `given`, else the one beside the weights; none if there is none there and it is optional."""
    if given is not None:
        return Tokenizer(given)
    if weights is None:
        if optional:
            return None
        remedy = "give it, or prompts as ids with --prompt-ids"
        raise InputError("--tokenizer", got="none", expected="a folder with tokenizer.json", remedy=remedy)
    folder = weights if weights.is_dir() else weights.parent
    return None if optional and not (folder / "tokenizer.json").is_file() else Tokenizer(folder)


def _parse_ids(text: str) -> list[list[int]]:
    try:
        return [[int(item) for item in text.split(",")]]
    except ValueError:
        raise InputError(
            "--prompt-ids", got=repr(text), expected="integers with commas between", remedy="write for example 5,9,77"
        ) from None


def _encode(tokenizer: Tokenizer | None, prompt: str | None, prompts: Path | None) -> list[list[int]]:
    assert tokenizer is not None
    if prompts is None:
        return [tokenizer.encode(prompt or "")]
    if not prompts.is_file():
        raise InputError("--prompts", got=f"no file {prompts}", expected="a text file", remedy="check the path")
    try:
        lines = [line for line in prompts.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(str(prompts), got=str(error), expected="text in UTF-8", remedy="convert the file") from None
    if not lines:
        raise InputError(str(prompts), got="no line", expected="a prompt a line", remedy="write at least one")
    return [tokenizer.encode(line) for line in lines]


def _build_engine(
    export: Path,
    manifest: Manifest,
    options: ExecutorOptions,
    token_ids: list[list[int]],
    params: SamplingParams,
    tokenizer: Tokenizer | None,
) -> Engine:
    """An engine whose KV pool holds as many of the requests at once as may run. Prompts are checked before it loads."""
    capacity = capacity_of(options, manifest)
    size = capacity.block_size
    needed = sorted((num_blocks_for(len(ids) + params.max_new_tokens, size) for ids in token_ids), reverse=True)
    limit = num_blocks_for(capacity.max_model_len, size)
    num_blocks = sum(min(blocks, limit) for blocks in needed[: capacity.max_seqs])
    blocks = BlockManager(num_blocks, size)
    scheduler = Scheduler(blocks, capacity.max_model_len, capacity.max_step_tokens, capacity.max_seqs)
    for ids in token_ids:
        check_token_ids(ids, manifest.dims.vocab_size)
        scheduler.check(Request(0, tuple(ids), params))
    executor = open_executor(options, export, manifest, num_blocks)
    click.get_current_context().call_on_close(executor.close)
    return Engine(executor, scheduler, manifest.dims.vocab_size, manifest.eos_token_ids, tokenizer)


def _print(completions: list[Completion], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_as_row(completion) for completion in completions], indent=1))
        return
    for completion in completions:
        click.echo(completion.text if completion.text is not None else ",".join(map(str, completion.token_ids)))


def _as_row(completion: Completion) -> dict[str, Any]:
    """Without what the request has none of, such as the seed of greedy decoding."""
    optional = ("logprobs", "seed")
    return {key: value for key, value in asdict(completion).items() if value is not None or key not in optional}
