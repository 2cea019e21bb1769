"""Many ranks behind the seam of one executor: this process is rank 0, and starts one for each other rank.

Owns: the processes, what they share, the agreement at start-up, and the announcement of steps. Must not know requests,
nor which runtime the ranks drive.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.layout import Layout
from qwen3moe_engine.logits import Draw, Logits
from qwen3moe_engine.parallel.agreement import check_agreement
from qwen3moe_engine.parallel.board import DEFAULT_PATIENCE, Board, Patience, State
from qwen3moe_engine.parallel.channel import Channel
from qwen3moe_engine.parallel.mailbox import MAILBOX_BYTES, Mailbox
from qwen3moe_engine.parallel.rank import Facts, RankSpec, RebalancingRunner, SharedMemory, StageRunner, start_rank
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.parallel.watch import Watch
from qwen3moe_engine.parallel.worker import END, GO, REBALANCE, Ready, run_worker
from qwen3moe_plugins.errors import InputError


class ParallelExecutor:
    """Implements `Executor` over `specs`, one for each rank, the first run by this process.

    Raises InputError if ranks disagree, and RankFailedError, at start or in a step, if one dies, hangs or gives up;
    then all of them have ended. `ready`: what each rank reported when it had loaded.
    rebalance_steps: how many steps lie between two moves of experts, None for no move. num_experts_moved: to this rank.
    """

    def __init__(
        self,
        specs: Sequence[RankSpec],
        patience: Patience = DEFAULT_PATIENCE,
        rebalance_steps: int | None = None,
    ):
        layout = specs[0].place.layout
        if [spec.place.rank for spec in specs] != list(range(layout.world_size)):
            expected = f"{layout.world_size}, for {layout}"
            raise InputError("ranks", got=len(specs), expected=expected, remedy="start one of each number")
        memory = _share(layout)
        self._board = Board(memory.board, layout.world_size, rank=0)
        self._board.open()
        self._mailbox, self._num_steps, self._is_closed = Mailbox(memory.mailbox), 0, False
        self._rebalance_steps, self.num_experts_moved = rebalance_steps, 0
        self._runner: StageRunner | None = None
        self._start_processes(specs[1:], memory, patience)
        with self._judged():
            facts = [specs[0].facts(), *self._watch.gather(Facts)]
            check_agreement(facts, layout)
            self._announce(GO)
            self._step, runner = start_rank(specs[0], memory, self._board)
            self._runner, mine = runner, Ready(runner.num_blocks, runner.num_bytes_read)
            self.ready: tuple[Ready, ...] = (mine, *self._watch.gather(Ready))
        self._board.enter(State.AWAY)
        self.num_blocks = min(ready.num_blocks for ready in self.ready)
        self.block_size, self.max_model_len = runner.block_size, runner.max_model_len

    def execute(self, batch: Batch) -> Logits:
        if self._rebalance_steps and self._num_steps and self._num_steps % self._rebalance_steps == 0:
            self.rebalance()
        with self._running(), self._judged():
            self._num_steps += 1
            self._board.enter(State.RUNNING, self._num_steps)
            self._mailbox.write(batch)
            self._announce(self._num_steps.to_bytes(8, "little"))
            logits = self._step.run(batch)
            assert logits is not None
        return _WatchedLogits(self, logits)

    @property
    def runner(self) -> StageRunner:
        """Of this rank."""
        assert self._runner is not None
        return self._runner

    def rebalance(self) -> int:
        """Moves experts to where the work of ranks is even, by what was counted since the last time, between two steps.
        Returns how many came to this rank."""
        with self._running(), self._judged():
            assert isinstance(self._runner, RebalancingRunner)
            self._announce(REBALANCE)
            num_moved = self._runner.rebalance()
        self.num_experts_moved += num_moved
        return num_moved

    def when_failed(self, tell: Callable[[Exception], None]) -> None:
        self._watch.when_failed(tell)

    def close(self) -> None:
        """Ends every rank; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(OSError):  # one that has ended need not be told
            self._announce(END)
        self._watch.close()
        if self._runner is not None:
            self._runner.close()

    def __enter__(self) -> ParallelExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_processes(self, specs: Sequence[RankSpec], memory: SharedMemory, patience: Patience) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in specs]
        self._connections = [ours for ours, _ in pipes]
        processes = [
            context.Process(target=run_worker, args=(spec, memory, theirs), name=str(spec.place), daemon=True)
            for spec, (_, theirs) in zip(specs, pipes, strict=True)
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()
        self._watch = Watch(processes, self._connections, self._board, patience)

    def _announce(self, order: bytes) -> None:
        for connection in self._connections:
            connection.send_bytes(order)

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """An error within ends the group, and is raised as the verdict on the rank that is the cause of it."""
        try:
            self._watch.check()
            yield
        except Exception as error:
            verdict = self._watch.convict(error)
            if self._runner is not None:
                self._runner.abort(str(verdict))
            self._board.enter(State.AWAY)
            if verdict is error:
                raise
            raise verdict from None

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Between steps this rank is not expected to show signs of life."""
        self._board.enter(State.RUNNING)
        try:
            yield
        finally:
            self._board.enter(State.AWAY)


@dataclass(frozen=True)
class _WatchedLogits:
    """A step may still run when its logits are asked for: then, too, its ranks are watched."""

    executor: ParallelExecutor
    logits: Logits

    def draw(self, draws: Sequence[Draw]) -> list[int]:
        with self.executor._running(), self.executor._judged():
            return self.logits.draw(draws)

    def rows(self, indices: Sequence[int] | None = None) -> NDArray[np.float32]:
        with self.executor._running(), self.executor._judged():
            return self.logits.rows(indices)


def _share(layout: Layout) -> SharedMemory:
    """Zeroed memory without a name: it goes when the last process does."""
    context = multiprocessing.get_context("spawn")

    def allocate(num_bytes: int) -> object:
        return context.RawArray(ctypes.c_uint8, num_bytes)

    return SharedMemory(
        board=allocate(8 * Board.num_words(layout.world_size)),
        groups=tuple(allocate(SharedGroup.num_bytes(layout.group_size)) for _ in range(layout.pp)),
        channels=tuple(allocate(Channel.NUM_BYTES) for _ in range(layout.world_size)),
        logits=allocate(Channel.NUM_BYTES),
        mailbox=allocate(MAILBOX_BYTES),
    )
