"""The watch that rank 0 keeps over the other ranks: the first that dies, hangs or gives up ends them all.

Owns: the thread that waits for messages and deaths, the verdict, and the end of processes that do not end by
themselves. Must not know what the ranks compute.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from qwen3moe_engine.parallel.board import STOPPED_SECONDS, Board, GroupEndedError, Patience, State
from qwen3moe_engine.parallel.verdict import (
    EXIT_CODE,
    INPUT_EXIT_CODE,
    RankFailedError,
    RankInputError,
    Verdict,
    silence_of,
    when,
)
from qwen3moe_engine.parallel.worker import DOUBT_SECONDS, Trouble
from qwen3moe_plugins.errors import InputError

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 2.0  # for rank 0's main thread to raise the verdict itself


class Watch:
    """Over `processes`, rank 1 first, each with the connection it speaks through.

    give_up: called with the reason when the others are ended before their time, from whichever thread finds out: it
    ends what rank 0 itself may wait for.
    """

    def __init__(
        self,
        processes: Sequence[BaseProcess],
        connections: Sequence[Connection],
        board: Board,
        patience: Patience,
        give_up: Callable[[str], None],
    ):
        self._processes, self._connections = processes, connections
        self._board, self._patience, self._give_up = board, patience, give_up
        self._messages: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._verdict: Verdict | None = None
        self._ended = threading.Event()
        self._expects_end = self._is_closing = False
        self._tell: Callable[[Exception], None] = lambda verdict: None
        self._processes_lock = threading.RLock()  # two threads that await one process take its exit from each other
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        return self._verdict is not None

    def gather(self, kind: type) -> list[Any]:
        """A message of `kind` from every rank but 0, in their order. Raises the verdict if there is one first."""
        found: dict[int, Any] = {}
        self._board.enter(State.WAITING)
        while len(found) < len(self._processes):
            self.check()
            try:
                rank, message = self._messages.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            assert isinstance(message, kind), message
            found[rank] = message
        self._board.enter(State.STARTING)
        return [found[rank] for rank in sorted(found)]

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        """Calls `tell` with the verdict, from the watch's thread, or at once if there is one."""
        with self._processes_lock:
            if self._verdict is None:
                self._tell = tell
                return
        tell(self._verdict)

    def check(self) -> None:
        """Raises the verdict, if there is one."""
        if self._verdict is not None:
            raise self._verdict

    def convict(self, error: BaseException) -> BaseException:
        """What to raise for `error` of rank 0's own: the verdict it follows from, or one on rank 0. The group has ended
        when this returns."""
        if isinstance(error, InputError):
            self._end(error)
        elif isinstance(error, Exception):
            is_consequence = isinstance(error, GroupEndedError | OSError)  # whose cause is about to be known
            self._ended.wait(_GRACE_SECONDS if is_consequence else DOUBT_SECONDS)
            self._fail(0, f"{type(error).__name__}: {error}")
        else:  # such as Ctrl-C, which is not for the group to replace
            self._fail(0, f"interrupted {when(self._board, 0)}")
            return error
        assert self._verdict is not None
        return self._verdict

    def expect_end(self) -> None:
        """Ranks have been told to end, so that it is no failure if they do."""
        self._expects_end = True

    def close(self, seconds: float = 5.0) -> None:
        """For ranks that have been told to end: waits so long, then ends them."""
        self._is_closing = True
        deadline = time.monotonic() + seconds
        with self._processes_lock:
            for process in self._processes:
                process.join(max(0.0, deadline - time.monotonic()))
            self._kill()
            for process in self._processes:
                process.join(_GRACE_SECONDS)
        self._thread.join()

    def _run(self) -> None:
        last_look = time.monotonic()
        while not self._is_closing and self._verdict is None:
            sentinels = [
                process.sentinel for rank, process in enumerate(self._processes, start=1) if self._is_alive(rank)
            ]
            open_connections = [connection for connection in self._connections if not connection.closed]
            wait([*sentinels, *open_connections], _POLL_SECONDS)
            if time.monotonic() - last_look > STOPPED_SECONDS:
                self._board.open()  # this process was stopped, as by Ctrl-Z, and the others may have been
            last_look = time.monotonic()
            self._board.beat()
            for rank in sorted(range(1, len(self._processes) + 1), key=self._is_alive):  # the dead before who miss them
                self._attend(rank)
            hung = self._board.hung(self._patience)
            if hung is not None:
                self._fail(hung, silence_of(self._board, hung, self._patience))
        if self._verdict is not None and not self._is_closing:
            self._tell(self._verdict)
            self._end_without_main_thread()

    def _attend(self, rank: int) -> None:
        """Takes the rank's messages; whether it lives is looked at before, as its last word may lie there."""
        connection, is_alive = self._connections[rank - 1], self._is_alive(rank)
        try:
            while not connection.closed and connection.poll():
                self._take(rank, connection.recv())
        except (EOFError, OSError):
            connection.close()
        if not is_alive and not self._is_closing:
            exit_code = self._processes[rank - 1].exitcode
            if not (self._expects_end and exit_code == 0):
                self._fail(rank, self._death(rank, exit_code))

    def _is_alive(self, rank: int) -> bool:
        with self._processes_lock:
            return self._processes[rank - 1].is_alive()

    def _take(self, rank: int, message: Any) -> None:
        if isinstance(message, Trouble):
            self._fail(rank, message.text, message.is_input)
        else:
            self._messages.put((rank, message))

    def _death(self, rank: int, exit_code: int | None) -> str:
        if exit_code is not None and exit_code < 0:
            return f"killed by {signal.Signals(-exit_code).name} {when(self._board, rank)}"
        return f"ended with exit code {exit_code} {when(self._board, rank)}"

    def _fail(self, rank: int, reason: str, is_input: bool = False) -> None:
        kind = RankInputError if is_input else RankFailedError
        self._end(kind(f"{self._board.name(rank)}: {reason}"))

    def _end(self, verdict: Verdict) -> None:
        """The first verdict stands."""
        with self._processes_lock:
            if self._verdict is not None:
                return
            self._verdict = verdict
            self._kill()
            self._give_up(str(verdict))
            for process in self._processes:
                process.join(_GRACE_SECONDS)  # a driver may hold one for good, but it takes no part any more
        self._ended.set()

    def _kill(self) -> None:
        self._board.end()
        for process in self._processes:
            process.kill()

    def _end_without_main_thread(self) -> None:
        """Ends this process if its main thread is in a step, or starting, and does not notice: it may wait for a GPU
        that waits for a dead peer. Between steps there is nobody to tell; the next step raises."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._board.state_of(0) is not State.AWAY:
            if time.monotonic() > deadline:
                print(f"Error: {self._verdict}", file=sys.stderr, flush=True)
                os._exit(INPUT_EXIT_CODE if isinstance(self._verdict, InputError) else EXIT_CODE)
            time.sleep(0.05)
