"""A GPU that cannot be used: what is said, by the error that CUDA gives."""

from __future__ import annotations

import pytest
from cuda.bindings import runtime as cudart

from qwen3moe_engine.tensorrt.cuda import use_device
from qwen3moe_plugins.errors import InputError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("cudaErrorInvalidDevice", "expected a GPU and its driver; come back with one"),
        ("cudaErrorMemoryAllocation", "expected some 0.5 GB of its memory free; end what fills it"),
    ],
)
def test_the_remedy_fits_the_error(monkeypatch, error, message):
    def cudaSetDevice(ordinal: int):  # noqa: N802
        return (getattr(cudart.cudaError_t, error),)

    monkeypatch.setattr(cudart, "cudaSetDevice", cudaSetDevice)
    with pytest.raises(InputError, match=rf"CUDA device 1: got cudaSetDevice: {error} \(\d+\), {message}"):
        use_device(1, "come back with one")
