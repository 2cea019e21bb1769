"""Options that go together, given to a command as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Command = Callable[..., None]


def option_group(argument: str, make: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator that adds `options` and passes `make` of their values, by name, as `argument`."""

    def decorate(command: Command) -> Command:
        existing = getattr(command, "__click_params__", [])

        def collect(**given: Any) -> None:
            names = [parameter.name for parameter in added]
            command(**{argument: make(**{name: given.pop(name) for name in names})}, **given)

        collect.__doc__, collect.__name__ = command.__doc__, command.__name__
        collect.__click_params__ = []  # type: ignore[attr-defined]
        for option in reversed(options):
            option(collect)
        added = list(collect.__click_params__)  # type: ignore[attr-defined]
        collect.__click_params__ = [*existing, *added]  # type: ignore[attr-defined]
        return collect

    return decorate
