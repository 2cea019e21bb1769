"""What is compared: a checkpoint and an export, which must be of one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3moe_engine.manifest import Manifest
from qwen3moe_export.config import Qwen3MoeConfig
from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class Subject:
    """`checkpoint` has config and weights, `export` graphs and `manifest`."""

    config: Qwen3MoeConfig
    checkpoint: Path
    export: Path
    manifest: Manifest


def check_export(manifest: Manifest, export: Path, config_sha256: str, where: Path) -> None:
    """Raises InputError unless `export` takes token ids and is of the architecture with this hash, that of `where`."""
    manifest.require_token_ids(export)
    if manifest.config_sha256 != config_sha256:
        raise InputError(
            str(export),
            got=f"an export of the architecture {manifest.config_sha256[:12]}",
            expected=f"{config_sha256[:12]} as in {where}",
            remedy="give the export of this model",
        )
