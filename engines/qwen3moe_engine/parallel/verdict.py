"""How a group of ranks ends before its time."""

from __future__ import annotations

from qwen3moe_plugins.errors import InputError

EXIT_CODE = 3  # of rank 0's process


class RankFailedError(RuntimeError):
    """A rank died, hung or gave up, and the group has ended. Names the rank and the reason."""


class RankInputError(InputError):
    """Bad input that another rank found."""

    def __init__(self, text: str):
        ValueError.__init__(self, text)


Verdict = RankFailedError | RankInputError
