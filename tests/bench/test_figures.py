"""Figures of records whose truth is known by hand."""

from __future__ import annotations

import pytest

from qwen3moe_engine.bench.figures import Distribution, measure
from qwen3moe_engine.bench.record import RequestRecord

# 3 tokens in 3 parts; 5 tokens in 2 parts; one token; a failure in the middle
RECORDS = [
    RequestRecord(0.0, 0.0, 1.0, (0.25, 0.5, 0.875), num_prompt=10, num_output=3),
    RequestRecord(0.0, 0.5, 2.0, (1.0, 2.0), num_prompt=20, num_output=5),
    RequestRecord(1.0, 1.0, 1.5, (1.375,), num_prompt=30, num_output=1),
    RequestRecord(1.0, 1.0, 4.0, (1.5, 1.75), error="truncated", message="why", num_output=2),
]


def test_throughputs_count_what_succeeded_over_the_whole_duration():
    figures = measure(RECORDS)
    assert (figures.num_requests, figures.num_successful, figures.duration) == (4, 3, 4.0)
    assert (figures.num_prompt_tokens, figures.num_output_tokens) == (60, 9)
    assert (figures.request_throughput, figures.output_throughput, figures.total_throughput) == (0.75, 2.25, 17.25)
    assert figures.errors == {"truncated": 1} and figures.messages == {"truncated": "why"}
    assert not figures.is_clean


def test_latencies_are_those_of_the_definitions():
    figures = measure(RECORDS)
    assert figures.ttft.p50 == 375 and figures.ttft.mean == pytest.approx((250 + 500 + 375) / 3)
    assert figures.itl.mean == pytest.approx((250 + 375 + 1000) / 3) and figures.itl.p50 == 375
    assert figures.tpot.mean == pytest.approx((625 / 2 + 1000 / 4) / 2)
    assert figures.e2e.mean == pytest.approx((875 + 1500 + 375) / 3)
    assert figures.lateness.mean == pytest.approx(500 / 4)


def test_percentiles_interpolate_linearly():
    assert Distribution.of_seconds([index / 1000 for index in range(101)]) == pytest.approx(
        Distribution(50.0, 50.0, 90.0, 99.0)
    )
    assert Distribution.of_seconds([]) is None


@pytest.mark.parametrize(
    ("counts", "num_lost"),
    [((5, None, None), 0), ((5, 5, 5), 0), ((5, 4, 5), 1), ((5, 6, None), 1), ((3, 3, 5), 2), ((5, None, 4), 1)],
)
def test_lost_tokens_are_the_largest_difference_of_counts(counts, num_lost):
    num_output, num_counted, num_expected = counts
    record = RequestRecord(0, 0, 1, (0.5,), 1, num_output, num_counted, num_expected)
    assert measure([record]).num_lost_tokens == num_lost


def test_a_run_in_which_all_fail_has_figures():
    figures = measure([RequestRecord(0, 0, 1, error="HTTP 503"), RequestRecord(0, 0, 1, error="HTTP 503")])
    assert figures.errors == {"HTTP 503": 2} and figures.ttft is None and figures.output_throughput == 0
