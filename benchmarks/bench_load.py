"""How fast weights stream from safetensors to the GPU: a packed checkpoint of random bytes, as large as the export's.

The file is written first, so it comes from the page cache; a cold file is as fast as its disk.

python benchmarks/bench_load.py EXPORT --plan PLAN --plugins FOLDER
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file

from qwen3moe_engine.checkpoint import NUMPY_DTYPES, open_checkpoint
from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.weights import no_progress


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--plan", type=click.Path(path_type=Path), required=True)
@click.option("--plugins", type=click.Path(path_type=Path))
def main(export: Path, plan: Path, plugins: Path | None) -> None:
    manifest = load_manifest(export)
    noise = np.random.default_rng(0).integers(0, 2**10, 1 << 24).astype(np.uint16)  # finite as fp16 and bf16
    tensors = {
        spec.name: np.resize(noise, spec.static_shape).view(NUMPY_DTYPES[spec.dtype])
        for spec in manifest.of_kind("weight")
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(tensors, path)
        del tensors
        config = TensorRTConfig(num_blocks=16, cuda_graphs=False)
        for _ in range(2):
            with TensorRTExecutor(
                export, manifest, plan, open_checkpoint(path), config, no_progress, plugins
            ) as executor:
                report = executor.load_report
                print(
                    f"{executor.device.name}: {report.num_bytes / 1e9:.2f} GB in {report.seconds:.2f} s, "
                    f"{report.gigabytes_per_second:.1f} GB/s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
