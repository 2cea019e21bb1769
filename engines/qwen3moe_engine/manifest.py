"""The manifest of an export: everything a runtime needs to know beside the graph itself.

Owns: the JSON form and its validation, and the binding of graph files to it by hash. Must not know torch, onnx or any
executor.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen3moe_engine.layout import Part
from qwen3moe_engine.sharding import AXES, ShardSpec
from qwen3moe_engine.typed_json import from_json
from qwen3moe_plugins.errors import InputError

FORMAT = 2
FILE_NAME = "manifest.json"
DTYPES = ("bf16", "fp16", "fp32", "int32")
KINDS = ("weight", "expert_map", "load", "vocab_offset", "rope", "kv_cache", "hidden_states", "batch")


@dataclass(frozen=True)
class Dims:
    """Sizes of the model, in the words of its config."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    max_position_embeddings: int


@dataclass(frozen=True)
class Rope:
    """inv_freq: radians per position of each pair of dimensions, fp32 [head_dim / 2]; a factor on cosines and sines."""

    inv_freq: tuple[float, ...]
    attention_factor: float


@dataclass(frozen=True)
class Graph:
    """A graph file beside the manifest: sha256 of its bytes, the dtype of activations and weights, its ONNX opset, and
    how many nodes of each custom operator it has."""

    sha256: str
    dtype: str
    opset: int
    op_counts: dict[str, int]


@dataclass(frozen=True)
class InputSpec:
    """An input of the graph, in order.

    kind: `weight` (from a checkpoint), `expert_map`, `vocab_offset` and `rope` (made by the runtime), `load` (counts),
    `kv_cache`, `hidden_states` (from the stage before), `batch` (each step).
    shape: integers, and names for dynamic dimensions. Of a weight, what one rank holds.
    sources, source_rows: for a weight, the checkpoint's tensors whose rows, one after the other, are this tensor's
    bytes, and how many rows of each one rank holds. A source with `{}` stands for `repeat` tensors, 0 to repeat - 1, of
    which a rank may hold a part; with several sources the numbering is the outer loop.
    shards: how each source is split over the ranks of a group; without any, every rank has the whole.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | str, ...]
    sources: tuple[str, ...] = ()
    source_rows: tuple[int, ...] = ()
    repeat: int = 1
    shards: tuple[ShardSpec, ...] = ()

    def source_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every source as a checkpoint has it, in order."""
        columns = (self.whole_columns,) if len(self.shape) > 1 else ()
        return {
            source.format(index): (rows, *columns)
            for index in range(self.repeat)
            for source, rows in zip(self.sources, self.whole_rows, strict=True)
        }

    @property
    def whole_rows(self) -> tuple[int, ...]:
        """Of each source as a checkpoint has it; `source_rows` is what one rank holds of it."""
        shards = self.shards or (ShardSpec(),) * len(self.sources)
        return tuple(
            held * (shard.count if shard.axis == "rows" else 1)
            for held, shard in zip(self.source_rows, shards, strict=True)
        )

    @property
    def whole_columns(self) -> int:
        """Elements in a row of the whole: 1 for a vector."""
        return self.static_shape[-1] * self._count("columns") if len(self.shape) > 1 else 1

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of all ranks' parts together: what a packed or fused tensor of this name has."""
        rows = sum(self.whole_rows)
        if len(self.shape) == 3:
            return (self.repeat, rows, self.whole_columns)
        return (rows, self.whole_columns) if len(self.shape) == 2 else (rows,)

    @property
    def has_experts(self) -> bool:
        """Whether it is a weight that has sources for each expert."""
        return any("{}" in source for source in self.sources)

    def _count(self, axis: str) -> int:
        return max((shard.count for shard in self.shards if shard.axis == axis), default=1)

    @property
    def static_shape(self) -> tuple[int, ...]:
        assert all(isinstance(size, int) for size in self.shape), self
        return tuple(int(size) for size in self.shape)


