"""The golden bundle: a comparison's inputs and every stage's outputs in one safetensors file, so that an engine on a
machine without torch is held to the same truth by the same gate.

Owns: the file's layout and its validation. A recorded stage is a `Stage` like any other: it reads instead of computing.

Tensors, T tokens of all sequences packed and P prompts: `tokens` [T] and `prompts` (int32, packed), and for stage i
`stages.i.logits` fp32 [T, V], `.hidden_states` fp32 [L + 1, T, H], `.token_ids` int32 [P, N], `.candidate_ids` int32
and `.candidate_logits` fp32 [P, N, K]; those that a stage does not have are absent. All else is JSON in the metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwen3moe_export.verify.gate import Gate
from qwen3moe_export.verify.inputs import Inputs, ScheduledTokens
from qwen3moe_export.verify.stages import AS_STORED, Greedy, Precision, Stage, StageDescription, StageOutputs
from qwen3moe_plugins.errors import InputError, name_list

FORMAT = 1
_METADATA_KEY = "qwen3moe-export golden"
_REMEDY = "write the bundle again with `qwen3moe-export verify CHECKPOINT --write-golden FILE`"


@dataclass(frozen=True)
class Origin:
    """What was compared: the hash of the architecture, the dtype of the export, and versions of what took part."""

    config_sha256: str
    dtype: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Golden:
    """A bundle that was read and found whole."""

    origin: Origin
    inputs: Inputs
    gate: Gate
    stages: tuple[Stage, ...]

    @property
    def weights(self) -> str:
        """How rounding to the export's dtype changed the weights: as in `Precision.weights`."""
        others = [stage.description.precision.weights for stage in self.stages[1:]]
        return next((weights for weights in others if weights == self.origin.dtype), AS_STORED)


@dataclass(frozen=True)
class _Header:
    """The metadata. schedule: [sequence, num_new] pairs by step. tensors: names. sha256: see `_digest`."""

    format: int
    origin: dict[str, Any]
    source: str
    lengths: list[int]
    prompt_lengths: list[int]
    schedule: list[list[list[int]]]
    max_new_tokens: int
    gate: dict[str, float]
    stages: list[dict[str, Any]]
    tensors: list[str]
    sha256: str


class GoldenWriter:
    """Collects what `compare` records; `write` puts it into a file, whole or not at all."""

    def __init__(self, origin: Origin, inputs: Inputs, gate: Gate):
        self._origin, self._inputs, self._gate = origin, inputs, gate
        self._stages: list[StageDescription] = []
        self._tensors = {"tokens": np.concatenate(inputs.sequences), "prompts": np.concatenate(inputs.prompts)}

    def record(self, description: StageDescription, outputs: StageOutputs) -> None:
        prefix = _prefix(len(self._stages))
        self._stages.append(description)
        self._tensors[f"{prefix}logits"] = np.concatenate(outputs.logits)
        if outputs.hidden_states is not None:
            self._tensors[f"{prefix}hidden_states"] = np.concatenate(outputs.hidden_states, axis=1)
        present = {name: value for name, value in vars(outputs.greedy).items() if value is not None}
        self._tensors |= {f"{prefix}{name}": value for name, value in present.items()}

    def write(self, path: Path) -> None:
        partial = path.with_name(path.name + ".partial")
        try:
            save_file(self._tensors, partial, metadata={_METADATA_KEY: json.dumps(asdict(self._header()))})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _header(self) -> _Header:
        inputs = self._inputs
        return _Header(
            format=FORMAT,
            origin=asdict(self._origin),
            source=inputs.source,
            lengths=[len(sequence) for sequence in inputs.sequences],
            prompt_lengths=[len(prompt) for prompt in inputs.prompts],
            schedule=[[[item.sequence, item.num_new] for item in step] for step in inputs.schedule],
            max_new_tokens=inputs.max_new_tokens,
            gate=asdict(self._gate),
            stages=[asdict(description) for description in self._stages],
            tensors=list(self._tensors),
            sha256=_digest(self._tensors.__getitem__, list(self._tensors)),
        )


