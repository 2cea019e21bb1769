"""Options that say how a model is spread over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qwen3moe_engine.layout import ATTENTION, Layout
from qwen3moe_engine.manifest import Manifest
from qwen3moe_export.cli.option_group import option_group
from qwen3moe_plugins.errors import InputError


def _make(**given: Any) -> Layout | None:
    """None where no option was given."""
    values = {name: value for name, value in given.items() if value is not None}
    return Layout(**values) if values else None


layout_options = option_group(
    "layout",
    _make,
    (
        click.option("--tp", type=int, metavar="N", help="Tensor parallelism: split every matrix over N ranks."),
        click.option("--ep", type=int, metavar="N", help="Expert parallelism: deal the experts out to N ranks."),
        click.option("--pp", type=int, metavar="N", help="Pipeline parallelism: N stages, each of so many ranks."),
        click.option(
            "--redundant-experts", type=int, metavar="N", help="With --ep: slots for replicas of the busiest experts."
        ),
        click.option(
            "--attention", type=click.Choice(ATTENTION), help="With --ep: split as by --tp, or whole on each rank."
        ),
    ),
)


def require_layout(layout: Layout | None, manifest: Manifest, export: Path) -> None:
    """Raises InputError if a layout was asked for that is not the export's, which weights and plans are bound to."""
    found = manifest.part.layout
    if layout not in (None, found):
        remedy = "export again with these options, or leave them away"
        raise InputError(str(export), got=f"an export for {found}", expected=str(layout), remedy=remedy)
