"""How fast weights stream from safetensors to the GPU: a checkpoint of noise with a published one's tensors, loaded
through the engine from the page cache, and from the disk after the cache has dropped the file.

python benchmarks/bench_load.py EXPORT --plan PLAN [--folder /tmp]
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.manifest import Manifest, load_manifest
from qwen3moe_engine.tensorrt.executor import TensorRTConfig, TensorRTExecutor
from qwen3moe_engine.tensorrt.random_weights import random_checkpoint
from qwen3moe_engine.weights import no_progress

STORED = {"bf16": "BF16", "fp16": "F16"}
CHUNK_BYTES = 1 << 26


def write_noise(manifest: Manifest, path: Path) -> int:
    """A file with all tensors of a published checkpoint; returns its bytes. Values are finite in bf16 and fp16."""
    header, offset = {}, 0
    for name, tensor in random_checkpoint(manifest).tensors.items():
        offsets = [offset, offset + tensor.num_bytes]
        header[name] = {"dtype": STORED[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
        offset += tensor.num_bytes
    encoded = json.dumps(header).encode()
    noise = np.random.default_rng(0).integers(0, 1 << 10, CHUNK_BYTES // 2, dtype=np.uint16).tobytes()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for start in range(0, offset, CHUNK_BYTES):
            file.write(noise[: offset - start])
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--plan", type=click.Path(path_type=Path), required=True)
@click.option("--plugins", type=click.Path(path_type=Path))
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk to measure.  [default: the temporary one]")
def main(export: Path, plan: Path, plugins: Path | None, folder: Path | None) -> None:
    manifest = load_manifest(export)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path, start = Path(name) / "model.safetensors", time.perf_counter()
        size = write_noise(manifest, path)
        print(f"{size / 1e9:.2f} GB in {len(open_checkpoint(path).tensors)} tensors, written in "
              f"{time.perf_counter() - start:.1f} s", flush=True)  # fmt: skip
        for cache in ("warm", "warm", "cold", "warm"):
            if cache == "cold":
                drop_from_cache(path)
            config, checkpoint = TensorRTConfig(num_blocks=16, cuda_graphs=False), open_checkpoint(path)
            with TensorRTExecutor(export, manifest, plan, checkpoint, config, no_progress, plugins) as executor:
                report = executor.load_report
                print(f"{executor.device.name}, {cache}: {report.num_bytes / 1e9:.2f} GB in {report.seconds:.2f} s, "
                      f"{report.gigabytes_per_second:.2f} GB/s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
