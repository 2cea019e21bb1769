"""`qwen3moe-export bench`: the group of measurements, each in a module `bench_*_command`. Owns: their list."""

from __future__ import annotations

import click

from qwen3moe_export.cli.lazy_group import LazyGroup

SUBCOMMANDS = {
    "serve": "Put load on an OpenAI-compatible server.",
    "throughput": "Put all prompts through an engine at once.",
    "step": "Time decode steps of an engine by batch and context.",
    "prefill": "Time the first token of a prompt by its length.",
    "ops": "Time each operator of the kernel library alone.",
    "startup": "Time the start of an engine, phase by phase.",
}


@click.group(cls=LazyGroup, subcommands=SUBCOMMANDS, module="qwen3moe_export.cli.bench_{}_command")
def command() -> None:
    """Measure a server or an engine.

    \b
    Examples:
      qwen3moe-export bench serve --url http://127.0.0.1:8000 --rate 8 --num-requests 500
      qwen3moe-export bench throughput export --weights Qwen3-30B-A3B --num-requests 256
    """
