"""The direction of imports, qwen3moe_plugins <- qwen3moe_engine <- qwen3moe_export, and an engine without torch.

Two kinds of evidence: the syntax tree of every module, lazy imports included, and interpreters in which the exporter's
libraries cannot be found.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "plugins" / "qwen3moe_plugins"
ENGINE = ROOT / "engines" / "qwen3moe_engine"
EXPORTER = ROOT / "exporter" / "qwen3moe_export"

EXPORT_LIBRARIES = {"torch", "onnx", "onnxscript", "onnx_ir", "transformers", "matplotlib"}
EXECUTOR_LIBRARIES = {"onnxruntime", "tensorrt", "tensorrt_rtx"}  # extras: a machine has the one it runs on
SERVER_LIBRARIES = {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"}  # extras too
BENCH_LIBRARIES = {"aiohttp"}


@dataclass(frozen=True)
class Import:
    """One imported name as a module states it; `lazy` if importing the module does not run the import."""

    where: str
    name: str
    lazy: bool

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.where} imports {self.name}"


def imports_of(path: Path, package: Path) -> Iterator[Import]:
    """Every import in the module at `path`, relative ones resolved within `package`."""
    module = path.relative_to(package.parent).with_suffix("").parts
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, lazy = pending.pop()
        for name in names_imported(node, module):
            yield Import(f"{path.relative_to(ROOT)}:{node.lineno}", name, lazy)  # type: ignore[attr-defined]
        pending.extend((child, lazy or is_deferred(node)) for child in ast.iter_child_nodes(node))


def names_imported(node: ast.AST, module: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = module[: -node.level] if node.level else ()
        return [".".join([*parents, node.module] if node.module else parents)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def is_deferred(node: ast.AST) -> bool:
    """Whether what `node` holds runs later than its module, or for type checkers only."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test).endswith("TYPE_CHECKING")
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def offenders(package: Path, is_wrong: Callable[[Import], bool], under: str = "") -> list[str]:
    paths = sorted((package / under).rglob("*.py"))
    assert paths, f"no modules in {package / under}"
    return [str(found) for path in paths for found in imports_of(path, package) if is_wrong(found)]


def test_plugins_import_only_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"qwen3moe_plugins"}
    assert not offenders(PLUGINS, lambda found: found.top not in allowed)


def test_engine_imports_neither_the_exporter_nor_its_libraries() -> None:
    assert not offenders(ENGINE, lambda found: found.top in EXPORT_LIBRARIES | {"qwen3moe_export"})


def test_engine_imports_executor_libraries_lazily() -> None:
    assert not offenders(ENGINE, lambda found: found.top in EXECUTOR_LIBRARIES and not found.lazy)


def test_only_the_server_imports_its_libraries() -> None:
    server = str((ENGINE / "server").relative_to(ROOT))
    found = offenders(ENGINE, lambda found: found.top in SERVER_LIBRARIES and not found.where.startswith(server))
    assert not found


def test_ray_is_imported_where_it_is_asked_for() -> None:
    """By replicas of the server and by pipelines over hosts, whose modules nobody else imports for other things."""
    folder = ENGINE.relative_to(ROOT)
    allowed = (f"{folder}/server/ray_", f"{folder}/parallel/ray_")
    assert not offenders(ENGINE, lambda found: found.top == "ray" and not found.where.startswith(allowed))
    asked = offenders(ENGINE, lambda found: ".ray_" in found.name and not found.where.startswith(allowed))
    assert len(asked) == 1 and "executor_opening.py" in asked[0]


def test_command_line_imports_export_libraries_lazily() -> None:
    assert not offenders(EXPORTER, lambda found: found.top in EXPORT_LIBRARIES and not found.lazy, under="cli")


def test_imports_of_finds_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    package = tmp_path / "pkg"
    (package / "sub").mkdir(parents=True)
    (package / "sub" / "mod.py").write_text(
        "import torch.nn as nn, json\n"
        "from onnx import helper\n"
        "from .. import ops\n"
        "from .near import thing\n"
        "try:\n    import rich\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import numpy\n"
        "def later():\n    import onnxruntime\n    return importlib.import_module('transformers.models')\n"
    )
    found = {(imported.name, imported.lazy) for imported in imports_of(package / "sub" / "mod.py", package)}
    eager = {"torch.nn", "json", "onnx", "pkg", "pkg.sub.near", "rich"}
    lazy = {"numpy", "onnxruntime", "transformers.models"}
    assert found == {(name, False) for name in eager} | {(name, True) for name in lazy}


# Makes the libraries in `missing` as absent as on a machine that never installed them.
WITHOUT_LIBRARIES = """
import importlib.abc, importlib.util, pkgutil, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""

IMPORT_EVERY_MODULE = """
package = importlib.import_module(sys.argv[1])
def fail(name):
    raise
for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=fail):
    importlib.import_module(module.name)
"""

PRINT_EVERY_HELP = """
import click
from click.testing import CliRunner
from qwen3moe_export.cli import main
assert main.list_commands(click.Context(main)), "no subcommands"
def words_of(command, *words):
    yield list(words)
    for name in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
        yield from words_of(command.get_command(click.Context(command), name), *words, name)
for words in words_of(main):
    result = CliRunner().invoke(main, [*words, "--help"], prog_name="qwen3moe-export", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    print(result.output)
"""


def run_without(missing: set[str], code: str, *args: str) -> subprocess.CompletedProcess[str]:
    script = f"missing = {sorted(missing)}" + WITHOUT_LIBRARIES + code
    return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("package", "missing"),
    [
        ("qwen3moe_engine", EXPORT_LIBRARIES | EXECUTOR_LIBRARIES | {"qwen3moe_export"}),
        ("qwen3moe_plugins", EXPORT_LIBRARIES | EXECUTOR_LIBRARIES | {"qwen3moe_export", "qwen3moe_engine", "numpy"}),
    ],
)
def test_package_imports_without_the_libraries(package: str, missing: set[str]) -> None:
    done = run_without(missing, IMPORT_EVERY_MODULE, package)
    assert done.returncode == 0, done.stderr


def test_every_help_prints_without_the_libraries() -> None:
    done = run_without(EXPORT_LIBRARIES | EXECUTOR_LIBRARIES | SERVER_LIBRARIES | BENCH_LIBRARIES, PRINT_EVERY_HELP)
    assert done.returncode == 0, done.stderr
    assert "Usage: qwen3moe-export" in done.stdout


def test_a_server_without_its_libraries_names_the_extra() -> None:
    code = "from qwen3moe_export.cli import main; main(['serve', 'export', '--weights', 'x'], prog_name='q')"
    done = run_without(SERVER_LIBRARIES, code)
    assert done.returncode == 2
    assert "pip install 'qwen3moe-export[serve]'" in done.stderr
