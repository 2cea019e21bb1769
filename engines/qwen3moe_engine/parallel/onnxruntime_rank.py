"""A rank that runs ONNX Runtime on its share of the cores.

Owns: what such ranks must agree on, and opening the executor of a rank's stage.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.manifest import FILE_NAME, file_sha256
from qwen3moe_engine.onnxruntime_executor import OnnxRuntimeConfig, OnnxRuntimeExecutor
from qwen3moe_engine.parallel.board import Board
from qwen3moe_engine.parallel.rank import Facts, Place, signs_of_life
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.stages import ExportedStage, load_stages


@dataclass(frozen=True)
class OnnxRuntimeRank:
    """Implements `RankSpec`. export: the folder of all stages; weights: the checkpoint. config: num_threads 0 is the
    rank's share of the cores."""

    place: Place
    export: Path
    weights: Path
    config: OnnxRuntimeConfig

    def facts(self) -> Facts:
        packages = ("qwen3moe-export", "onnxruntime", "onnxruntime-extensions")
        shared = {package: version(package) for package in packages}
        shared |= {"layout": str(self.place.layout), "checkpoint": open_checkpoint(self.weights).headers_sha256[:12]}
        return Facts(shared, {FILE_NAME: file_sha256(self._stage().folder / FILE_NAME)[:12]})

    def open(self, group: SharedGroup, board: Board) -> OnnxRuntimeExecutor:
        stage, layout = self._stage(), self.place.layout
        threads = self.config.num_threads or max(1, (os.cpu_count() or 1) // layout.world_size)

        return OnnxRuntimeExecutor(
            stage.folder,
            stage.manifest,
            open_checkpoint(self.weights),
            replace(self.config, num_threads=threads),
            signs_of_life(board),
            group=group if layout.group_size > 1 else None,
            group_rank=self.place.group_rank,
        )

    def _stage(self) -> ExportedStage:
        return load_stages(self.export)[self.place.part.stage]


def onnxruntime_ranks(
    export: Path, weights: Path, config: OnnxRuntimeConfig, by_stage: bool = False
) -> list[OnnxRuntimeRank]:
    """One for every rank of the export's layout."""
    layout = load_stages(export)[0].manifest.part.layout
    return [
        OnnxRuntimeRank(Place(rank, layout, by_stage), export, weights, config) for rank in range(layout.world_size)
    ]
