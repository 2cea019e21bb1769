"""A network script for Polygraphy: an export's graph parsed with our plugins registered.

Polygraphy's own --plugins only opens a library, which registers nothing. A script takes no arguments, so the export is
named by QWEN3MOE_EXPORT and, where it is not the installed one, the TensorRT by QWEN3MOE_TENSORRT (rtx, 8, 10 or 11):

    QWEN3MOE_EXPORT=export polygraphy inspect model polygraphy_network.py --model-type trt-network-script
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qwen3moe_engine.manifest import load_manifest
from qwen3moe_engine.tensorrt.build import parse
from qwen3moe_engine.tensorrt.flavour import load_tensorrt


def load_network() -> tuple[Any, Any, Any]:
    """Builder, network and parser, as Polygraphy asks for them."""
    export = Path(os.environ["QWEN3MOE_EXPORT"])
    return parse(export, load_manifest(export), load_tensorrt(os.environ.get("QWEN3MOE_TENSORRT", "auto")))
