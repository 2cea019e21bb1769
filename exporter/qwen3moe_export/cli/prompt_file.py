"""Prompts from a text file, one a line."""

from __future__ import annotations

from pathlib import Path

from qwen3moe_plugins.errors import InputError


def read_prompts(path: Path) -> list[str]:
    """Its lines that are not blank. Raises InputError if there is none."""
    if not path.is_file():
        raise InputError("--prompts", got=f"no file {path}", expected="a text file", remedy="check the path")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(str(path), got=str(error), expected="text in UTF-8", remedy="convert the file") from None
    if not lines:
        raise InputError(str(path), got="no line", expected="a prompt a line", remedy="write at least one")
    return lines
