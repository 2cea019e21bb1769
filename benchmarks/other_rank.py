"""The command line, but for rank 1, which reads another export: `other_rank.py OTHER bench throughput EXPORT ...`.

The command alone cannot do that on one host, where all ranks read the same files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3moe_engine.parallel import onnxruntime_rank
from qwen3moe_engine.tensorrt.plan import sidecar_path
from qwen3moe_export.cli import main


def write_other(export: Path, other: Path) -> Path:
    """A copy of `export` with another plan, or, where there is none, another manifest; sound in itself."""
    shutil.copytree(export, other)
    plans = list(other.glob("*.plan"))
    if not plans:
        with (other / "manifest.json").open("a") as file:
            file.write("\n")
    for plan in plans:
        plan.write_bytes(plan.read_bytes() + b"\0")
        info = json.loads(sidecar_path(plan).read_text())
        info["plan_sha256"] = hashlib.sha256(plan.read_bytes()).hexdigest()
        sidecar_path(plan).write_text(json.dumps(info))
    return other


def with_other(make_ranks: Callable[..., list[Any]], other: Path) -> Callable[..., list[Any]]:
    def make(*arguments: Any) -> list[Any]:
        first, second = make_ranks(*arguments)
        return [first, replace(second, export=other)]

    return make


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    if "tensorrt" in sys.argv:
        from qwen3moe_engine.tensorrt import rank as tensorrt_rank

        tensorrt_rank.tensorrt_ranks = with_other(tensorrt_rank.tensorrt_ranks, folder)
    onnxruntime_rank.onnxruntime_ranks = with_other(onnxruntime_rank.onnxruntime_ranks, folder)
    main()
