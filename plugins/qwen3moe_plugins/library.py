"""Where the built libraries are.

Owns: their file names, the one folder that is looked in, and where pip puts cuBLASLt. Must not know how ours are
loaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from qwen3moe_plugins.errors import InputError

KERNELS = "libqwen3moe_kernels.so"
PLUGINS = "libqwen3moe_plugins.so"
PLUGINS_TRT8 = "libqwen3moe_plugins_trt8.so"
# An empty library whose name TensorRT-RTX's ONNX parser looks for and pip's TensorRT-RTX lacks. To be loaded with
# ctypes.CDLL after `import tensorrt_rtx` and before a node with a plugin is parsed, which aborts the process otherwise.
TENSORRT_RTX_NAME = "libtensorrt_rtx.so"

PACKAGE_FOLDER = Path(__file__).resolve().parent / "lib"


class LibraryNotFoundError(InputError):
    """A library is not where it was looked for."""


def find_library(name: str, folder: Path | str | None = None) -> Path:
    """The absolute path of library `name` in `folder`, or in the package's own `lib` where no folder is given.

    The plugin libraries find the kernels beside themselves, so a folder holds them all.
    """
    path = (PACKAGE_FOLDER if folder is None else Path(folder).resolve()) / name
    if not path.is_file():
        remedy = f"run `make plugins`, which builds it into {PACKAGE_FOLDER}, or name the folder that holds it"
        raise LibraryNotFoundError(str(path), got="no such file", expected="a library of this project", remedy=remedy)
    return path


# Of the wheels nvidia-cublas 13 and nvidia-cublas-cu12, in the namespace package `nvidia`.
_CUBLASLT = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")


def load_cublaslt() -> Path | None:
    """Loads pip's cuBLASLt, so that the kernels find it by name. None if pip has none: the loader's path is left."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = nvidia.submodule_search_locations or [] if nvidia is not None else []
    for path in (Path(folder) / name for name in _CUBLASLT for folder in folders):
        if path.is_file():
            ctypes.CDLL(str(path))
            return path
    return None
