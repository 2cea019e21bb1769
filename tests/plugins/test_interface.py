"""Our declarations of TensorRT's plugin interface keep the layout of the official headers.

`interface_probe.cpp` prints sizes, offsets, virtual function slots and `kind` strings. The pinned listings are what it
prints against the official headers: interface_v3.txt against those of 10.3, 10.13 and 11.1, interface_v2.txt against
those of 8.6.0 and 8.6.1.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HEADERS = HERE.parents[1] / "plugins" / "src" / "tensorrt"


@pytest.mark.parametrize(
    ("header", "flags", "listing"),
    [
        ("interface_v3.h", ["-DTRT=qwen3moe::trt"], "interface_v3.txt"),
        ("interface_v2.h", ["-DTRT=qwen3moe::trt8", "-DTRT8"], "interface_v2.txt"),
    ],
)
def test_layout_is_that_of_the_official_headers(header, flags, listing, tmp_path):
    probe = tmp_path / "probe"
    source = HERE / "interface_probe.cpp"
    flags = ["-std=c++17", "-Wall", "-Werror", "-fno-rtti", *flags, "-include", HEADERS / header]
    subprocess.run(["g++", *flags, source, "-o", probe], check=True)
    printed = subprocess.run([probe], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == (HERE / listing).read_text().splitlines()
