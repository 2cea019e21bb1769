"""The TensorRT 8.6 plugins answer a builder's questions rightly. Neither TensorRT 8.6 nor a GPU is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from qwen3moe_plugins import ops
from qwen3moe_plugins.library import PLUGINS_TRT8

HERE = Path(__file__).resolve().parent
INTERFACE = HERE.parents[1] / "plugins" / "src" / "tensorrt" / "interface_v2.h"

# T = 7, Hq = 8, Hkv = 2, D = 64, H = 256. PagedAttention has no output kv_cache_out here, BalancedMoE
# no load_out. Each tensor's pair says
# whether it is taken in the declared type (fp16 for activations) and fp32; the last pair is the output's: fp16, fp32.
EXPECTED = f"""\
creators {len(ops.OPS)}
plugin qwen3moe PagedAttention 1
output 7 512
output refused
type 1
workspace some
formats 10 10 10 11 10 10 10 10 10 10
enqueue of a wrong rank failed
plugin qwen3moe MoE 1
output 7 256
output refused
type 1
workspace some
formats 10 10 10 10 10 10
enqueue of a wrong rank failed
plugin qwen3moe BalancedMoE 1
output 7 256
output refused
type 1
workspace some
formats 10 10 10 10 10 10 10 10 10
enqueue of a wrong rank failed
plugin qwen3moe Linear 1
output 7 48
output refused
type 1
workspace none
formats 10 10 10
enqueue of a wrong rank failed
plugin qwen3moe LinearFloat32 1
output 20 48
output refused
type 0
workspace some
formats 10 10 01
enqueue of a wrong rank failed
plugin qwen3moe AllReduce 1
output 7 256
output refused
type 1
workspace none
formats 10 10
enqueue of a wrong rank failed
plugin qwen3moe AllGather 1
output 21 256
output refused
type 1
workspace none
formats 01 01
enqueue of a wrong rank failed
enqueue without a group failed
enqueue without a group failed
"""


def test_plugins_answer_a_builder(built_library, tmp_path):
    probe = tmp_path / "probe"
    source = HERE / "trt8_probe.cpp"
    flags = ["-std=c++17", "-Wall", "-fno-rtti", "-DTRT=qwen3moe::trt8", "-include", INTERFACE]
    subprocess.run(["g++", *flags, source, "-o", probe, "-ldl"], check=True)
    run = subprocess.run([probe, built_library(PLUGINS_TRT8)], capture_output=True, text=True)
    assert run.stdout == EXPECTED
    assert run.returncode == 0
    errors = run.stderr.splitlines()
    assert [error.split(": ")[1:3] for error in errors] == [
        ["PagedAttention", "getOutputDimensions"],
        ["PagedAttention", "enqueue"],
        ["MoE", "getOutputDimensions"],
        ["MoE", "enqueue"],
        ["BalancedMoE", "getOutputDimensions"],
        ["BalancedMoE", "enqueue"],
        ["Linear", "getOutputDimensions"],
        ["Linear", "enqueue"],
        ["LinearFloat32", "getOutputDimensions"],
        ["LinearFloat32", "enqueue"],
        ["AllReduce", "getOutputDimensions"],
        ["AllReduce", "enqueue"],
        ["AllGather", "getOutputDimensions"],
        ["AllGather", "enqueue"],
        ["AllReduce", "enqueue"],
        ["AllGather", "enqueue"],
        ["MoE", "createPlugin"],
    ]
    assert sum("this process has no communicator" in error for error in errors) == 2
