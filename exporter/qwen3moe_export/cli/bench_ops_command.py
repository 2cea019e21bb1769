"""`qwen3moe-export bench ops`: each operator alone, beside its bound and a peer. Needs neither torch nor TensorRT."""

from __future__ import annotations

from pathlib import Path

import click

from qwen3moe_engine.bench.ops.sizes import OpSizes
from qwen3moe_engine.random_model import RouterSkew
from qwen3moe_engine.stages import load_stages
from qwen3moe_export.cli.bench_table import Files, file_options, read_peer, report
from qwen3moe_export.cli.executors import router_skew_option
from qwen3moe_plugins.errors import InputError

GROUPS = ("moe", "decode", "prefill", "linear", "norm", "sample")
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("export", type=_PATH)
@click.option("--ops", default=",".join(GROUPS), show_default=True, help="Which, with commas between.")
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Replays of each graph.")
@click.option("--bandwidth", type=float, default=4.3e12, show_default=True, help="Of memory, bytes/s, for the bound.")
@click.option("--flops", type=float, default=790e12, show_default=True, help="In 16 bits, for the bound.")
@click.option("--peer", type=_PATH, help="A JSON object: a peer's microseconds by name of a row.")
@click.option("--plugins", type=_PATH, help="Folder of our libraries.  [default: the package's]")
@router_skew_option("MoE: which share of assignments the first experts take, such as 0.9/8.")
@file_options
def command(
    files: Files,
    export: Path,
    ops: str,
    repeats: int,
    bandwidth: float,
    flops: float,
    peer: Path | None,
    plugins: Path | None,
    router_skew: RouterSkew | None,
) -> None:
    """Time of each operator at the shapes of EXPORT, one rank's, as CUDA graphs with weights and keys from memory.

    \b
    Example:
      qwen3moe-export bench ops export --ops moe,decode --peer benchmarks/peers/h200_ops.json
    """
    peers, groups = read_peer(peer), _parse_groups(ops)
    sizes = OpSizes.of(load_stages(export)[0].manifest)
    from qwen3moe_engine.bench.ops.cases import OpCase, cases_of
    from qwen3moe_engine.bench.ops.clock import OpClock
    from qwen3moe_export.cli.bench_op_row import HEADER, OpRow, make_op_row

    cases = [case for group in groups for case in cases_of(sizes, router_skew)[group]]
    with OpClock(sizes, plugins, repeats) as clock:
        click.echo(f"{clock.device.name}, {sizes.dtype}\n")

        def measure(case: OpCase) -> OpRow:
            times, work = clock.time(case)
            return make_op_row(case.name, times, work, work.bound_us(bandwidth, flops), peers.get(case.name))

        report(cases, measure, files, HEADER, "us", lambda row: row.name.split()[0])


def _parse_groups(text: str) -> list[str]:
    groups = text.split(",")
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise InputError(
            "--ops", got=", ".join(unknown), expected=f"of {', '.join(GROUPS)}", remedy="choose from these"
        )
    return groups
