"""The comparison: runs the stages one after the other, measures each against the truth, and judges.

Must not know what a stage is made of, nor how the result is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qwen3moe_export.verify.gate import Gate, Limits, failures
from qwen3moe_export.verify.greedy import GreedyResult, compare_greedy
from qwen3moe_export.verify.inputs import Inputs
from qwen3moe_export.verify.metrics import LogitErrors, PositionErrors, layer_curve, position_errors, summarise
from qwen3moe_export.verify.stages import Greedy, Stage, StageDescription, StageOutputs

Progress = Callable[[Sequence[Stage], str], Iterable[Stage]]
Record = Callable[[StageDescription, StageOutputs], None]


@dataclass(frozen=True)
class StageResult:
    """curve: relative L2 error of what enters each layer and the final norm; None if the stage does not show it.
    limits: None for the truth and the baselines, which are not judged. seconds: to load and run."""

    description: StageDescription
    seconds: float
    positions: PositionErrors
    errors: LogitErrors
    curve: tuple[float, ...] | None
    greedy: GreedyResult
    limits: Limits | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool | None:
        """None if the stage is not judged."""
        return None if self.limits is None else not self.failures


@dataclass(frozen=True)
class Comparison:
    inputs: Inputs
    gate: Gate
    results: tuple[StageResult, ...]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether stages were judged and all passed."""
        verdicts = [result.passed for result in self.results if result.passed is not None]
        return bool(verdicts) and all(verdicts)


@dataclass(frozen=True)
class _Measured:
    """A stage's errors, before what they are held to is known."""

    description: StageDescription
    seconds: float
    positions: PositionErrors
    errors: LogitErrors
    curve: tuple[float, ...] | None
    greedy: Greedy


def compare(
    stages: Sequence[Stage],
    inputs: Inputs,
    gate: Gate,
    versions: dict[str, str],
    progress: Progress,
    record: Record | None = None,
) -> Comparison:
    """The first of `stages` is the truth, and every precision judged has a baseline (or is the truth's own).

    `record` is given the outputs of every stage. Otherwise only the truth's are kept.
    """
    assert stages[0].description.role == "truth", stages[0]
    truth: StageOutputs | None = None
    measured = []
    for stage in progress(stages, "comparing stages"):
        start = time.perf_counter()
        outputs = stage.run(inputs)
        seconds = time.perf_counter() - start
        truth = truth or outputs
        measured.append(_measure(stage.description, seconds, truth, outputs, inputs))
        if record is not None:
            record(stage.description, outputs)
        del outputs  # before the next stage makes its own
    assert truth is not None
    results = tuple(_judge(item, measured, truth.greedy, gate, inputs) for item in measured)
    return Comparison(inputs, gate, results, versions)


def _measure(
    description: StageDescription, seconds: float, truth: StageOutputs, outputs: StageOutputs, inputs: Inputs
) -> _Measured:
    positions = position_errors(truth.logits, outputs.logits, inputs.sequences)
    curve = None
    if truth.hidden_states is not None and outputs.hidden_states is not None:
        curve = layer_curve(truth.hidden_states, outputs.hidden_states)
    return _Measured(description, seconds, positions, summarise(positions), curve, outputs.greedy)


def _judge(item: _Measured, measured: list[_Measured], truth: Greedy, gate: Gate, inputs: Inputs) -> StageResult:
    description = item.description
    baselines = [
        other.positions
        for other in measured
        if other.description.role != "judged" and other.description.precision == description.precision
    ]
    assert len(baselines) == 1, f"{description} has {len(baselines)} baselines"
    phases = inputs.phases()
    limits = gate.limits(baselines[0], description.precision, phases)
    greedy = compare_greedy(truth, item.greedy, limits.tie)
    judged = description.role == "judged"
    return StageResult(
        description=description,
        seconds=item.seconds,
        positions=item.positions,
        errors=item.errors,
        curve=item.curve,
        greedy=greedy,
        limits=limits if judged else None,
        failures=failures(limits, item.positions, greedy, phases) if judged else (),
    )
