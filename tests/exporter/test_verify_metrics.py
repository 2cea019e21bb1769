"""The comparison's formulas against values by hand, and the inputs it makes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_export.verify.gate import Gate, failures
from qwen3moe_export.verify.greedy import GreedyResult, compare_greedy
from qwen3moe_export.verify.inputs import make_inputs
from qwen3moe_export.verify.metrics import HISTOGRAM_EDGES, layer_curve, position_errors, summarise
from qwen3moe_export.verify.stages import Greedy, Precision
from qwen3moe_plugins.errors import InputError

CHECKPOINT = Path(__file__).parents[1] / "data" / "qwen3moe-tiny"


# Formulas


def test_errors_are_those_computed_by_hand() -> None:
    truth = [np.array([[0.0, math.log(3)], [2.0, 0.0], [0.0, 0.0]], np.float32)]
    got = [np.array([[0.0, 0.0], [2.0, 1.0], [0.0, 0.0]], np.float32)]
    positions = position_errors(truth, got, [np.array([0, 1, 0], np.int32)])
    assert positions.max_abs == pytest.approx([math.log(3), 1, 0])
    assert positions.mean_abs == pytest.approx([math.log(3) / 2, 0.5, 0])
    assert positions.cosine[1] == pytest.approx(2 / math.sqrt(5))
    # softmax(0, log 3) is (1/4, 3/4), softmax(0, 0) is (1/2, 1/2)
    assert positions.kl[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert positions.kl[2] == 0
    assert positions.same_top1.tolist() == [False, True, True]
    # the tokens behind positions 0 and 1 are 1 and 0; behind the last there is none
    assert positions.nll == pytest.approx([math.log(2), math.log(1 + math.exp(-1))])
    assert positions.truth_nll == pytest.approx([math.log(4 / 3), math.log(1 + math.exp(-2))])
    assert positions.histogram.sum() == 6


def test_summary_takes_every_position_of_every_sequence() -> None:
    random = np.random.default_rng(0)
    lengths, vocab_size = (37, 1, 16), 11  # several blocks of rows, a partial one, a whole one
    truth = [random.normal(size=(length, vocab_size)).astype(np.float32) for length in lengths]
    got = [logits + np.float32(0.25) for logits in truth]
    tokens = [random.integers(0, vocab_size, length, dtype=np.int32) for length in lengths]
    positions = position_errors(truth, got, tokens)
    assert (len(positions.max_abs), len(positions.nll)) == (sum(lengths), sum(lengths) - len(lengths))
    errors = summarise(positions)
    assert errors.max_abs == pytest.approx(0.25, rel=1e-5)
    assert errors.median_abs == pytest.approx(0.25, rel=1e-5)
    assert (errors.kl_max, errors.perplexity_diff) == pytest.approx((0, 0), abs=1e-6)  # softmax ignores a shift
    assert errors.top1 == 1
    (filled,) = np.nonzero(positions.histogram)
    assert HISTOGRAM_EDGES[filled[0]] <= 0.25 <= HISTOGRAM_EDGES[filled[0] + 1]


def test_layer_curve_is_the_relative_norm_of_the_error() -> None:
    truth = [np.ones((2, 3, 4), np.float32), np.ones((2, 5, 4), np.float32)]
    got = [part.copy() for part in truth]
    got[1][1] *= 1.5  # layer 1 of the second sequence: 20 of 32 values are off by a half
    assert layer_curve(truth, got) == pytest.approx((0, 0.5 * math.sqrt(20 / 32)))


def greedy(token_ids: list[int]) -> Greedy:
    """One prompt; at each position the candidates 1, 2, 3 with logits 5, 4.9, 1."""
    ids = np.tile(np.array([1, 2, 3], np.int32), (1, len(token_ids), 1))
    return Greedy(np.array([token_ids], np.int32), ids, np.tile(np.float32([5, 4.9, 1]), (1, len(token_ids), 1)))


@pytest.mark.parametrize(
    ("got", "num_equal", "is_tie", "gap"),
    [([1, 1, 1], 3, None, None), ([1, 2, 7], 1, True, 0.1), ([3, 1, 1], 0, False, 4), ([1, 1, 9], 2, False, 4)],
)
def test_first_difference_is_judged_in_the_truths_logits(
    got: list[int], num_equal: int, is_tie: bool | None, gap: float | None
) -> None:
    result = compare_greedy(greedy([1, 1, 1]), Greedy(np.array([got], np.int32)), tolerance=0.2)
    assert result.num_equal == num_equal
    if is_tie is None:
        assert not result.differences
    else:
        (difference,) = result.differences
        assert (difference.is_tie, difference.gap) == (is_tie, pytest.approx(gap, abs=1e-6))
        assert result.num_agreeing == int(is_tie)


def test_no_gate_lets_infinities_pass() -> None:
    tokens, precision = [np.zeros(4, np.int32)], Precision("bf16", "bf16")
    truth = [np.zeros((4, 3), np.float32)]
    got = [np.array([[np.inf, 0, 0]] + [[0, 0, 0]] * 3, np.float32)]
    positions = position_errors(truth, got, tokens)
    # however much the reference loses, even if it is not finite itself
    for baseline in (truth, [np.full((4, 3), 9, np.float32)], got):
        limits = Gate().limits(position_errors(truth, baseline, tokens), precision, {})
        assert failures(limits, positions, GreedyResult(1, 1, 1, ()), {})


# Inputs


def test_schedule_mixes_every_way_to_arrive() -> None:
    inputs = make_inputs(2048, 4096, 32, Tokenizer(CHECKPOINT), None)
    assert inputs.source == "sample.txt" and inputs.num_tokens == 344
    lengths = [len(sequence) for sequence in inputs.sequences]
    chunks = [inputs.chunks(index) for index in range(len(lengths))]
    assert [sum(parts) for parts in chunks] == lengths
    assert [lengths[3]] in chunks and [32, 32, 32] in chunks
    assert any(0 in parts for parts in chunks) and any(parts[1:] == [1] * 8 for parts in chunks)
    steps = [{item.num_new for item in step} for step in inputs.schedule]
    assert any({0, 1} < step and max(step) > 1 for step in steps), "no step with prefill, decode and nothing new"
    assert max(sum(item.num_new for item in step) for step in inputs.schedule) <= 128
    assert {name: int(mask.sum()) for name, mask in inputs.phases().items()} == {
        "prefill": 32 + 56 + 24 + 41 + 25 + 15 + 15 + 10,
        "extend": 64 + 24 + 14,
        "decode": 8 + 8 + 8,
    }


def test_inputs_fit_a_short_model() -> None:
    inputs = make_inputs(50, 20, 15, None, None)
    assert max(map(len, inputs.sequences)) == 20 and max(map(len, inputs.prompts)) == 5
    assert [sum(inputs.chunks(i)) for i in range(8)] == [len(sequence) for sequence in inputs.sequences]
    assert "random" in inputs.source
    with pytest.raises(InputError, match="max-new-tokens"):
        make_inputs(50, 20, 20, None, None)


def test_text_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Too short.")
    with pytest.raises(InputError, match="at least 444"):
        make_inputs(2048, 4096, 8, Tokenizer(CHECKPOINT), text)
    text.write_bytes(b"\xff\xfe" * 100)
    with pytest.raises(InputError, match="UTF-8"):
        make_inputs(2048, 4096, 8, Tokenizer(CHECKPOINT), text)
    with pytest.raises(InputError, match="tokenizer"):
        make_inputs(100, 4096, 8, Tokenizer(CHECKPOINT), None)
