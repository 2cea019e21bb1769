"""Reading safetensors checkpoints: one file, or shards with an index.

Owns: finding the files, validating all of their headers before any tensor is used, and reading tensors one at a time.
safetensors validates a header; the bytes are read here, since a runtime must read into buffers of its own and part by
part, and a memory map would count the whole checkpoint as resident. Must not know what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from qwen3moe_plugins.errors import InputError, name_list

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

NUMPY_DTYPES = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
    "int32": np.dtype(np.int32),
}
_STORED_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_HEADER_PREFIX = 8  # bytes: the header's length, little-endian


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` in bytes from the start of `file`. dtype: bf16, fp16, fp32, or as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def num_bytes(self) -> int:
        return self.size * NUMPY_DTYPES[self.dtype].itemsize

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> NDArray:
        """The tensor in its stored dtype."""
        return self.read_part(0, self.size).reshape(self.shape)

    def read_part(self, start: int, count: int) -> NDArray:
        """Elements start to start + count - 1, flat, in the stored dtype."""
        out = np.empty(count, NUMPY_DTYPES[self.dtype])
        self.read_part_into(start, out.view(np.uint8))
        return out

    def read_part_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fills `out` with the bytes of the elements from `start` on."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + start * NUMPY_DTYPES[self.dtype].itemsize)
            num_read = file.readinto(out.data)
        if num_read != out.nbytes:
            raise _unreadable(self.file, f"{num_read} of {out.nbytes} bytes of {self.name}")


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a checkpoint, by name."""

    path: Path
    tensors: dict[str, StoredTensor]

    @property
    def headers_sha256(self) -> str:
        """Of all that is known without reading a tensor: names, types, shapes, places, and the sizes of the files."""
        places = [
            (name, tensor.dtype, tensor.shape, tensor.file.name, tensor.offset)
            for name, tensor in sorted(self.tensors.items())
        ]
        files = sorted({tensor.file for tensor in self.tensors.values()})
        return hashlib.sha256(repr((places, [file.stat().st_size for file in files])).encode()).hexdigest()


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a folder (index and shards, or model.safetensors) or one .safetensors file. Raises InputError."""
    if path.is_file() and path.suffix == ".safetensors":
        return Checkpoint(path, {tensor.name: tensor for tensor in _read_header(path)})
    if (path / INDEX_NAME).is_file():
        return Checkpoint(path, _read_shards(path, _read_index(path / INDEX_NAME)))
    if (path / SINGLE_NAME).is_file():
        return Checkpoint(path, {tensor.name: tensor for tensor in _read_header(path / SINGLE_NAME)})
    raise InputError(
        str(path),
        got="no weights" if path.exists() else "no such path",
        expected=f"a .safetensors file, or a folder with {SINGLE_NAME} or {INDEX_NAME}",
        remedy="give the folder that `huggingface-cli download` or save_pretrained wrote",
    )


def _read_index(path: Path) -> dict[str, str]:
    """The index's weight_map: tensor name to shard file name."""
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        valid = all(isinstance(item, str) for pair in weight_map.items() for item in pair)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            str(path),
            got=f"{type(error).__name__}: {error}",
            expected="JSON with a weight_map",
            remedy="fetch the file again",
        ) from None
    if not valid or any(Path(shard).name != shard for shard in weight_map.values()):
        raise InputError(
            str(path),
            got="a weight_map with other than file names",
            expected="tensor name to shard name",
            remedy="fetch the file again",
        )
    return weight_map


def _read_shards(folder: Path, weight_map: dict[str, str]) -> dict[str, StoredTensor]:
    """Headers of all shards; they must hold exactly what the index says they hold."""
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise InputError(
            str(folder),
            got=f"no {name_list(absent)}",
            expected="every shard of the index",
            remedy="fetch the missing files",
        )
    tensors: dict[str, StoredTensor] = {}
    duplicates, not_indexed, elsewhere = [], [], []
    for tensor in (tensor for shard in shards for tensor in _read_header(folder / shard)):
        if tensor.name in tensors:
            duplicates.append(tensor.name)
        if tensor.name not in weight_map:
            not_indexed.append(tensor.name)
        elif weight_map[tensor.name] != tensor.file.name:
            elsewhere.append(f"{tensor.name} in {tensor.file.name}")
        tensors[tensor.name] = tensor
    disagreements = {
        "tensors in two shards": duplicates,
        "tensors that the index does not list": not_indexed,
        "tensors in another shard than the index says": elsewhere,
        "tensors of the index in no shard": set(weight_map) - set(tensors),
    }
    for kind, names in disagreements.items():
        if names:
            raise InputError(
                str(folder),
                got=f"{kind}: {name_list(names)}",
                expected="shards as in the index",
                remedy="fetch index and shards of one revision",
            )
    return tensors


def _read_header(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="np"):  # validates lengths, offsets and dtypes of the whole header
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER_PREFIX), "little")
            header = json.loads(file.read(length), object_pairs_hook=_unique_keys)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None
    header.pop("__metadata__", None)
    start = _HEADER_PREFIX + length

    def stored(name: str, entry: dict[str, Any]) -> StoredTensor:
        dtype = _STORED_DTYPES.get(entry["dtype"], entry["dtype"])
        return StoredTensor(name, dtype, tuple(entry["shape"]), path, start + entry["data_offsets"][0])

    return [stored(name, entry) for name, entry in header.items()]


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if repeated:
        raise ValueError(f"a header that names {name_list(repeated)} twice")
    return dict(pairs)


def _unreadable(path: Path, got: str) -> InputError:
    return InputError(str(path), got=got, expected="a whole safetensors file", remedy="fetch the file again")
