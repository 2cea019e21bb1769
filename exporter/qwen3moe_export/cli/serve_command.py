"""`qwen3moe-export serve`: an OpenAI-compatible server. Needs no torch."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import replace
from pathlib import Path

import click

from qwen3moe_engine.engine_options import EngineOptions
from qwen3moe_export.cli.executors import load_engine, open_export, serving_options, weights_option
from qwen3moe_plugins.errors import InputError

API_KEY_VARIABLE = "QWEN3MOE_API_KEY"
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("export", type=_PATH)
@weights_option
@serving_options
@click.option("--tokenizer", type=_PATH, help="Folder with tokenizer.json.  [default: that of --weights]")
@click.option("--model-name", help="What requests call the model.  [default: the name of --weights]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 is one that is free.")
@click.option("--api-key-file", type=_PATH, help=f"File with the key of clients.  [default: ${API_KEY_VARIABLE}]")
@click.option("--max-concurrency", type=click.IntRange(1), default=512, show_default=True, help="Sequences at once.")
@click.option("--max-prompt-tokens", type=click.IntRange(1), help="Of a request.  [default: what the engine holds]")
@click.option("--max-body-bytes", type=click.IntRange(1), default=4 << 20, show_default=True, help="Of a request.")
@click.option("--grace-period", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to finish in.")
def command(
    options: EngineOptions,
    export: Path,
    weights: Path | None,
    tokenizer: Path | None,
    model_name: str | None,
    host: str,
    port: int,
    api_key_file: Path | None,
    max_concurrency: int,
    max_prompt_tokens: int | None,
    max_body_bytes: int,
    grace_period: float,
) -> None:
    """Serve EXPORT over HTTP as OpenAI's API has it: /v1/models, /v1/completions, /v1/chat/completions.

    Beside these: /health, /ready, /metrics for Prometheus, /openapi.json. SIGTERM lets accepted requests finish.

    \b
    Examples:
      qwen3moe-export serve export --weights Qwen3-30B-A3B
      qwen3moe-export serve export --weights Qwen3-30B-A3B --executor tensorrt --plan engine.plan --port 9000
      QWEN3MOE_API_KEY=secret qwen3moe-export serve export --weights Qwen3-30B-A3B --host 0.0.0.0
    """
    from qwen3moe_engine.server.serving import bind, serve
    from qwen3moe_engine.server.settings import ServerSettings

    settings = ServerSettings(
        model_name=model_name or _name_of(weights or export),
        api_key=_api_key(api_key_file),
        max_body_bytes=max_body_bytes,
        max_prompt_tokens=max_prompt_tokens,
        max_concurrency=max_concurrency,
        grace_seconds=grace_period,
    )
    opened = open_export(export, weights, replace(options, max_waiting=max_concurrency), tokenizer)
    if opened.tokenizer is None:
        remedy = "name it"
        raise InputError("--tokenizer", got="none", expected="a folder with tokenizer.json", remedy=remedy)
    with bind(host, port) as bound:
        engine = load_engine(opened)
        address = bound.getsockname()
        if settings.api_key is None and not ipaddress.ip_address(address[0]).is_loopback:
            click.echo(f"warning: {address[0]} is open to others, and there is no API key", err=True)
        where = f"[{address[0]}]" if ":" in address[0] else address[0]
        ready = f"serving {settings.model_name} at http://{where}:{address[1]}"
        num_failed = serve(engine, opened.tokenizer, settings, bound, lambda: click.echo(ready, err=True))
    if num_failed:
        click.echo(f"{num_failed} requests did not finish within {grace_period:g} s", err=True)


def _name_of(path: Path) -> str:
    resolved = path.resolve()
    return resolved.stem if resolved.is_file() else resolved.name


def _api_key(file: Path | None) -> str | None:
    """Of the file, else of the environment."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(str(file), got=str(error), expected="text in UTF-8", remedy="write the key alone") from None
    if not key:
        raise InputError(str(file), got="an empty file", expected="a key", remedy="write the key into it")
    return key
