"""Ranks of a group that run the fake executor, each the whole of it: what they share is the mean of their logits.

So a token that one rank has otherwise than another, of a step that nobody has waited for, changes what all draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fake_executor import FakeDrawn, OverlappingFakeExecutor

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.draw_columns import DrawColumns
from qwen3moe_engine.logits import Draw, HostLogits
from qwen3moe_engine.parallel.board import Board
from qwen3moe_engine.parallel.rank import Facts, Place
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.sampling_params import SamplingParams

NUM_BLOCKS, BLOCK_SIZE, MAX_MODEL_LEN = 64, 4, 48


@dataclass(frozen=True)
class FakeRank:
    place: Place

    def facts(self) -> Facts:
        return Facts({"layout": str(self.place.layout)}, {})

    def open(self, group: SharedGroup, board: Board) -> FakeRunner:
        return FakeRunner(group)


class FakeRunner:
    """Implements `OverlappingRunner`. A step runs when it is launched, as its ranks wait for each other."""

    num_blocks, block_size, max_model_len, num_bytes_read = NUM_BLOCKS, BLOCK_SIZE, MAX_MODEL_LEN, 0

    def __init__(self, group: SharedGroup):
        self.fake = OverlappingFakeExecutor(NUM_BLOCKS, BLOCK_SIZE, MAX_MODEL_LEN)
        self.fake.reduce = lambda logits: group.all_reduce(logits) / np.float32(group.size)

    def execute(self, batch: Batch, hidden_states: np.ndarray | None = None) -> HostLogits:
        assert hidden_states is None
        return self.fake.execute(batch)

    def forward(self, batch: Batch, hidden_states: np.ndarray | None = None) -> np.ndarray:
        raise AssertionError("there is one stage")

    def launch(self, batch: Batch, draws: DrawColumns) -> FakeDrawn:
        columns = {name: values.tolist() for name, values in draws.items()}
        offsets = columns.pop("offset")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        params = [SamplingParams(1, **row) for row in rows]
        drawn = self.fake.launch(batch, [Draw(*pair) for pair in zip(params, offsets, strict=True)])
        self.fake.run_oldest()
        return drawn

    def abort(self, reason: str) -> None:
        """Nothing of it waits but for the board."""

    def close(self) -> None:
        """Nothing outlives the object."""
