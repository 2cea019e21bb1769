"""The one error for bad input, raised by every package and turned into exit code 2 by the command line."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what it concerns, what was got, what was expected, and a remedy.
    """

    def __init__(self, what: str, *, got: object, expected: object, remedy: str):
        super().__init__(f"{what}: got {got}, expected {expected}; {remedy}")


def name_list(names: object, limit: int = 8) -> str:
    """`names` sorted and joined for a message, the first `limit` of them and the number left out."""
    ordered = sorted(str(name) for name in names)  # type: ignore[attr-defined]
    shown = ", ".join(ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} and {len(ordered) - limit} more"
