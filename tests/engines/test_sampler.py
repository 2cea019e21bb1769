"""The sampler of the host: what the rule promises, what requests change, and that rows do not know of each other.

That the rule is the kernel's is shown in tests/plugins/test_sample.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qwen3moe_engine import sampling_rule
from qwen3moe_engine.logit_adjustments import adjust_logits
from qwen3moe_engine.logits import HostLogits, greedy
from qwen3moe_engine.logprobs import MIN_LOGPROB, token_logprobs
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampler import Sampled, draws_of, sample_batch
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.sampling_rule import draw, first_in_order, philox

F32 = np.float32
NUM_DRAWS = 4000
# 0.999 quantiles of chi-square by degrees of freedom (NIST handbook, 1.3.6.7.4). Seeds are fixed, so nothing flickers.
CHI_SQUARE = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 6: 22.458, 7: 24.322}

LOGIT = st.floats(-40, 40, width=32) | st.sampled_from([-math.inf, math.nan, 0.0, -0.0, 1.0])
LOGITS = arrays.arrays(F32, st.integers(1, 40), elements=LOGIT)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0.01, 4),
    top_k=st.integers(0, 12),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - np.float64(logits.max()))
    return powers / powers.sum()


def cleaned(logits: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(logits), F32(-np.inf), logits)


def request(prompt=(1,), output=(), **params) -> Request:
    return Request(0, tuple(prompt), SamplingParams(**params).seeded(), output_ids=list(output))


def sample(logits: HostLogits, requests: list[Request], eos_token_ids: tuple[int, ...]) -> list[Sampled]:
    return sample_batch(logits, requests, draws_of(requests), eos_token_ids)


def tokens_of(logits: np.ndarray, requests: list[Request], eos_token_ids=()) -> list[int]:
    return [token for token, _ in sample(HostLogits(logits), requests, eos_token_ids)]


# the distribution


PROBABILITIES = np.array([0.4, 0.02, 0.2, 0.13, 0.1, 0.05, 0.07, 0.03])


def expected_probabilities(params: SamplingParams) -> np.ndarray:
    """In real numbers: temperature, then top_k, min_p and top_p, as the rule's steps have it."""
    p = PROBABILITIES ** (1 / params.temperature)
    order = np.argsort(-p)
    p[order[params.top_k or len(p) :]] = 0
    p[p < params.min_p * p.max()] = 0
    kept = np.searchsorted(np.cumsum(p[order]), params.top_p * p.sum()) + 1
    p[order[kept:]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "given_",
    [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.79}, {"min_p": 0.2},
     {"temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1}],
)  # fmt: skip
def test_draws_have_the_exact_distribution(given_):
    params = SamplingParams(**{"temperature": 1.0, "seed": 20240229, **given_})
    expected = expected_probabilities(params) * NUM_DRAWS
    logits = np.log(PROBABILITIES).astype(F32)
    drawn = np.bincount([draw(logits, params, offset) for offset in range(NUM_DRAWS)], minlength=len(expected))
    possible = expected > 0
    assert not drawn[~possible].any()
    statistic = ((drawn - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < CHI_SQUARE[possible.sum() - 1], drawn


def test_seeds_and_offsets_are_independent_streams():
    """Pairs of neighbours are as likely as chance has it: by seed, and by index of token."""
    logits = np.zeros(2, F32)
    for others in [lambda i: (i, 0), lambda i: (0, i), lambda i: (i, i)]:
        params = [SamplingParams(temperature=1.0, seed=others(i)[0]) for i in range(NUM_DRAWS)]
        drawn = np.array([draw(logits, p, others(i)[1]) for i, p in enumerate(params)])
        pairs = np.bincount(2 * drawn[:-1] + drawn[1:], minlength=4)
        assert ((pairs - NUM_DRAWS / 4) ** 2 / (NUM_DRAWS / 4)).sum() < CHI_SQUARE[3], pairs


def test_philox_is_the_published_one():
    """The known answer of Random123 for counter and key 0; and every word of both counts."""
    assert philox(0, 0) == 0xE169C58D_6627E8D5
    assert len({philox(seed << 32, 0) for seed in range(4)} | {philox(0, i << 32) for i in range(1, 4)}) == 7


# properties of a draw


@settings(deadline=None)
@given(LOGITS, PARAMS, st.integers(0, 2**32))
def test_only_tokens_that_may_be_drawn_are(logits, params, offset):
    token = draw(logits, params, offset)
    assert 0 <= token < len(logits)
    clean = cleaned(logits)
    if not np.isfinite(clean.max()):
        assert token == clean.argmax()
        return
    assert np.isfinite(clean[token]), "-inf and NaN are never drawn"
    order = np.argsort(-clean, kind="stable")
    rank, p = order.tolist().index(token), softmax(clean / params.temperature)[order]
    assert params.top_k == 0 or rank < params.top_k
    assert p[rank] >= params.min_p * p[0] * (1 - 1e-5)
    p[params.top_k or len(p) :] = 0
    p[p < params.min_p * p[0] * (1 - 1e-5)] = 0
    assert p[:rank].sum() / p.sum() <= params.top_p + 1e-5, "the nucleus was full before this token"


@settings(deadline=None)
@given(LOGITS, PARAMS, st.integers(0, 2**32))
def test_nan_is_minus_infinity(logits, params, offset):
    assert draw(logits, params, offset) == draw(cleaned(logits), params, offset)
    assert greedy(logits[None]) == [cleaned(logits).argmax()]


@settings(deadline=None)
@given(LOGITS, PARAMS, st.integers(0, 2**32))
def test_parameters_that_leave_one_token_are_greedy(logits, params, offset):
    best = greedy(logits[None])[0]
    for change in [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.0}, {"temperature": 1e-40}]:
        assert draw(logits, replace(params, **change), offset) == best, change


@settings(deadline=None)
@given(LOGITS, PARAMS, st.integers(0, 2**32))
def test_what_is_off_changes_nothing(logits, params, offset):
    plain = replace(params, top_k=0, top_p=1.0, min_p=0.0)
    all_kept = replace(plain, top_k=len(logits))
    assert draw(logits, plain, offset) == draw(logits, all_kept, offset)


@settings(deadline=None)
@given(arrays.arrays(F32, st.integers(1, 60), elements=st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 2.0])),
       st.integers(1, 60))  # fmt: skip
