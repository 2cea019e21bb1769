"""`qwen3moe-export verify`: every stage of the export against the fp32 reference. With --golden it needs no torch."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console

from qwen3moe_engine.checkpoint import open_checkpoint
from qwen3moe_engine.layout import SINGLE, Layout
from qwen3moe_engine.stages import load_stages
from qwen3moe_engine.tokenizer import FILE_NAME, Tokenizer
from qwen3moe_export.cli.layout_options import layout_options, require_layout
from qwen3moe_export.cli.output_file import check_folder, write_text
from qwen3moe_export.cli.progress import progress, spinner
from qwen3moe_export.config import load_config
from qwen3moe_export.verify.compare import Comparison, compare
from qwen3moe_export.verify.gate import Gate
from qwen3moe_export.verify.golden import GoldenWriter, Origin, read_golden
from qwen3moe_export.verify.inputs import Inputs, make_inputs
from qwen3moe_export.verify.onnxruntime_stage import onnxruntime_stage
from qwen3moe_export.verify.subject import Subject, check_export
from qwen3moe_export.verify.table import print_table, to_json
from qwen3moe_export.verify.tensorrt_stage import tensorrt_stage
from qwen3moe_export.verify.versions import installed_versions
from qwen3moe_plugins.errors import InputError

_DEFAULT_NEW_TOKENS = 32


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--export", type=click.Path(path_type=Path), help="An export of CHECKPOINT.  [default: one made for the occasion]"
)
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="To export in.  [default: the checkpoint's]")
@layout_options
@click.option(
    "--against",
    type=click.Choice(["transformers", "none"]),
    help="An independent implementation to compare as well.  [default: transformers where it is installed]",
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="Text to compare on.  [default: a sample that comes along]"
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help=f"Tokens to generate for each prompt.  [default: {_DEFAULT_NEW_TOKENS}]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the numbers there.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page there.")
@click.option(
    "--write-golden",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write inputs and outputs of every stage there, for --golden.",
)
@click.option(
    "--golden",
    type=click.Path(path_type=Path),
    help="Compare --export with a recorded run instead of computing it: needs no torch.",
)
@click.option(
    "--executor",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    help="What runs --export with --golden.  [default: onnxruntime]",
)
@click.option("--plan", type=click.Path(path_type=Path), help="TensorRT: the plan, as `engine` built it.")
@click.option("--plugins", type=click.Path(path_type=Path), help="TensorRT: folder of our libraries.")
def command(
    checkpoint: Path,
    export: Path | None,
    dtype: str | None,
    layout: Layout | None,
    against: str | None,
    text: Path | None,
    max_new_tokens: int | None,
    json_file: Path | None,
    report: Path | None,
    write_golden: Path | None,
    golden: Path | None,
    executor: str | None,
    plan: Path | None,
    plugins: Path | None,
) -> None:
    """Compare every stage of the export of CHECKPOINT with the fp32 reference, on the same text.

    Prefill, chunked prefill and decoding of unequal sequences are mixed in the same steps; prompts are continued
    greedily. A stage passes if it loses at most twice what the plain torch reference loses in the same precision.
    Exit code 1 says that a stage did not.

    In the table, "fp32, w fp16" is fp32 arithmetic on weights rounded to fp16, and "6/6 (1t)" says that all six
    continuations agree, one of them until a tie.

    \b
    Examples:
      qwen3moe-export verify Qwen3-30B-A3B --report report.html
      qwen3moe-export verify Qwen3-30B-A3B --tp 2
      qwen3moe-export verify Qwen3-30B-A3B --dtype fp16 --write-golden fp16.safetensors
    On a machine without torch:
      qwen3moe-export verify Qwen3-30B-A3B --export export --golden fp16.safetensors
      qwen3moe-export verify Qwen3-30B-A3B --export export --golden fp16.safetensors --executor tensorrt --plan a.plan
    """
    for path in (json_file, report, write_golden):
        check_folder(path)
    if golden is not None:
        said_by_bundle = {"--dtype": dtype, "--against": against, "--text": text, "--max-new-tokens": max_new_tokens}
        _refuse(said_by_bundle | {"--write-golden": write_golden}, "cannot go with --golden, which settles it")
        if export is None:
            raise click.UsageError("--golden needs --export, the export to compare with the recorded run")
        if (executor == "tensorrt") != (plan is not None):
            raise click.UsageError("--executor tensorrt and --plan go together")
        comparison = _compare_with_golden(checkpoint, export, golden, plan, plugins)
    else:
        _refuse({"--executor": executor, "--plan": plan, "--plugins": plugins}, "goes with --golden")
        with _subject(checkpoint, export, dtype, layout) as subject:
            inputs = _inputs(subject, text, max_new_tokens or _DEFAULT_NEW_TOKENS)
            comparison = _compare_stages(subject, inputs, against, write_golden)
    print_table(comparison, Console())
    if json_file is not None:
        write_text(json_file, to_json(comparison))
    if report is not None:
        from qwen3moe_export.verify.report import render

        write_text(report, render(comparison, checkpoint.name, _tokenizer(checkpoint)))
    if not comparison.passed:
        raise SystemExit(1)


def _compare_with_golden(
    checkpoint: Path, export: Path, path: Path, plan: Path | None, plugins: Path | None
) -> Comparison:
    manifest = load_stages(export)[0].manifest
    with spinner("reading the bundle"):
        golden = read_golden(path)
    check_export(manifest, export, golden.origin.config_sha256, path)
    if manifest.dtype != golden.origin.dtype:
        raise InputError(
            str(export),
            got=f"an export in {manifest.dtype}",
            expected=f"{golden.origin.dtype} as in {path}",
            remedy="export in that dtype",
        )
    tensors = open_checkpoint(checkpoint)
    if plan is not None:
        stage = tensorrt_stage(export, manifest, tensors, golden.weights, plan, plugins)
    else:
        stage = onnxruntime_stage(export, manifest, tensors, golden.weights)
    versions = golden.origin.versions | installed_versions()
    return compare([*golden.stages, stage], golden.inputs, golden.gate, versions, progress)


def _compare_stages(subject: Subject, inputs: Inputs, against: str | None, write_golden: Path | None) -> Comparison:
    with spinner("loading torch"):
        from qwen3moe_export.verify.pipeline import stages_of

    with_transformers = against == "transformers" or (against is None and find_spec("transformers") is not None)
    stages, gate, versions = stages_of(subject, with_transformers), Gate(), installed_versions()
    if write_golden is None:
        return compare(stages, inputs, gate, versions, progress)
    writer = GoldenWriter(Origin(subject.config.sha256, subject.manifest.dtype, versions), inputs, gate)
    comparison = compare(stages, inputs, gate, versions, progress, writer.record)
    writer.write(write_golden)
    return comparison


@contextlib.contextmanager
def _subject(checkpoint: Path, export: Path | None, dtype: str | None, layout: Layout | None) -> Iterator[Subject]:
    """The checkpoint with the given export, or with one that lasts as long as the context."""
    config = load_config(checkpoint)
    open_checkpoint(checkpoint)  # before anything that takes long
    if export is not None:
        manifest = load_stages(export)[0].manifest
        require_layout(layout, manifest, export)
        if dtype not in (None, manifest.dtype):
            raise InputError(
                "--dtype", got=dtype, expected=f"{manifest.dtype} as in {export}", remedy="leave it away with --export"
            )
        yield Subject(config, checkpoint, export, manifest)
        return
    with tempfile.TemporaryDirectory() as folder:
        with spinner("exporting"):
            from qwen3moe_export.artifact import ExportOptions, export_onnx

            options = ExportOptions(dtype or config.dtype, layout=layout or SINGLE)
            manifest = export_onnx(config, options, (), Path(folder))
        yield Subject(config, checkpoint, Path(folder), manifest)


def _inputs(subject: Subject, text: Path | None, max_new_tokens: int) -> Inputs:
    config, tokenizer = subject.config, _tokenizer(subject.checkpoint)
    return make_inputs(config.vocab_size, config.max_position_embeddings, max_new_tokens, tokenizer, text)


def _tokenizer(checkpoint: Path) -> Tokenizer | None:
    return Tokenizer(checkpoint) if (checkpoint / FILE_NAME).is_file() else None


def _refuse(options: Mapping[str, object], why: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise click.UsageError(f"{', '.join(given)} {why}")
