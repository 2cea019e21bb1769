"""What the plugin tests share: the built libraries, without which a test skips (and fails on a GPU lane)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3moe_plugins.library import LibraryNotFoundError, find_library


@pytest.fixture(scope="session")
def built_library() -> Callable[[str], Path]:
    """The path of a library by its file name."""

    def find(name: str) -> Path:
        try:
            return find_library(name)
        except LibraryNotFoundError as error:
            pytest.skip(str(error))

    return find
