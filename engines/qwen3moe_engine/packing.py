"""Packing: a checkpoint rewritten in the engine's layout, as one safetensors file.

Owns: the streaming writer. Each tensor is read, converted and written before the next is read; the file appears under
its name only when it is whole. safetensors itself writes only what is in memory all at once.
"""

from __future__ import annotations

import json
from pathlib import Path

from qwen3moe_engine.checkpoint import Checkpoint
from qwen3moe_engine.layout import WHOLE
from qwen3moe_engine.manifest import Manifest
from qwen3moe_engine.weights import Progress, WeightPlan, num_bytes_of, plan_manifest, read_chunks
from qwen3moe_plugins.errors import InputError

_STORED_NAMES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
_ALIGNMENT = 8  # of the first tensor's offset, as safetensors writes it


def pack(manifest: Manifest, checkpoint: Checkpoint, target: Path, progress: Progress) -> int:
    """Writes the export's weights from `checkpoint` to `target` in the export's dtype; returns bytes written.

    Memory: one published tensor at a time. Raises InputError before writing anything if the checkpoint does not fit.
    """
    if manifest.part != WHOLE:
        got, expected = (
            f"an export for {manifest.part.layout}",
            "one for a single rank: its packed weights serve every layout",
        )
        raise InputError("export", got=got, expected=expected, remedy="export again without --tp, --ep and --pp")
    plans = plan_manifest(manifest, checkpoint)
    _check_target(target, checkpoint)
    header = _header(plans)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(header)
            for plan in progress(plans, "packing"):
                for chunk in read_chunks(plan, plan.spec.dtype):
                    file.write(chunk.view("uint8").data)
            num_bytes = file.tell()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return num_bytes


def _check_target(target: Path, checkpoint: Checkpoint) -> None:
    """Raises InputError if the file could not be read back, or would replace what is being read."""
    if target.suffix != ".safetensors":
        raise InputError(
            str(target), got=f"a name in {target.suffix!r}", expected="one in '.safetensors'", remedy="rename it"
        )
    files = {tensor.file for tensor in checkpoint.tensors.values()}
    if target.exists() and any(file.samefile(target) for file in files):
        raise InputError(
            str(target), got="the checkpoint itself", expected="another file", remedy="choose another name"
        )


def _header(plans: list[WeightPlan]) -> bytes:
    entries, offset = {}, 0
    for plan in plans:
        end = offset + num_bytes_of(plan.spec)
        entries[plan.spec.name] = {
            "dtype": _STORED_NAMES[plan.spec.dtype],
            "shape": plan.spec.static_shape,
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
