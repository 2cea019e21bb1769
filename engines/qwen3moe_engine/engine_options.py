"""How an export is run: on which executor, and how much of it at a time.

Owns: the defaults of each executor, and what goes with which. Must not import an executor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3moe_engine.random_model import RouterSkew
from qwen3moe_plugins.errors import InputError

EXECUTORS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class EngineOptions:
    """executor: one of EXECUTORS. What is None is the executor's default.

    plan, random_weights, router_skew, cuda_graphs, overlap, plugins: of TensorRT: the plan as `engine` built it, by
    default the one in the export's folder, and of a pipeline a file name in each stage's; a seed to make weights by on
    the device instead of reading a checkpoint's; which experts their routers prefer; whether steps are replayed as CUDA
    graphs (they are); whether the next step is started while one runs (it is, but in a pipeline); the folder of our
    libraries.
    num_threads: of ONNX Runtime, 0 for as many as cores.
    max_seqs, max_step_tokens: of a step. max_waiting: requests in the queue. kv_tokens: size of the KV pool.
    rebalance_steps: between two moves of experts to where the work of ranks is even. step_timeout: seconds without
    progress after which a rank of many counts as hung. ray: address of the cluster over whose hosts a pipeline's stages
    are spread, "auto" for this host's; None for all ranks here.
    """

    executor: str = EXECUTORS[0]
    plan: Path | None = None
    random_weights: int | None = None
    router_skew: RouterSkew | None = None
    cuda_graphs: bool | None = None
    overlap: bool | None = None
    plugins: Path | None = None
    num_threads: int = 0
    max_seqs: int | None = None
    max_step_tokens: int | None = None
    max_waiting: int = 1024
    kv_tokens: int | None = None
    rebalance_steps: int | None = None
    step_timeout: float | None = None
    ray: str | None = None

    def check(self, weights: Path | None) -> None:
        """Raises InputError for options that do not go together, or with these weights."""
        if self.executor not in EXECUTORS:
            remedy = "choose one of them"
            raise InputError("executor", got=repr(self.executor), expected=" or ".join(EXECUTORS), remedy=remedy)
        for name in ("max_seqs", "max_step_tokens", "max_waiting", "kv_tokens", "rebalance_steps", "step_timeout"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(name, got=value, expected="1 or above", remedy="raise it, or leave it out")
        if self.executor == "onnxruntime":
            self._check_onnxruntime(weights)
        else:
            self._check_tensorrt(weights)

    def _check_onnxruntime(self, weights: Path | None) -> None:
        of_tensorrt = ("plan", "random_weights", "router_skew", "cuda_graphs", "overlap", "plugins")
        given = [name for name in of_tensorrt if getattr(self, name) is not None]
        if given:
            remedy = "leave these out, or choose the executor tensorrt"
            raise InputError("executor onnxruntime", got=", ".join(given), expected="no such option", remedy=remedy)
        if weights is None:
            raise InputError("weights", got="none", expected="a checkpoint", remedy="give its folder")

    def _check_tensorrt(self, weights: Path | None) -> None:
        if (weights is None) == (self.random_weights is None):
            got = "neither" if weights is None else "both"
            raise InputError("weights", got=got, expected="either weights or random_weights", remedy="give one of them")
        if self.router_skew is not None and self.random_weights is None:
            got, remedy = "a checkpoint's weights", "leave it out, or give random_weights"
            raise InputError("router_skew", got=got, expected="random_weights", remedy=remedy)
