"""The kernel library for the GPU in use. Owns: that it has code for it, told before anything runs."""

from __future__ import annotations

from pathlib import Path

from qwen3moe_engine.tensorrt.cuda import Device
from qwen3moe_plugins.architectures import check_architectures
from qwen3moe_plugins.kernels import KernelLibrary


def open_kernels(path: Path, device: Device) -> KernelLibrary:
    """Raises InputError, naming `path`, if it has no code for `device`."""
    kernels = KernelLibrary(path)
    check_architectures(path, kernels.architectures, device.name, device.compute_capability)
    return kernels
