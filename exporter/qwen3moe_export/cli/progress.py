"""Progress bars on the terminal, and nothing where standard error is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """`items`, with a bar while they are gone through."""
    if not sys.stderr.isatty():
        return iter(items)
    return iter(track(items, description=what, console=Console(stderr=True), transient=True))


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """For work without steps to count."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(what):
        yield
