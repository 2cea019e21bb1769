"""`qwen3moe-export bench step | prefill`: times of an engine, beside the bound and a peer. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from qwen3moe_engine.bench.bound import decode_bound_ms
from qwen3moe_engine.bench.steps import StepClock, Times, num_new_tokens
from qwen3moe_engine.block_manager import BlockManager, num_blocks_for
from qwen3moe_engine.engine import Engine
from qwen3moe_engine.manifest import Manifest, load_manifest
from qwen3moe_engine.scheduler import Scheduler
from qwen3moe_export.cli.executors import Capacity, ExecutorOptions, capacity_of, executor_options, open_executor
from qwen3moe_plugins.errors import InputError

DECODE_CASES = "1x1024,8x1024,32x1024,64x1024,128x1024,256x1024,1x8000,8x8000"
PROMPT_LENGTHS = "128,2048,8192"
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Row:
    """Times in milliseconds. name: as in the file of a peer's figures. bound: by memory traffic, None if not known."""

    name: str
    median: float
    p90: float
    tokens_per_second: float
    bound: float | None = None
    peer: float | None = None

    @property
    def cells(self) -> list[str]:
        bound = [f"{self.bound:.2f}", f"{100 * self.bound / self.median:.0f} %"] if self.bound else ["", ""]
        peer = [f"{self.peer:.2f}", f"{self.peer / self.median:.2f}"] if self.peer else ["", ""]
        return [self.name, f"{self.median:.3f}", f"{self.p90:.3f}", f"{self.tokens_per_second:.0f}", *bound, *peer]


HEADER = ["case", "ms", "p90", "tok/s", "bound ms", "of the bound", "peer ms", "peer / ours"]


@click.command()
@click.argument("export", type=_PATH)
@executor_options
@click.option("--cases", default=DECODE_CASES, show_default=True, help="BATCHxCONTEXT, with commas between.")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=64, show_default=True, help="Timed of each case.")
@click.option("--bandwidth", type=float, default=4.3e12, show_default=True, help="Of memory, bytes/s, for the bound.")
@click.option("--peer", type=_PATH, help="A JSON object: a peer's milliseconds by case.")
@click.option("--json", "json_path", type=_PATH, help="Where to write the rows.")
def step(
    options: ExecutorOptions,
    export: Path,
    cases: str,
    num_steps: int,
    bandwidth: float,
    peer: Path | None,
    json_path: Path | None,
) -> None:
    """Time of a decode step of EXPORT by batch and context: the whole engine, sampler included.

    \b
    Example:
      qwen3moe-export bench step export --executor tensorrt --plan engine.plan --random-weights 7 --peer vllm.json
    """
    manifest, peers = load_manifest(export), _read_peer(peer)
    wanted = _parse_cases(cases)
    capacity = capacity_of(options, manifest)
    lengths = [
        (batch, context + num_new_tokens(batch, context, num_steps, capacity.max_step_tokens))
        for batch, context in wanted
    ]
    clock = _clock(export, manifest, options, capacity, lengths)

    def measure(case: tuple[int, int]) -> Row:
        batch, context = case
        times, name = clock.decode(batch, context, num_steps), f"{batch}x{context}"
        bound = decode_bound_ms(manifest, batch, context, bandwidth)
        return _row(name, times, batch, bound, peers.get(name))

    _report(wanted, measure, json_path)


@click.command()
@click.argument("export", type=_PATH)
@executor_options
@click.option("--lengths", default=PROMPT_LENGTHS, show_default=True, help="Tokens of a prompt, with commas between.")
@click.option("--peer", type=_PATH, help="A JSON object: a peer's milliseconds by length.")
@click.option("--json", "json_path", type=_PATH, help="Where to write the rows.")
def prefill(options: ExecutorOptions, export: Path, lengths: str, peer: Path | None, json_path: Path | None) -> None:
    """Time to the first token of a prompt that has EXPORT's engine to itself.

    \b
    Example:
      qwen3moe-export bench prefill export --executor tensorrt --plan engine.plan --random-weights 7
    """
    manifest, peers = load_manifest(export), _read_peer(peer)
    wanted = [length for (length,) in _parse(lengths, "--lengths", 1, "128,2048")]
    clock = _clock(export, manifest, options, capacity_of(options, manifest), [(1, max(wanted) + 1)])
    measure = lambda length: _row(str(length), clock.first_token(length), length, None, peers.get(str(length)))  # noqa: E731
    _report(wanted, measure, json_path)


def _clock(
    export: Path, manifest: Manifest, options: ExecutorOptions, capacity: Capacity, batches: list[tuple[int, int]]
) -> StepClock:
    """Over an engine whose KV pool holds each of `batches`: so many sequences of so many tokens."""
    num_blocks = max(count * num_blocks_for(length, capacity.block_size) for count, length in batches)
    blocks = BlockManager(num_blocks, capacity.block_size)
    scheduler = Scheduler(blocks, capacity.max_model_len, capacity.max_step_tokens, capacity.max_seqs)
    executor = open_executor(options, export, manifest, num_blocks)
    engine = Engine(executor, scheduler, manifest.dims.vocab_size, manifest.eos_token_ids)
    return StepClock(engine, manifest.dims.vocab_size, capacity.max_step_tokens)


def _row(name: str, times: Times, num_tokens: int, bound: float | None, peer: float | None) -> Row:
    return Row(name, times.median, times.percentile(90), num_tokens / times.median * 1e3, bound, peer)


def _report(cases: Sequence, measure: Callable[..., Row], json_path: Path | None) -> None:
    click.echo("\n".join(("| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|")))
    rows = []
    for case in cases:
        rows.append(measure(case))
        click.echo("| " + " | ".join(rows[-1].cells) + " |")
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _parse_cases(text: str) -> list[tuple[int, int]]:
    return [(batch, context) for batch, context in _parse(text, "--cases", 2, "1x1024,8x1024")]


def _parse(text: str, option: str, count: int, example: str) -> list[list[int]]:
    """Positive numbers with `x` between them, `count` of them in each item. Raises InputError."""
    items = [item.split("x") for item in text.split(",")]
    if not all(len(item) == count and all(part.isdigit() and int(part) > 0 for part in item) for item in items):
        raise InputError(option, got=repr(text), expected=f"such as {example}", remedy="write it so")
    return [[int(part) for part in item] for item in items]


def _read_peer(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text())
        return {str(name): float(value) for name, value in values.items()}
    except (ValueError, AttributeError, TypeError) as error:
        expected = 'an object such as {"1x1024": 4.1}'
        raise InputError(str(path), got=str(error), expected=expected, remedy="write milliseconds by case") from None
