"""Our declarations of NCCL's API are those of the official header.

`nccl_probe.cpp` prints values, sizes and the kinds of parameters; nccl_api.txt is what it prints against NCCL's own
nccl.h of 2.18.3, 2.28.9 and 2.32.3.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[1] / "plugins" / "src" / "collective" / "nccl_api.h"


def test_declarations_are_those_of_the_official_header(tmp_path):
    probe = tmp_path / "probe"
    flags = ["-std=c++17", "-Wall", "-Werror", "-DOURS", "-include", HEADER]
    subprocess.run(["g++", *flags, HERE / "nccl_probe.cpp", "-o", probe], check=True)
    printed = subprocess.run([probe], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == (HERE / "nccl_api.txt").read_text().splitlines()
