"""How a group of ranks ends before its time.

Owns: the words for it, and the exit codes.
"""

from __future__ import annotations

from qwen3moe_engine.parallel.board import Board, Patience, State
from qwen3moe_plugins.errors import InputError

EXIT_CODE = 3  # of rank 0's process
INPUT_EXIT_CODE = 2


class RankFailedError(RuntimeError):
    """A rank died, hung or gave up, and the group has ended. Names the rank and the reason."""


class RankInputError(InputError):
    """Bad input that another rank found."""

    def __init__(self, text: str):
        ValueError.__init__(self, text)


Verdict = RankFailedError | InputError


def silence_of(board: Board, rank: int, patience: Patience) -> str:
    """Why a rank that hangs is given up."""
    seconds = patience.of(board.state_of(rank))
    remedy = "if it is only slow, give steps more time or fewer tokens"
    return f"no sign of life for {seconds:g} s {when(board, rank)}; {remedy}"


def when(board: Board, rank: int) -> str:
    """What of the run the rank is in."""
    step, is_idle = board.step_of(rank), board.state_of(rank) is State.IDLE
    if step == 0:
        return "before the first step" if is_idle else "at start-up"
    return f"{'after' if is_idle else 'in'} step {step}"
