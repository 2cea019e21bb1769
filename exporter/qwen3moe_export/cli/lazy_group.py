"""Groups of subcommands, each in a module of its own.

Owns: importing that module only when its command is called, so that those that need no torch run without it, and what
becomes of errors: one line, and exit code 2, or 3 for a rank that failed.
"""

from __future__ import annotations

import errno
import importlib
from typing import Any

import click

from qwen3moe_engine.parallel.verdict import EXIT_CODE, RankFailedError
from qwen3moe_plugins.errors import InputError

# Which extra of the distribution brings a package that is not always there.
_EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "onnxruntime",
    "onnxruntime_extensions": "onnxruntime",
    "cuda": "cuda",
    "aiohttp": "bench",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "ray": "ray",
    "uvicorn": "serve",
    "matplotlib": "bench",
    "transformers": "verify",
}


class BadInput(click.ClickException):
    exit_code = 2


class RankFailed(click.ClickException):
    exit_code = EXIT_CODE


class LazyGroup(click.Group):
    """subcommands: a line of help by name. module: of a subcommand, its name at {}; it has the attribute `command`."""

    def __init__(self, *args: Any, subcommands: dict[str, str], module: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._subcommands, self._module = subcommands, module

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._subcommands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._subcommands:
            return None
        return importlib.import_module(self._module.format(cmd_name)).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._subcommands.items()))

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
