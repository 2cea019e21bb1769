"""`qwen3moe-export bench serve`: load on an OpenAI-compatible server. Needs neither torch nor an export."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console

from qwen3moe_engine.bench.arrivals import ClosedLoop, Poisson
from qwen3moe_engine.bench.figures import measure
from qwen3moe_engine.bench.target import PATHS, Target
from qwen3moe_engine.bench.workload import RandomPrompts
from qwen3moe_export.cli.load_options import Load, load_options
from qwen3moe_export.cli.load_plot import FORMATS, write_plot
from qwen3moe_export.cli.load_table import print_figures
from qwen3moe_export.cli.output_file import check_folder, write_text, write_whole
from qwen3moe_export.cli.progress import spinner
from qwen3moe_plugins.errors import InputError

_OUTPUT = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--url", required=True, help="Of the server, such as http://127.0.0.1:8000.")
@click.option("--model", help="Its name there.  [default: the first the server has]")
@click.option("--endpoint", type=click.Choice(list(PATHS)), default="completions", show_default=True)
@click.option("--rate", type=float, help="Requests a second, as a Poisson process; inf: all at once.  [default: inf]")
@click.option("--concurrency", type=click.IntRange(min=1), help="So many clients, each waiting for its last answer.")
@load_options
@click.option(
    "--ignore-eos/--heed-eos",
    default=True,
    show_default=True,
    help="Ask for outputs of just --output-len tokens; OpenAI's own servers do not know this.",
)
@click.option("--count-tokens", is_flag=True, help="Ask for log-probabilities, to count the tokens that come.")
@click.option("--extra-body", default="{}", help="More of each request, as a JSON object.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True, help="s.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="[default: the environment's OPENAI_API_KEY]")
@click.option("--json", "json_file", type=_OUTPUT, help="Write settings and figures there.")
@click.option("--plot", "plot_file", type=_OUTPUT, help=f"Draw latencies and throughput there: {', '.join(FORMATS)}.")
def command(
    load: Load,
    url: str,
    model: str | None,
    endpoint: str,
    rate: float | None,
    concurrency: int | None,
    ignore_eos: bool,
    count_tokens: bool,
    extra_body: str,
    timeout: float,
    api_key: str | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Put load on any OpenAI-compatible server, and measure throughput and latencies as its clients see them.

    Exit code 1 if a request failed or tokens are missing.

    \b
    Examples:
      qwen3moe-export bench serve --url http://127.0.0.1:8000 --rate 8 --num-requests 500 --plot load.svg
      qwen3moe-export bench serve --url http://127.0.0.1:8000 --concurrency 64 --input-len 64-2048 --json load.json
      qwen3moe-export bench serve --url http://127.0.0.1:8000 --endpoint chat --prompts questions.txt --heed-eos
    """
    from qwen3moe_engine.bench.client import find_model, run_load

    arrivals = _arrivals(rate, concurrency, load.seed)
    _check(url, endpoint, load, plot_file)
    for path in (json_file, plot_file):
        check_folder(path)
    body = _json_object(extra_body)
    model = model or asyncio.run(find_model(url.rstrip("/"), api_key))
    target = Target(url.rstrip("/"), model, endpoint, api_key, ignore_eos, count_tokens, timeout, body)
    warmup, items = load.draw()
    with spinner(f"sending {len(items)} requests"):
        records = asyncio.run(run_load(target, arrivals, items, warmup))
    figures = measure(records)
    title = f"{model} at {target.url}, {arrivals}: {load}"
    print_figures(figures, title, Console())
    if json_file is not None:
        settings = {"target": _without_key(target), "arrivals": str(arrivals), "load": asdict(load)}
        write_text(json_file, json.dumps({**settings, "figures": asdict(figures)}, indent=1) + "\n")
    if plot_file is not None:
        write_whole(plot_file, lambda path: write_plot(records, title, path))
    if not figures.is_clean:
        raise click.exceptions.Exit(1)


def _arrivals(rate: float | None, concurrency: int | None, seed: int) -> Poisson | ClosedLoop:
    if rate is not None and concurrency is not None:
        raise click.UsageError("give one of --rate and --concurrency")
    if concurrency is not None:
        return ClosedLoop(concurrency)
    if rate is not None and not rate > 0:
        raise InputError("--rate", got=rate, expected="requests a second, above 0", remedy="or inf for all at once")
    return Poisson(math.inf if rate is None else rate, seed)


def _check(url: str, endpoint: str, load: Load, plot_file: Path | None) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(
            "--url", got=url, expected="http://HOST:PORT", remedy="write for example http://127.0.0.1:8000"
        )
    if endpoint == "chat" and isinstance(load.prompts, RandomPrompts):
        raise click.UsageError("--endpoint chat takes texts, not token ids: give --prompts")
    if plot_file is not None:
        import matplotlib  # noqa: F401, as a missing package is told before the load

        if plot_file.suffix not in FORMATS:
            remedy = "name the file so"
            raise InputError("--plot", got=str(plot_file), expected=f"a file {', '.join(FORMATS)}", remedy=remedy)


def _without_key(target: Target) -> dict[str, Any]:
    return {name: value for name, value in asdict(target).items() if name != "api_key"}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        remedy = """write for example '{"top_k": 20}'"""
        raise InputError("--extra-body", got=repr(text), expected="a JSON object", remedy=remedy)
    return value