def test_first_in_order_is_a_sort(logits, count):
    assert first_in_order(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


def test_draws_at_the_borders_of_the_running_sum(monkeypatch):
    """A random number that is just a running sum belongs to the next token; 0 to the first that has a weight."""
    params = SamplingParams(temperature=1.0, seed=0)
    for random, logits, token in [(2**63, [0, 0], 1), (2**63 - 1, [0, 0], 0), (2**64 - 1, [0, 0, -math.inf], 1),
                                  (0, [-math.inf, 0, 0], 1)]:  # fmt: skip
        monkeypatch.setattr(sampling_rule, "philox", lambda *_, random=random: random)
        assert draw(np.array(logits, F32), params, 0) == token


def test_a_nucleus_ends_where_its_weight_is_reached():
    weights = np.array([1, 1, 1, 0], np.uint64)
    for top_p, kept in [(0.0, [1]), (0.33, [1]), (0.34, [0, 1]), (0.5, [0, 1]), (0.67, [0, 1, 2])]:
        logits = np.array([0, 1, 0, -1], F32)
        assert sampling_rule.nucleus(logits, weights, top_p).tolist() == kept, top_p


def test_extremes_of_temperature():
    logits = np.array([1, -math.inf, 3, 2], F32)
    for temperature, tokens in [(1e-3, {2}), (1e30, {0, 2, 3}), (1e300, {0, 2, 3})]:
        params = SamplingParams(temperature=temperature, seed=3)
        assert {draw(logits, params, offset) for offset in range(200)} == tokens
    far = np.array([-3e38, 3e38, math.nan], F32)
    assert {draw(far, SamplingParams(temperature=t, seed=3), 0) for t in (0.5, 2.0)} == {1}
    assert draw(np.array([0, math.inf, math.inf], F32), SamplingParams(temperature=1.0, seed=3), 0) == 1
    assert draw(np.full(3, -math.inf, F32), SamplingParams(temperature=1.0, seed=3), 0) == 0


# the batch


REQUESTS = st.lists(
    st.builds(
        lambda params, output, changes: request((1, 2), output, **{**vars(params), **changes}),
        PARAMS,
        st.lists(st.integers(0, 7), max_size=5),
        st.sampled_from([{}, {"temperature": 0.0}, {"frequency_penalty": 1.5}, {"logit_bias": {3: 9.0}},
                         {"repetition_penalty": 1.4, "temperature": 0.0}, {"min_new_tokens": 3}]),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(deadline=None)
@given(REQUESTS, st.randoms(use_true_random=False))
def test_a_row_does_not_know_its_neighbours(requests, random):
    logits = np.random.default_rng(random.getrandbits(32)).normal(0, 2, (len(requests) + 1, 8)).astype(F32)
    before = logits.copy()
    alone = [sample(HostLogits(logits[row : row + 1]), [one], (5,))[0] for row, one in enumerate(requests)]
    order = random.sample(range(len(requests)), len(requests))
    together = sample(HostLogits(logits[order]), [requests[row] for row in order], (5,))
    assert together == [alone[row] for row in order]
    assert sample(HostLogits(logits), requests, (5,)) == alone, "a row more than requests: a step in which none samples"
    np.testing.assert_array_equal(logits, before)


def test_the_counter_is_the_index_of_the_new_token():
    """Not of the token in the sequence: a longer prompt with the same logits draws the same."""
    logits = np.zeros((1, 1000), F32)
    for output in range(5):
        one = request(range(7), [0] * output, temperature=1.0, seed=9)
        assert tokens_of(logits, [one]) == [draw(logits[0], one.params, output)]


def test_greedy_takes_the_lower_id_of_equals():
    assert greedy(np.array([[0, 3, 3], [2, math.nan, 2], [math.nan] * 3], F32)) == [1, 0, 0]


# adjustments


def adjusted(logits: list[float], one: Request, eos=(0,)) -> list[float]:
    return adjust_logits(np.array(logits, F32), one, eos).tolist()


def test_repetition_penalty_counts_prompt_and_output_once():
    one = request((1, 1, 2), (3, 3), repetition_penalty=2.0)
    assert adjusted([1.0, 1.0, -1.0, 0.5, -3.0], one) == [1.0, 0.5, -2.0, 0.25, -3.0]


def test_repetition_penalty_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(0).normal(0, 3, 50).astype(F32)
    one = request((4, 9, 9), (30, 4), repetition_penalty=1.3)
    processor = processors.RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([[4, 9, 9, 30, 4]]), torch.tensor(logits)[None])[0].numpy()
    np.testing.assert_allclose(adjust_logits(logits, one, ()), expected, rtol=2e-7)


def test_frequency_and_presence_count_the_output():
    one = request((1, 2), (2, 3, 3), frequency_penalty=0.5, presence_penalty=0.25)
    assert adjusted([0.0, 0.0, 0.0, 0.0], one) == [0.0, 0.0, -0.75, -1.25]
    assert adjusted([0.0] * 4, request((1, 2), (3,), presence_penalty=-2.0)) == [0.0, 0.0, 0.0, 2.0]


def test_bias_and_the_minimum_of_tokens():
    assert adjusted([1.0, 1.0, 1.0], request(logit_bias={0: -100.0, 2: 0.5})) == [-99.0, 1.0, 1.5]
    early = request((1,), (1,), min_new_tokens=2, stop_token_ids=(2,), logit_bias={0: 100.0})
    assert adjusted([1.0, 1.0, 1.0], early) == [-math.inf, 1.0, -math.inf], "no bias lifts the mask"
    assert adjusted([1.0] * 3, replace_output(early, [1, 1])) == [101.0, 1.0, 1.0]
    assert adjusted([1.0] * 3, request(min_new_tokens=2, ignore_eos=True)) == [1.0, 1.0, 1.0]


def replace_output(one: Request, output: list[int]) -> Request:
    return Request(0, one.prompt_ids, one.params, output_ids=output)


def test_greedy_sees_the_adjustments():
    logits = np.array([[3, 2, 1], [3, 2, 1]], F32)
    requests = [request(output=(0,), frequency_penalty=1.5), request(min_new_tokens=1)]
    assert tokens_of(logits, requests, (0,)) == [1, 1]


# log-probabilities


@settings(deadline=None)
@given(LOGITS.filter(lambda logits: np.isfinite(cleaned(logits).max())), st.integers(0, 20), st.integers(0, 39))
def test_logprobs_are_of_the_softmax(logits, num_best, token):
    token %= len(logits)
    found = token_logprobs(logits, token, num_best)
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(softmax(cleaned(logits))), MIN_LOGPROB)
    assert found.token_id == token and found.logprob == pytest.approx(expected[token], abs=1e-5)
    order = np.argsort(-cleaned(logits), kind="stable")[:num_best]
    assert [best for best, _ in found.best] == order.tolist()
    assert [logprob for _, logprob in found.best] == pytest.approx(expected[order], abs=1e-5)


def test_logprobs_are_numbers_whatever_the_logits():
    for logits in ([math.inf, 1, math.inf], [-math.inf] * 3, [math.nan] * 3):
        found = token_logprobs(np.array(logits, F32), 1, 3)
        assert all(MIN_LOGPROB <= logprob <= 0 for _, logprob in (*found.best, (1, found.logprob)))


def test_logprobs_are_of_the_models_own_logits():
    logits = np.log(np.array([[0.5, 0.3, 0.2]], F32))
    one = request(output=(0, 0), frequency_penalty=2.0, temperature=0.5, top_k=1, logprobs=1)
    ((token, found),) = sample(HostLogits(logits), [one], ())
    assert token == 1
    assert found.logprob == pytest.approx(math.log(0.3)) and found.best == ((0, pytest.approx(math.log(0.5))),)
    assert sample(HostLogits(logits), [request()], ()) == [(0, None)]
