"""An export as its pipeline stages: one folder each, or the export's own folder where there is one stage.

Owns: the folders' names and the check that they belong together. Must not know what runs a stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3moe_engine.manifest import FILE_NAME, Manifest, load_manifest
from qwen3moe_plugins.errors import InputError


@dataclass(frozen=True)
class ExportedStage:
    """`folder` holds the stage's graphs and `manifest`."""

    folder: Path
    manifest: Manifest


def stage_folder(export: Path, stage: int) -> Path:
    return export / f"stage_{stage}"


def load_stages(export: Path) -> tuple[ExportedStage, ...]:
    """Every stage of the export in the folder `export`, first to last. Raises InputError."""
    if (export / FILE_NAME).is_file() or not (stage_folder(export, 0) / FILE_NAME).is_file():
        manifest = load_manifest(export)
        if manifest.part.layout.pp > 1:
            got, expected = f"stage {manifest.part.stage} of {manifest.part.layout.pp}", "the folder that holds all"
            raise InputError(str(export), got=got, expected=expected, remedy=f"give {export.parent}")
        return (ExportedStage(export, manifest),)
    first = load_manifest(stage_folder(export, 0))
    folders = [stage_folder(export, stage) for stage in range(first.part.layout.pp)]
    stages = tuple(ExportedStage(folder, load_manifest(folder)) for folder in folders)
    for number, stage in enumerate(stages):
        found, expected = _identity(stage.manifest, stage.manifest.part.stage), _identity(first, number)
        if found != expected:
            raise InputError(str(stage.folder), got=found, expected=expected, remedy="export all stages again")
    return stages


def _identity(manifest: Manifest, stage: int) -> str:
    return f"stage {stage} for {manifest.part.layout}, {manifest.dtype}, of architecture {manifest.config_sha256[:12]}"
