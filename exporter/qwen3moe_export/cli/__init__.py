"""The `qwen3moe-export` command.

Owns: the list of subcommands, each in a module of its own that is imported only when it is called (so that those that
need no torch run without it), and exit codes: 0 done, 1 a comparison failed, 2 bad input or use, 3 a rank of many
failed.
"""

from __future__ import annotations

import errno
import importlib

import click

from qwen3moe_engine.parallel.verdict import EXIT_CODE, RankFailedError
from qwen3moe_plugins.errors import InputError

SUBCOMMANDS = {
    "onnx": "Export a checkpoint to ONNX.",
    "pack": "Rewrite a checkpoint's weights in the engine's layout.",
    "verify": "Compare every stage of the export with the reference.",
    "generate": "Generate text from an export.",
    "serve": "Serve an export over HTTP, as OpenAI's API has it.",
    "engine": "Build a TensorRT plan from an export.",
    "inspect": "Print a checkpoint, an export or a manifest.",
}

# Which extra of the distribution brings a package that is not always there.
_EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "onnxruntime",
    "onnxruntime_extensions": "onnxruntime",
    "cuda": "cuda",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "matplotlib": "verify",
    "transformers": "verify",
}


class BadInput(click.ClickException):
    exit_code = 2


class RankFailed(click.ClickException):
    exit_code = EXIT_CODE


class LazyGroup(click.Group):
    """Imports a subcommand when it is asked for; turns InputError into a one-line message and exit code 2, and the
    failure of a rank into one and exit code 3."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        return importlib.import_module(f"qwen3moe_export.cli.{cmd_name}_command").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise BadInput(str(error)) from error
        except RankFailedError as error:
            raise RankFailed(str(error)) from error
        except OSError as error:
            if error.errno in (None, errno.EPIPE):  # click ends quietly when the reader of a pipe has gone
                raise
            what = error.filename or "output"
            raise BadInput(f"{what}: got {error.strerror}, expected a path to read or write; check it") from error
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            extra = _EXTRAS[error.name]
            raise BadInput(
                f"package {error.name}: got none, expected it installed; run pip install 'qwen3moe-export[{extra}]'"
            ) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qwen3moe-export")
def main() -> None:
    """Qwen3-MoE checkpoints to ONNX and TensorRT engines, each stage compared with a torch reference.

    \b
    Example:
      qwen3moe-export onnx Qwen3-30B-A3B -o export
      qwen3moe-export verify Qwen3-30B-A3B --report report.html
      qwen3moe-export generate export --weights Qwen3-30B-A3B --prompt "Once upon a time"
    """
