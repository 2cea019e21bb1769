"""Whom the board blames when a run stands still."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qwen3moe_engine.parallel import board as board_module
from qwen3moe_engine.parallel.board import STOPPED_SECONDS, Board, Patience, State

PATIENCE = Patience(start=100.0, step=5.0)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told to."""
    clock = SimpleNamespace(now=1.0)
    monkeypatch.setattr(board_module, "time", SimpleNamespace(monotonic_ns=lambda: int(clock.now * 1e9)))
    return clock


@pytest.fixture
def boards(clock):
    memory = bytearray(8 * Board.num_words(3))
    boards = [Board(memory, 3, rank) for rank in range(3)]
    boards[0].open()
    return boards


def spend(seconds: float, clock, beating) -> None:
    """Time in which the processes of these boards run."""
    for _ in range(int(10 * seconds)):
        clock.now += 0.1
        for board in beating:
            board.beat()


@pytest.mark.parametrize("state", [State.IDLE, State.RUNNING])
def test_who_is_silent(boards, clock, state):
    for board in boards:
        board.enter(State.WAITING, 1)
    boards[1].enter(state)
    spend(4.9, clock, boards)
    assert boards[0].hung(PATIENCE) is None
    spend(0.3, clock, boards)
    assert boards[0].hung(PATIENCE) == 1


def test_who_waits_or_is_away_is_not_to_blame(boards, clock):
    for board, state in zip(boards, (State.AWAY, State.WAITING, State.STARTING), strict=True):
        board.enter(state)
    spend(99.8, clock, boards)
    assert boards[0].hung(PATIENCE) is None
    spend(0.5, clock, boards)
    assert boards[0].hung(PATIENCE) == 2


@pytest.mark.parametrize("state", [State.RUNNING, State.WAITING])
def test_a_process_that_does_not_run_is_blamed_before_those_that_may_wait_for_it(boards, clock, state):
    for board in boards[:2]:
        board.enter(State.RUNNING, 1)
    spend(0.5, clock, boards)
    boards[2].enter(state, 1)  # the last to make progress
    spend(PATIENCE.step + 0.2, clock, boards[:2])
    assert boards[0].seconds_since_beat(2) > STOPPED_SECONDS
    assert boards[0].hung(PATIENCE) == 2
