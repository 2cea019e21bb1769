"""The guard that every other rank keeps over rank 0, whose watch cannot tell of itself.

Owns: the thread that ends a rank's process with rank 0's, and rank 0 where it is stopped. Linux.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

from qwen3moe_engine.parallel.board import STOPPED_SECONDS, Board, Patience, State
from qwen3moe_engine.parallel.verdict import EXIT_CODE, silence_of

_TICK_SECONDS = 0.4


def keep_guard(board: Board, patience: Patience) -> None:
    """Ends this process when rank 0's has ended, or has not run for too long: that is killed then, since what it holds,
    as memory and a port, nobody else gets while it only stands still. Never returns."""
    parent = parent_process()
    assert parent is not None and parent.pid is not None
    going_since = last_look = time.monotonic()
    while not wait([parent.sentinel], _TICK_SECONDS):
        board.beat()
        now = time.monotonic()
        if now - last_look > STOPPED_SECONDS:
            going_since = now  # this process was stopped, as by Ctrl-Z, and rank 0 may have been
        last_look = now
        silence = min(board.seconds_since_beat(0), now - going_since)
        if silence > patience.of(board.state_of(0)) and _is_to_blame(board, parent.pid):
            _end_rank_0(board, patience, parent.pid)
    os._exit(1)


def _is_to_blame(board: Board, pid: int) -> bool:
    """Between steps its caller may let no thread of it run for a while; that is no standstill."""
    return board.state_of(0) is not State.AWAY or _is_stopped(pid)


def _is_stopped(pid: int) -> bool:
    """By a signal; a debugger's hold is another state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _end_rank_0(board: Board, patience: Patience, pid: int) -> None:
    if board.rank == 1:
        print(f"Error: {board.name(0)}: {silence_of(board, 0, patience)}", file=sys.stderr, flush=True)
    board.end()
    os.kill(pid, signal.SIGKILL)
    os._exit(EXIT_CODE)
