"""The `qwen3moe-export` command.

Owns: the list of subcommands. Exit codes: 0 done, 1 a comparison or a request failed, 2 bad input or use, 3 a rank of
many failed.
"""

from __future__ import annotations

import click

from qwen3moe_export.cli.lazy_group import LazyGroup

SUBCOMMANDS = {
    "onnx": "Export a checkpoint to ONNX.",
    "pack": "Rewrite a checkpoint's weights in the engine's layout.",
    "verify": "Compare every stage of the export with the reference.",
    "generate": "Generate text from an export.",
    "serve": "Serve an export over HTTP, as OpenAI's API has it.",
    "engine": "Build a TensorRT plan from an export.",
    "bench": "Measure a server or an engine.",
    "inspect": "Print a checkpoint, an export or a manifest.",
}


@click.group(
    cls=LazyGroup,
    subcommands=SUBCOMMANDS,
    module="qwen3moe_export.cli.{}_command",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="qwen3moe-export")
def main() -> None:
    """Qwen3-MoE checkpoints to ONNX and TensorRT engines, each stage compared with a torch reference.

    \b
    Example:
      qwen3moe-export onnx Qwen3-30B-A3B -o export
      qwen3moe-export verify Qwen3-30B-A3B --report report.html
      qwen3moe-export generate export --weights Qwen3-30B-A3B --prompt "Once upon a time"
    """
