"""A built plan on disk, and the sidecar that says what it belongs to.

Owns: the sidecar's content, its check against the export, the plugin library, the TensorRT and the GPU at hand. Must
not import TensorRT.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen3moe_engine.manifest import FILE_NAME, file_sha256
from qwen3moe_engine.typed_json import from_json
from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What a plan is built for. max_tokens: of one step; max_seqs: in one step; max_context: of one sequence."""

    max_tokens: int = 2048
    max_seqs: int = 256
    max_context: int = 8192
    max_blocks: int = 1 << 20
    block_size: int = 32


@dataclass(frozen=True)
class PlanInfo:
    """The sidecar. Hashes are sha256 of whole files. targets: compute capabilities such as sm89. gpu: the name of the
    one it was built on, where it is for no other; None where targets were named."""

    plan_sha256: str
    manifest_sha256: str
    plugins_sha256: str
    flavour: str
    tensorrt_version: str
    targets: tuple[str, ...]
    gpu: str | None
    dtype: str
    limits: Limits
    plugin_layers: int
    build_seconds: float


def sidecar_path(plan: Path) -> Path:
    """Where what `PlanInfo` says of the plan is written."""
    return plan.with_name(plan.name + ".json")


def save_plan(plan: bytes | memoryview, info: PlanInfo, target: Path) -> None:
    """Plan and sidecar, the sidecar last: without it a plan is not loaded."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as name:
        partial = Path(name) / target.name
        partial.write_bytes(plan)
        sidecar_path(partial).write_text(json.dumps(asdict(info), indent=1) + "\n")
        sidecar_path(target).unlink(missing_ok=True)
        partial.replace(target)
        sidecar_path(partial).replace(sidecar_path(target))


def find_plan(folder: Path, given: Path | None, num_stages: int = 1) -> Path:
    """The plan of the export, or stage, in `folder`: `given`, which for one of several stages is a file name in each
    stage's folder, or by default the only one there is. Raises InputError."""
    if given is not None:
        if num_stages > 1 and given.name != str(given):
            expected = "a file name, of a plan in each stage's folder"
            raise InputError("--plan", got=given, expected=expected, remedy="leave the folder away")
        return folder / given if num_stages > 1 else given
    found = sorted(folder.glob("*.plan"))
    if len(found) != 1:
        got = ", ".join(path.name for path in found) or "none"
        remedy = "name one" if found else "build one with `qwen3moe-export engine`"
        raise InputError("--plan", got=got, expected=f"one plan in {folder}", remedy=remedy)
    return found[0]


def load_plan_info(plan: Path) -> PlanInfo:
    """Reads the sidecar and checks the plan against it. Raises InputError."""
    if not plan.is_file():
        raise InputError(str(plan), got="no file", expected="a plan", remedy="run `qwen3moe-export engine`")
    path = sidecar_path(plan)
    if not path.is_file():
        raise InputError(str(path), got="no file", expected="the plan's sidecar", remedy="build the plan again")
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        got = f"invalid JSON ({error})"
        raise InputError(str(path), got=got, expected="a sidecar", remedy="build the plan again") from None
    info: PlanInfo = from_json(PlanInfo, values, str(path), "build the plan again")
    _expect(str(plan), "sha256", file_sha256(plan), info.plan_sha256)
    return info


def check_plan(info: PlanInfo, plan: Path, export: Path, plugin_library: Path, flavour: str, version: str) -> None:
    """Raises InputError, naming it, if the plan was built from or for anything else than what is here."""
    where = str(plan)
    _expect(where, FILE_NAME, file_sha256(export / FILE_NAME), info.manifest_sha256)
    _expect(where, plugin_library.name, file_sha256(plugin_library), info.plugins_sha256)
    _expect(where, "TensorRT", f"{flavour} {version}", f"{info.flavour} {info.tensorrt_version}")


def check_gpu(info: PlanInfo, plan: Path, gpu: str, compute_capability: str) -> None:
    """Raises InputError if the plan is for another GPU than this one: TensorRT would refuse another compute capability
    in words of its own, and run kernels chosen on another GPU of the same without a word."""
    if compute_capability not in info.targets or info.gpu not in (None, gpu):
        built_for = " or ".join(info.targets)
        raise InputError(
            str(plan),
            got=f"{gpu} ({compute_capability})",
            expected=f"{info.gpu} ({built_for})" if info.gpu else f"{built_for}, which it was built for",
            remedy="build the plan again for this GPU",
        )


def _expect(where: str, what: str, found: str, built_with: str) -> None:
    if found != built_with:
        short = [text if len(text) < 40 else text[:12] for text in (found, built_with)]
        raise InputError(
            where,
            got=f"{what} {short[0]}",
            expected=f"{short[1]}, which it was built with",
            remedy="build the plan again",
        )
