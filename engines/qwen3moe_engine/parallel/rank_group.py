"""Ranks of one host: this process is the first of them, and starts one for each other.

Owns: the processes, what they share, the agreement at start-up, and the announcement of steps. Must not know requests,
nor which runtime the ranks drive.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.draw_columns import DrawColumns, columns_of
from qwen3moe_engine.logits import Drawn, Logits
from qwen3moe_engine.parallel.agreement import check_agreement
from qwen3moe_engine.parallel.board import Board, Patience, State
from qwen3moe_engine.parallel.channel import Channel
from qwen3moe_engine.parallel.mailbox import MAILBOX_BYTES, Mailbox
from qwen3moe_engine.parallel.rank import (
    Facts,
    OverlappingRunner,
    RankSpec,
    RebalancingRunner,
    SharedMemory,
    StageRunner,
)
from qwen3moe_engine.parallel.rank_step import start_rank
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.parallel.watch import Watch
from qwen3moe_engine.parallel.worker import END, EXECUTE, GO, LAUNCH, REBALANCE, STEP_BYTES, Ready, run_worker
from qwen3moe_plugins.errors import InputError

_CLOSING_SECONDS = 2.0  # of a failed group


class RankGroup:
    """`specs`: one for each rank, the first run by this process.

    Raises InputError if ranks disagree, and RankFailedError, at start or later, if one dies, hangs or gives up; then
    all of them have ended. runner: this rank's. ready: what each rank reported when it had loaded.
    """

    def __init__(self, specs: Sequence[RankSpec], patience: Patience):
        place = specs[0].place
        if [spec.place.rank for spec in specs] != list(place.ranks_here):
            expected = f"{len(place.ranks_here)}, for {place.layout}"
            raise InputError("ranks", got=len(specs), expected=expected, remedy="start one of each number")
        memory = _share(specs)
        self._board = memory.board_of(specs[0].place)
        self._board.open()
        self._mailbox, self._num_steps, self._is_closed = Mailbox(memory.mailbox), 0, False
        self._runner: StageRunner | None = None
        self._start_processes(specs[1:], memory, patience)
        try:
            self._start(specs[0], memory)
        except BaseException:
            self.close()
            raise

    @property
    def runner(self) -> StageRunner:
        assert self._runner is not None
        return self._runner

    def run(self, batch: Batch, hidden_states: NDArray[np.float32] | None = None) -> Logits | NDArray[np.float32]:
        """A step: logits, which are watched while they are drawn or read, or what goes on to the next stage."""
        with self.at_work():
            self._order(EXECUTE, batch, columns_of([]))
            result = self._step.run(batch, hidden_states)
        assert result is not None
        return result

    def launch(self, batch: Batch, draws: DrawColumns) -> Drawn:
        """A step of the only stage, and the draw of its tokens on every rank."""
        with self.at_work():
            self._order(LAUNCH, batch, draws)
            assert isinstance(self._runner, OverlappingRunner)
            return self._runner.launch(batch, draws)

    def rebalance(self) -> int:
        """Moves experts between ranks. Returns how many came to this one."""
        with self.at_work():
            assert isinstance(self._runner, RebalancingRunner)
            self._announce(REBALANCE)
            return self._runner.rebalance()

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        self._watch.when_failed(tell)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it this rank is expected to make progress. An error ends the group, and is raised as the verdict on
        the rank that is the cause of it."""
        self._board.enter(State.RUNNING)
        try:
            with self._judged():
                yield
        finally:
            self._board.enter(State.AWAY)

    def close(self) -> None:
        """Ends every rank; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._watch.has_failed:
                self._leave_behind()
            else:
                self._end_together()
        finally:
            self._watch.close()

    def _start_processes(self, specs: Sequence[RankSpec], memory: SharedMemory, patience: Patience) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in specs]
        self._connections = [ours for ours, _ in pipes]
        processes = [
            context.Process(target=run_worker, args=(spec, memory, theirs, patience), name=str(spec.place), daemon=True)
            for spec, (_, theirs) in zip(specs, pipes, strict=True)
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()
        self._watch = Watch(processes, self._connections, self._board, patience, self._give_up)

    def _start(self, spec: RankSpec, memory: SharedMemory) -> None:
        """Loads this rank, as the others load theirs, once all agree."""
        with self._judged():
            facts = [spec.facts(), *self._watch.gather(Facts)]
            check_agreement(dict(enumerate(facts, spec.place.ranks_here.start)), spec.place.layout)
            self._announce(GO)
            self._step, self._runner = start_rank(spec, memory, self._board)
            mine = Ready(self._runner.num_blocks, self._runner.num_bytes_read)
            self.ready: tuple[Ready, ...] = (mine, *self._watch.gather(Ready))
        self._board.enter(State.AWAY)

    def _order(self, kind: bytes, batch: Batch, draws: DrawColumns) -> None:
        """The next step of the other ranks."""
        self._num_steps += 1
        self._board.enter(State.RUNNING, self._num_steps)
        self._mailbox.write(self._num_steps, batch, draws)
        self._announce(kind + self._num_steps.to_bytes(STEP_BYTES, "little"))

    def _announce(self, order: bytes) -> None:
        for connection in self._connections:
            connection.send_bytes(order)

    @contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            self._watch.check()
            yield
            self._watch.check()  # what a GPU gave that waited for a lost rank is void
        except BaseException as error:
            verdict = self._watch.convict(error)
            self._board.enter(State.AWAY)
            if verdict is error:
                raise
            raise verdict from None

    def _give_up(self, reason: str) -> None:
        if self._runner is not None:
            self._runner.abort(reason)

    def _end_together(self) -> None:
        """At the same time as the others, since a communicator's last act waits for its peers."""
        with self.at_work():
            self._watch.expect_end()
            self._announce(END)
            self.runner.close()

    def _leave_behind(self) -> None:
        """Closes what can be closed of a failed group. A GPU may hold the rest until the process ends."""
        if self._runner is None:
            return
        closing = threading.Thread(target=_close_quietly, args=(self._runner,), daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)


def _close_quietly(runner: StageRunner) -> None:
    """What it may say is of no use: why the group failed is known."""
    with suppress(Exception):
        runner.close()


def _share(specs: Sequence[RankSpec]) -> SharedMemory:
    """Zeroed memory without a name: it goes when the last process does."""
    context, place = multiprocessing.get_context("spawn"), specs[0].place
    group_size = place.layout.group_size

    def allocate(num_bytes: int) -> object:
        return context.RawArray(ctypes.c_uint8, num_bytes)

    return SharedMemory(
        first_rank=place.rank,
        num_ranks=place.layout.world_size,
        board=allocate(8 * Board.num_words(len(specs))),
        groups=tuple(allocate(SharedGroup.num_bytes(group_size)) for _ in specs[::group_size]),
        channels=tuple(allocate(Channel.NUM_BYTES) for _ in specs),
        logits=allocate(Channel.NUM_BYTES),
        mailbox=allocate(MAILBOX_BYTES),
    )