def read_golden(path: Path) -> Golden:
    """Reads and checks a bundle. Raises InputError if it is not whole, or not what a comparison wrote."""
    if not path.is_file():
        raise InputError(str(path), got="no file", expected="a golden bundle", remedy=_REMEDY)
    try:
        with safe_open(path, framework="np") as file:
            header = _parse_header((file.metadata() or {}).get(_METADATA_KEY), path)
            _check_tensors(header, file, path)
            return _golden(header, path, file.get_tensor("tokens"), file.get_tensor("prompts"))
    except (SafetensorError, OSError) as error:
        raise _refusal(path, str(error), "a golden bundle") from None


def _parse_header(text: str | None, path: Path) -> _Header:
    if text is None:
        raise _refusal(path, "no metadata of a comparison", "a golden bundle")
    try:
        values = json.loads(text)
        found = values.get("format")
    except (json.JSONDecodeError, AttributeError) as error:
        raise _refusal(path, f"invalid metadata ({error})", "a JSON object") from None
    if found != FORMAT:
        raise _refusal(path, f"format {found}", FORMAT)
    names = {field.name for field in fields(_Header)}
    if set(values) != names:
        raise _refusal(path, f"metadata fields {name_list(values)}", name_list(names, limit=len(names)))
    return _Header(**values)


def _check_tensors(header: _Header, file: Any, path: Path) -> None:
    found, expected = set(file.keys()), set(header.tensors)
    if found != expected:
        missing, unknown = expected - found, found - expected
        got = f"no tensor {name_list(missing)}" if missing else f"unknown tensors {name_list(unknown)}"
        raise _refusal(path, got, "those that its metadata lists")
    if _digest(file.get_tensor, list(found)) != header.sha256:
        raise _refusal(path, "tensors that were changed", "those that were written")


def _golden(header: _Header, path: Path, tokens: NDArray[np.int32], prompts: NDArray[np.int32]) -> Golden:
    try:
        inputs = Inputs(
            source=header.source,
            sequences=_split(tokens, header.lengths),
            schedule=tuple(tuple(ScheduledTokens(*item) for item in step) for step in header.schedule),
            prompts=_split(prompts, header.prompt_lengths),
            max_new_tokens=header.max_new_tokens,
        )
        stages = [_description(values) for values in header.stages]
        recorded = tuple(_recorded(stage, path, index, set(header.tensors)) for index, stage in enumerate(stages))
        golden = Golden(Origin(**header.origin), inputs, Gate(**header.gate), recorded)
    except (TypeError, KeyError, ValueError) as error:
        raise _refusal(path, f"invalid metadata ({error})", "what a comparison writes") from None
    totals = [sum(inputs.chunks(index)) for index in range(len(inputs.sequences))]
    if totals != header.lengths or not stages or stages[0].role != "truth":
        raise _refusal(path, f"a schedule of {totals} tokens", f"{header.lengths} and a truth first")
    return golden


def _description(values: dict[str, Any]) -> StageDescription:
    return StageDescription(values["name"], Precision(**values["precision"]), values["role"])


def _recorded(description: StageDescription, path: Path, index: int, names: set[str]) -> Stage:
    prefix = _prefix(index)

    def run(inputs: Inputs) -> StageOutputs:
        lengths = [len(sequence) for sequence in inputs.sequences]
        with safe_open(path, framework="np") as file:

            def tensor(name: str) -> NDArray | None:
                return file.get_tensor(prefix + name) if prefix + name in names else None

            logits, states, token_ids = tensor("logits"), tensor("hidden_states"), tensor("token_ids")
            assert logits is not None and token_ids is not None
            greedy = Greedy(token_ids, tensor("candidate_ids"), tensor("candidate_logits"))
        hidden_states = None if states is None else _split(states, lengths, axis=1)
        return StageOutputs(_split(logits, lengths), hidden_states, greedy)

    return Stage(replace(description, is_recorded=True), run)


def _prefix(index: int) -> str:
    return f"stages.{index}."


def _split(packed: NDArray, lengths: list[int], axis: int = 0) -> tuple[NDArray, ...]:
    if packed.shape[axis] != sum(lengths):
        raise ValueError(f"{packed.shape[axis]} tokens for sequences of {lengths}")
    return tuple(np.split(packed, np.cumsum(lengths)[:-1], axis=axis))


def _digest(tensor: Callable[[str], NDArray], names: list[str]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, whatever the order in the file."""
    digest = hashlib.sha256()
    for name in sorted(names):
        array = np.ascontiguousarray(tensor(name))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _refusal(path: Path, got: str, expected: object) -> InputError:
    return InputError(str(path), got=got, expected=expected, remedy=_REMEDY)
