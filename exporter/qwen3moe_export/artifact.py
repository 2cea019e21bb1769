"""The export on disk: graphs and manifest in one folder.

Owns: what the folder holds, and that it appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from qwen3moe_engine.layout import SINGLE, Layout, Part
from qwen3moe_engine.manifest import FILE_NAME, FORMAT, Dims, Graph, Manifest, Rope, file_sha256, to_json
from qwen3moe_engine.sharding import check_layout
from qwen3moe_engine.stages import stage_folder
from qwen3moe_export.capture import Interface, capture
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_export.layout import hidden_state_names, split_sizes, unused_sources
from qwen3moe_export.onnx_graph import to_onnx
from qwen3moe_export.onnx_passes import (
    FuseAllReduce,
    FuseLinear,
    LowerForTensorRT8,
    MarkPlugins,
    WidenToFloat32,
    count_ops,
)
from qwen3moe_export.rope import rope_frequencies
from qwen3moe_plugins.errors import InputError
from qwen3moe_plugins.ops import ALL_REDUCE

GRAPH_NAME = "model.onnx"
WIDENED_NAME = "model.fp32.onnx"  # for runtimes without 16-bit kernels
TENSORRT8_NAME = "model.trt8.onnx"
_RECORDED_VERSIONS = ("qwen3moe-export", "torch", "onnx", "onnxscript", "onnx-ir")


@dataclass(frozen=True)
class ExportOptions:
    """dtype: bf16, fp16 or fp32. takes_embeddings: the graph takes inputs_embeds instead of input_ids. layout: of the
    ranks that the graph is for."""

    dtype: str
    takes_embeddings: bool = False
    layout: Layout = SINGLE


def export_onnx(
    config: Qwen3MoeConfig, options: ExportOptions, eos_token_ids: tuple[int, ...], target: Path
) -> Manifest:
    """Writes the graph, the forms of it that some runtimes need, and the manifest into the folder `target`, or, of a
    pipeline, each stage's into a folder of its own in it. Returns the manifest, of the first stage.

    Other files in `target` stay. Nothing is written unless everything could be made. Raises InputError if the model
    does not split as the layout says.
    """
    check_layout(options.layout, split_sizes(config))
    parts = [Part(options.layout, stage) for stage in range(options.layout.pp)]
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".partial-") as name:
        made = [Path(name) / f"{part.stage}" for part in parts]
        manifests = [
            _write(config, options, part, eos_token_ids, folder) for part, folder in zip(parts, made, strict=True)
        ]
        if len(parts) > 1:
            # of an export without stages, which would be taken for this one
            (target / FILE_NAME).unlink(missing_ok=True)
        for part, folder, manifest in zip(parts, made, manifests, strict=True):
            _move(folder, manifest, target if len(parts) == 1 else stage_folder(target, part.stage))
    return manifests[0]


def _write(
    config: Qwen3MoeConfig, options: ExportOptions, part: Part, eos_token_ids: tuple[int, ...], folder: Path
) -> Manifest:
    """Everything of one stage, into a new folder."""
    captured = capture(config, options.dtype, options.takes_embeddings, part)
    model = to_onnx(captured, config, part)
    graphs = {}
    folder.mkdir()
    for form in _forms(model, options.dtype):
        ir.save(form.model, folder / form.file)
        opset = form.model.graph.opset_imports[""]
        graphs[form.file] = Graph(file_sha256(folder / form.file), form.dtype, opset, count_ops(form.model))
    manifest = _manifest(config, options, part, captured.interface, graphs, eos_token_ids)
    (folder / FILE_NAME).write_text(to_json(manifest))
    return manifest


def _move(folder: Path, manifest: Manifest, target: Path) -> None:
    """The manifest last: it vouches for the graphs."""
    target.mkdir(exist_ok=True)
    for file in (*manifest.graphs, FILE_NAME):
        shutil.move(folder / file, target / file)


@dataclass(frozen=True)
class _Form:
    """The graph as one file holds it."""

    file: str
    dtype: str
    model: ir.Model


def _forms(model: ir.Model, dtype: str) -> list[_Form]:
    """The graph itself, first, and lowered forms of it."""
    forms = [_Form(GRAPH_NAME, dtype, model)]
    if dtype != "fp32":
        forms.append(_Form(WIDENED_NAME, "fp32", WidenToFloat32()(_copy(model)).model))
    if dtype == "fp16":
        fusions = [FuseLinear(), *([FuseAllReduce()] if ALL_REDUCE.name in count_ops(model) else [])]
        lower = ir.passes.Sequential(*fusions, MarkPlugins(), LowerForTensorRT8())
        forms.append(_Form(TENSORRT8_NAME, dtype, lower(_copy(model)).model))
    return forms


def _copy(model: ir.Model) -> ir.Model:
    return ir.serde.deserialize_model(ir.to_proto(model))


def read_eos_token_ids(checkpoint: Path) -> tuple[int, ...]:
    """From generation_config.json, else config.json, beside the weights; none if neither says."""
    for name in ("generation_config.json", "config.json"):
        path = checkpoint / name if checkpoint.is_dir() else checkpoint.with_name(name)
        if not path.is_file():
            continue
        try:
            value = json.loads(path.read_text()).get("eos_token_id")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise InputError(
                str(path), got=f"invalid JSON ({error})", expected="a JSON object", remedy="fetch the file again"
            ) from None
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(item) is int for item in ids):
                raise InputError(
                    f"{path}: eos_token_id",
                    got=value,
                    expected="an integer or a list of them",
                    remedy="correct the file",
                )
            return tuple(ids)
    return ()


def _manifest(
    config: Qwen3MoeConfig,
    options: ExportOptions,
    part: Part,
    interface: Interface,
    graphs: dict[str, Graph],
    eos_token_ids: tuple[int, ...],
) -> Manifest:
    inv_freq, attention_factor = rope_frequencies(config)
    fields = {name: getattr(config, name) for name in Dims.__dataclass_fields__}
    return Manifest(
        format=FORMAT,
        dtype=options.dtype,
        part=part,
        takes_embeddings=options.takes_embeddings,
        dims=Dims(**fields),
        rope=Rope(tuple(inv_freq.tolist()), attention_factor),
        graphs=graphs,
        inputs=interface.inputs,
        outputs=interface.outputs,
        hidden_states=tuple(hidden_state_names(config.num_layers, part).values()),
        unused_sources=unused_sources(config, options.takes_embeddings, part),
        eos_token_ids=eos_token_ids,
        config_sha256=config.sha256,
        versions={name: version(name) for name in _RECORDED_VERSIONS},
    )
