"""A rank that runs a TensorRT plan on a GPU of its own.

Owns: what such ranks must agree on, and opening the communicator and the executor of a rank's stage.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.batch import Batch
from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.draw_columns import DrawColumns
from qwen3moe_engine.logits import Drawn, Logits
from qwen3moe_engine.manifest import FILE_NAME, file_sha256
from qwen3moe_engine.parallel.board import Board
from qwen3moe_engine.parallel.rank import Facts, Place, signs_of_life
from qwen3moe_engine.parallel.rebalancing import Rebalancer
from qwen3moe_engine.parallel.shared_group import SharedGroup
from qwen3moe_engine.random_model import RandomWeights
from qwen3moe_engine.stages import ExportedStage, load_stages
from qwen3moe_engine.tensorrt.communicator import (
    CollectiveLibrary,
    Communicator,
    CommunicatorConfig,
    find_nccl,
    one_shot_limit,
)
from qwen3moe_engine.tensorrt.cuda import device_count, driver_version, use_device
from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.tensorrt.plan import find_plan, load_plan_info
from qwen3moe_plugins.errors import InputError
from qwen3moe_plugins.library import KERNELS, find_library

PACKAGE = "qwen3moe-export"


@dataclass(frozen=True)
class TensorRTRank:
    """Implements `RankSpec`. export: the folder of all stages; plan: as `find_plan` takes it; weights: the checkpoint,
    None with `random_weights` in `config`. The rank runs on the GPU of its number on this host."""

    place: Place
    export: Path
    plan: Path | None
    weights: Path | None
    config: TensorRTConfig
    plugins: Path | None

    def facts(self) -> Facts:
        self._check_gpus()
        info = load_plan_info(self._plan())
        shared = {
            "layout": str(self.place.layout),
            PACKAGE: _package_version(),
            "TensorRT": f"{info.flavour} {info.tensorrt_version}",
            "plugins": file_sha256(find_library(KERNELS, self.plugins))[:12],
            "CUDA driver": driver_version(),
            "weights": _weights_identity(self.weights, self.config.random_weights),
        }
        manifest = file_sha256(self._stage().folder / FILE_NAME)
        return Facts(shared, {FILE_NAME: manifest[:12], "plan": info.plan_sha256[:12]})

    def open(self, group: SharedGroup, board: Board) -> TensorRTRunner:
        with ExitStack() as resources:
            config = replace(self.config, device=self.place.number_here)
            use_device(config.device)
            communicator = resources.enter_context(self._join(group, config.device)) if group.size > 1 else None
            executor = resources.enter_context(self._open_executor(config, board))
            return TensorRTRunner(executor, communicator, self._rebalancer(executor, group), resources.pop_all())

    def _check_gpus(self) -> None:
        needed = len(self.place.ranks_here)
        if (found := device_count()) < needed:
            expected = f"{needed}, one for each rank of {self.place.layout}{' here' if self.place.by_stage else ''}"
            raise InputError("GPUs", got=found, expected=expected, remedy="use more of them, or export for fewer ranks")

    def _join(self, group: SharedGroup, device: int) -> Communicator:
        """The first rank's id travels through the shared memory of the group."""
        library = CollectiveLibrary(find_library(KERNELS, self.plugins), find_nccl())
        own = library.unique_id()
        first = group.all_gather(np.frombuffer(own, np.uint8).reshape(1, -1))[0].tobytes()
        config = CommunicatorConfig(self.place.group_rank, group.size, device, one_shot_limit(group.size))
        return library.join(config, first)

    def _rebalancer(self, executor: TensorRTExecutor, group: SharedGroup) -> Rebalancer | None:
        manifest = self._stage().manifest
        if not manifest.of_kind("load"):
            return None
        return Rebalancer(manifest, executor.weights, executor.experts, group, self.place.group_rank)

    def _open_executor(self, config: TensorRTConfig, board: Board) -> TensorRTExecutor:
        stage = self._stage()
        checkpoint = open_checkpoint(self.weights) if self.weights is not None else None
        return TensorRTExecutor(
            stage.folder,
            stage.manifest,
            self._plan(),
            checkpoint,
            config,
            signs_of_life(board),
            self.plugins,
            self.place.group_rank,
        )

    def _stage(self) -> ExportedStage:
        return load_stages(self.export)[self.place.part.stage]

    def _plan(self) -> Path:
        return find_plan(self._stage().folder, self.plan, self.place.layout.pp)


class TensorRTRunner:
    """Implements `OverlappingRunner` and `RebalancingRunner`: the executor, its communicator if it has a group, its
    rebalancer if experts have replicas, and what closes all."""

    def __init__(
        self,
        executor: TensorRTExecutor,
        communicator: Communicator | None,
        rebalancer: Rebalancer | None,
        resources: ExitStack,
    ):
        self._executor, self._communicator, self._resources = executor, communicator, resources
        self.rebalancer = rebalancer
        self.num_blocks, self.block_size = executor.num_blocks, executor.block_size
        self.max_model_len, self.num_bytes_read = executor.max_model_len, executor.num_bytes_read

    def forward(self, batch: Batch, hidden_states: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return self._executor.forward(batch, hidden_states)

    def execute(self, batch: Batch, hidden_states: NDArray[np.float32] | None) -> Logits:
        return self._executor.execute(batch, hidden_states)

    def rebalance(self) -> int:
        return self.rebalancer.run() if self.rebalancer is not None else 0

    def launch(self, batch: Batch, draws: DrawColumns) -> Drawn:
        return self._executor.launch_columns(batch, draws)

    def abort(self, reason: str) -> None:
        """Ends what the GPU waits for, and what `close` would wait for: peers that have ended."""
        if self._communicator is not None:
            self._communicator.abort(reason)

    def close(self) -> None:
        self._resources.close()


def tensorrt_ranks(
    export: Path,
    plan: Path | None,
    weights: Path | None,
    config: TensorRTConfig,
    plugins: Path | None,
    by_stage: bool = False,
) -> list[TensorRTRank]:
    """One for every rank of the export's layout."""
    layout = load_stages(export)[0].manifest.part.layout
    places = [Place(rank, layout, by_stage) for rank in range(layout.world_size)]
    return [TensorRTRank(place, export, plan, weights, config, plugins) for place in places]


def _package_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"


def _weights_identity(weights: Path | None, random_weights: RandomWeights | None) -> str:
    return str(random_weights) if weights is None else open_checkpoint(weights).headers_sha256[:12]
