"""Files that a command writes beside its output on the terminal: told early if they cannot be, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwen3moe_plugins.errors import InputError


def check_folder(path: Path | None) -> None:
    """An output that cannot be written is told before the work, not behind it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(str(path), got="no such folder", expected="a file in one", remedy="make the folder")


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` gets a file beside it with the same suffix, which takes its place when done."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