@dataclass(frozen=True)
class OutputSpec:
    """An output of the graph; `aliases` names the input whose memory it takes over, if any."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    aliases: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What `qwen3moe-export onnx` says of its graph.

    graphs: by file name. hidden_states: the values that enter each layer, and the one that enters the final norm.
    unused_sources: tensors that a checkpoint has and the graph does not take, beside the layers of other stages.
    part: what of the model the graph computes, for which layout of ranks.
    """

    format: int
    dtype: str
    part: Part
    takes_embeddings: bool
    dims: Dims
    rope: Rope
    graphs: dict[str, Graph]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    hidden_states: tuple[str, ...]
    unused_sources: tuple[str, ...]
    eos_token_ids: tuple[int, ...]
    config_sha256: str
    versions: dict[str, str]

    @property
    def op_counts(self) -> dict[str, int]:
        """Of the graph itself, which is the first; its other forms may have more operators."""
        return next(iter(self.graphs.values())).op_counts

    def of_kind(self, kind: str) -> list[InputSpec]:
        assert kind in KINDS, kind
        return [spec for spec in self.inputs if spec.kind == kind]

    def require_token_ids(self, export: Path) -> None:
        """Raises InputError if the graph in the folder `export` takes embeddings."""
        if self.takes_embeddings:
            got, expected = "an export of --inputs-embeds", "one that takes token ids"
            raise InputError(str(export), got=got, expected=expected, remedy="export again without --inputs-embeds")

    def graph_of(self, dtype: str, max_opset: int | None = None) -> str:
        """File name of the first graph in `dtype`, of at most opset `max_opset`. Raises InputError if there is none."""
        for name, graph in self.graphs.items():
            if graph.dtype == dtype and (max_opset is None or graph.opset <= max_opset):
                return name
        got = ", ".join(f"{graph.dtype} of opset {graph.opset}" for graph in self.graphs.values())
        expected = f"{dtype}" + (f" of opset {max_opset} at most" if max_opset else "")
        raise InputError(
            f"{FILE_NAME}: graphs", got=got, expected=expected, remedy="export again with the right --dtype"
        )


def to_json(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=1) + "\n"


def load_manifest(export: Path) -> Manifest:
    """Reads and checks manifest.json in the folder `export`, and the graphs it names. Raises InputError."""
    path = export / FILE_NAME
    if not path.is_file():
        raise InputError(
            str(export), got=f"no {FILE_NAME}", expected="an export", remedy="run `qwen3moe-export onnx` first"
        )
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), got=f"invalid JSON ({error})", expected="a manifest", remedy="export again"
        ) from None
    manifest = parse_manifest(values, str(path))
    for name, graph in manifest.graphs.items():
        _check_hash(export / name, graph.sha256)
    return manifest


def parse_manifest(values: Any, where: str) -> Manifest:
    """The manifest in the JSON value `values`; `where` names it in errors. Raises InputError."""
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise InputError(f"{where}: format", got=found, expected=FORMAT, remedy="export again with this version")
    manifest: Manifest = from_json(Manifest, values, where, "export again")
    _one_of(f"{where}: dtype", manifest.dtype, DTYPES)
    for spec in manifest.inputs:
        _one_of(f"{where}: {spec.name} kind", spec.kind, KINDS)
        _one_of(f"{where}: {spec.name} dtype", spec.dtype, DTYPES)
        for shard in spec.shards:
            _one_of(f"{where}: {spec.name} shards", shard.axis, AXES)
    for name, graph in manifest.graphs.items():
        _one_of(f"{where}: {name} dtype", graph.dtype, DTYPES)
        if Path(name).name != name:
            raise InputError(f"{where}: graphs", got=name, expected="names of files beside it", remedy="export again")
    return manifest


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(what, got=value, expected=f"one of {', '.join(allowed)}", remedy="export again")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_hash(path: Path, expected: str) -> None:
    if not path.is_file():
        raise InputError(str(path), got="no file", expected="the graph that the manifest names", remedy="export again")
    found = file_sha256(path)
    if found != expected:
        raise InputError(
            str(path), got=f"sha256 {found[:12]}", expected=f"{expected[:12]} as in the manifest", remedy="export again"
        )
