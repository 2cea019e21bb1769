"""SamplingParams are checked when they are made: by name, with what was got, what is expected and a remedy."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

from qwen3moe_engine.request import check_params
from qwen3moe_engine.sampling_params import RANGES, SamplingParams
from qwen3moe_plugins.errors import InputError

WRONG = {
    "max_new_tokens": [0, -1, 2.0, None, True],
    "min_new_tokens": [-1, 65, 1.5],
    "temperature": [-0.1, math.nan, math.inf, 10**400, "1", None],
    "top_k": [-1, 2**31, 1.0],
    "top_p": [-0.1, 1.1, math.nan],
    "min_p": [-0.1, 1.1, math.nan],
    "presence_penalty": [-2.1, 2.1, math.nan],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, -1.0, math.inf, math.nan],
    "seed": [-1, 2**64, 0.5],
    "stop": ["a string", ["a list"], ("",), (1,)],
    "stop_token_ids": [5, [5], (-1,), (0.5,)],
    "logit_bias": [5, {-1: 0.0}, {"5": 0.0}, {5: 101}, {5: math.nan}, {5: None}],
    "logprobs": [-1, 21, 0.5],
}


def test_every_range_is_tested():
    assert set(RANGES) <= set(WRONG)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_is_out_of_range_is_named(name, value):
    with pytest.raises(InputError, match=rf"^{name}: got .+, expected .+; .+") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)


def test_the_ends_of_the_ranges_are_in_them():
    for name, allowed in RANGES.items():
        assert getattr(SamplingParams(**{name: allowed.low}), name) == allowed.low
        limit = {"max_new_tokens": allowed.high} if name == "min_new_tokens" else {}
        assert getattr(SamplingParams(**{name: allowed.high}, **limit), name) == allowed.high


def test_they_are_values():
    params = SamplingParams(seed=5, logit_bias={3: 1.0})
    assert params == SamplingParams(seed=5, logit_bias={3: 1.0}) and len({params, params.seeded()}) == 1
    with pytest.raises(FrozenInstanceError):
        params.seed = 6


def test_a_seed_is_drawn_once_and_recorded():
    assert SamplingParams(seed=0).seeded().seed == 0
    drawn = [SamplingParams(temperature=1.0).seeded() for _ in range(8)]
    assert len({params.seed for params in drawn}) == 8 and all(params.seeded() is params for params in drawn)


def test_what_the_model_lacks_is_named():
    check_params(SamplingParams(stop=("x",), stop_token_ids=(9,), logit_bias={0: 1.0}), 10, has_tokenizer=True)
    for params, name in [(SamplingParams(stop_token_ids=(10,)), "stop_token_ids"),
                         (SamplingParams(logit_bias={10: 1.0}), "logit_bias"),
                         (SamplingParams(stop=("x",)), "stop")]:  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}: got"):
            check_params(params, 10, has_tokenizer=False)
