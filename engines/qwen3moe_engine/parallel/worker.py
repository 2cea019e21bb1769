"""The process of a rank other than 0: it does what rank 0 says, and ends with it.

Owns: the messages to rank 0, and this process's end. Must not know requests or scheduling.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

from qwen3moe_engine.logits import Drawn
from qwen3moe_engine.parallel.board import Board, GroupEndedError, Patience, State
from qwen3moe_engine.parallel.guard import keep_guard
from qwen3moe_engine.parallel.mailbox import Mailbox
from qwen3moe_engine.parallel.rank import (
    OverlappingRunner,
    RankSpec,
    RebalancingRunner,
    SharedMemory,
    StageRunner,
)
from qwen3moe_engine.parallel.rank_step import RankStep, StageStep, start_rank
from qwen3moe_plugins.errors import InputError

# What rank 0 announces; with a step its number, in so many bytes.
GO, END, REBALANCE = b"go", b"end", b"rebalance"
EXECUTE, LAUNCH, STEP_BYTES = b"execute", b"launch", 8
_TICK_SECONDS = 0.5  # between signs of life of an idle rank
DOUBT_SECONDS = 0.5  # before a rank is to blame for its error, which may follow from a peer's death


@dataclass(frozen=True)
class Ready:
    """A rank that has loaded its part: blocks of its KV pool, bytes of the checkpoint that it read."""

    num_blocks: int
    num_bytes_read: int


@dataclass(frozen=True)
class Trouble:
    """Why a rank ends. is_input: the user can mend it."""

    text: str
    is_input: bool


def run_worker(spec: RankSpec, memory: SharedMemory, connection: Connection, patience: Patience) -> None:
    """What a rank's process runs. It sends rank 0 its `Facts`, awaits consent, sends `Ready` and follows; at any time
    it may send `Trouble` and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; rank 0 decides
    board = memory.board_of(spec.place)
    threading.Thread(target=keep_guard, args=(board, patience), daemon=True).start()
    try:
        board.enter(State.STARTING)
        connection.send(spec.facts())
        connection.recv_bytes()
        step, runner = start_rank(spec, memory, board)
        connection.send(Ready(runner.num_blocks, runner.num_bytes_read))
        _Follower(step, runner, Mailbox(memory.mailbox), board).follow(connection)
        runner.close()
    except (GroupEndedError, EOFError, ConnectionError):
        pass  # rank 0 knows why, or is no more
    except InputError as error:
        connection.send(Trouble(str(error), is_input=True))
    except Exception as error:
        time.sleep(DOUBT_SECONDS)
        if not board.has_ended:
            traceback.print_exc()
            connection.send(Trouble(f"{type(error).__name__}: {error}", is_input=False))


class _Follower:
    """Does what rank 0 announces, until it announces the end."""

    def __init__(self, step: RankStep | StageStep, runner: StageRunner, mailbox: Mailbox, board: Board):
        self._step, self._runner, self._mailbox, self._board = step, runner, mailbox, board
        self._in_flight: Drawn | None = None

    def follow(self, connection: Connection) -> None:
        while True:
            self._board.enter(State.IDLE)
            if not connection.poll(_TICK_SECONDS):
                self._wait()
                continue
            order = connection.recv_bytes()
            if order == END:
                return
            if order == REBALANCE:
                self._board.enter(State.RUNNING)
                assert isinstance(self._runner, RebalancingRunner)
                self._runner.rebalance()
            else:
                self._take_step(order[:-STEP_BYTES], int.from_bytes(order[-STEP_BYTES:], "little"))

    def _take_step(self, kind: bytes, number: int) -> None:
        """Of steps that overlap, one is waited for when the next has been started."""
        self._board.enter(State.RUNNING, number)
        batch, draws = self._mailbox.read(number)
        if kind == EXECUTE:
            self._step.follow(batch)
            return
        assert kind == LAUNCH and isinstance(self._runner, OverlappingRunner), kind
        drawn = self._runner.launch(batch, draws)
        self._wait()
        self._in_flight = drawn

    def _wait(self) -> None:
        if self._in_flight is not None:
            self._board.enter(State.RUNNING)
            self._in_flight.tokens()
            self._in_flight = None
