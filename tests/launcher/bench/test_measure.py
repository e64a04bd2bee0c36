"""From records of requests to figures."""

from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.bench.measure import (
    hints_on,
    percentile,
    problems_of,
    skew,
    stage_result,
    summary,
    warnings_of,
)
from launcher.bench.messages import Outcome, Record
from launcher.bench.options import SloOptions
from launcher.bench.table import tables
from launcher.show import rendered
from tests.launcher.sweep.sample_sweeps import results


def record(
    start_s: float = 0.0, first_s: float = 0.1, num_tokens: int = 5, **changes: Any
) -> Record:
    """Ten milliseconds a token after the first."""
    last_s = start_s + first_s + 0.01 * (num_tokens - 1)
    given: dict[str, Any] = {
        "start_s": start_s,
        "first_s": start_s + first_s,
        "last_s": last_s,
        "end_s": last_s + 0.001,
        "gaps": array("f", [0.01] * (num_tokens - 1)).tobytes(),
        "num_prompt_tokens": 10,
        "num_output_tokens": num_tokens,
    }
    return Record(**(given | changes))


def outcome(*records: Record, **changes: Any) -> Outcome:
    given: dict[str, Any] = {"num_not_sent": 0, "cpu_share": 0.1, "lags_s": [0.001]}
    return Outcome(records=list(records), **(given | changes))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], part: float):
    assert percentile(sorted(values), part) == pytest.approx(np.percentile(values, 100 * part))


def test_a_summary_of_nothing_is_none():
    assert summary([]) is None


def test_figures_of_a_stage():
    outcomes = [outcome(record(), record(1.0)), outcome(record(1.859, num_tokens=1))]
    stage = stage_result("concurrency 2", outcomes, SloOptions(), concurrency=2)
    assert stage.duration_s == pytest.approx(1.96)
    assert (stage.num_requests, stage.num_prompt_tokens, stage.num_output_tokens) == (3, 30, 11)
    assert stage.output_tok_s == pytest.approx(11 / 1.96)
    assert stage.total_tok_s == pytest.approx(41 / 1.96)
    assert stage.req_s == pytest.approx(3 / 1.96)
    assert stage.ttft_ms is not None
    assert stage.ttft_ms.p50 == pytest.approx(100)
    assert stage.tpot_ms is not None
    assert stage.tpot_ms.mean == pytest.approx(10)  # the answer of one token has none
    assert stage.itl_ms is not None
    assert stage.itl_ms.p99 == pytest.approx(10, rel=1e-5)
    assert stage.e2e_ms is not None
    assert stage.e2e_ms.max == pytest.approx(141)
    assert stage.goodput_req_s is None
    assert stage.mean_in_flight == pytest.approx((0.141 + 0.141 + 0.101) / 1.96)
    assert problems_of(stage) == warnings_of(stage) == []


def test_answers_in_one_piece_tell_nothing_of_the_time_per_token():
    whole = record(first_s=0.9, last_s=0.9, end_s=1.2, gaps=b"")
    stage = stage_result("s", [outcome(record(), whole)], SloOptions())
    assert stage.tpot_ms is not None
    assert stage.tpot_ms.mean == pytest.approx(10)
    assert warnings_of(stage) == []
    stage = stage_result("s", [outcome(whole, whole)], SloOptions())
    assert stage.tpot_ms is None
    assert "in one piece" in warnings_of(stage)[0]


def test_a_stage_of_less_than_a_second_says_so():
    stage = stage_result("s", [outcome(record())], SloOptions())
    assert warnings_of(stage) == [
        "s: measured for less than a second, which says little: bench.num_sessions=... with more"
    ]


def test_goodput_counts_the_requests_within_all_limits():
    late, slow = record(first_s=0.5), record(last_s=0.9)
    short = record(num_tokens=1)
    stage = stage_result("s", [outcome(record(), late, slow, short)], SloOptions(tpot_ms=11))
    assert stage.goodput_req_s == pytest.approx(3 / stage.duration_s)
    slo = SloOptions(ttft_ms=200, tpot_ms=11)
    stage = stage_result("s", [outcome(record(), late, slow, short)], slo)
    assert stage.goodput_req_s == pytest.approx(2 / stage.duration_s)


def test_failed_requests_are_no_figures_and_make_the_stage_invalid():
    failed = record(first_s=9, cause="HTTP 503", message="busy")
    other = record(first_s=9, cause="HTTP 503", message="still busy")
    stage = stage_result("s", [outcome(record(), failed, other, num_not_sent=4)], SloOptions())
    assert (stage.num_requests, stage.num_failed, stage.num_output_tokens) == (3, 2, 5)
    assert (stage.failures, stage.examples) == ({"HTTP 503": 2}, {"HTTP 503": "busy"})
    assert stage.ttft_ms is not None
    assert stage.ttft_ms.max == pytest.approx(100)
    assert problems_of(stage) == [
        "s: 2 of 3 requests failed: HTTP 503 (2)",
        "s: 4 requests were not sent",
    ]


def test_a_stage_without_tokens_is_invalid():
    nothing = Record(start_s=0.0, end_s=1.0)
    stage = stage_result("s", [outcome(nothing)], SloOptions())
    assert problems_of(stage) == ["s: no tokens came"]
    assert stage_result("s", [], SloOptions()).output_tok_s == 0


def test_the_table_tells_what_failed_from_what_was_not_sent():
    failed = record(cause="HTTP 503")
    gone = stage_result("s", [outcome(record(), failed, num_not_sent=70)], SloOptions())
    shown = " ".join(rendered(next(tables(results([gone])))).split())
    assert "requests failed not sent in flight" in shown
    assert "s 2 1 70 " in shown
    whole = stage_result("s", [outcome(record())], SloOptions())
    assert "not sent" not in rendered(next(tables(results([whole]))))


@pytest.mark.parametrize(
    ("sign", "helps"),
    [
        ({"cpu_share": 0.9}, "bench.clients=3, or more free CPUs"),
        ({"cpu_share": 0.5, "lags_s": [0.03] * 9}, "bench.clients=3, or more free CPUs"),
        ({"lags_s": [0.03] * 9}, "it waited for a CPU"),
    ],
)
def test_a_client_that_is_the_bottleneck_says_so(sign, helps: str):
    stage = stage_result("s", [outcome(record()), outcome(record(), **sign)], SloOptions())
    assert stage.client.is_bottleneck
    assert helps in warnings_of(stage)[0]


def test_tokens_that_the_server_does_not_count_are_a_warning():
    stage = stage_result("s", [outcome(record(is_counted=False))], SloOptions())
    assert stage.tokens_counted_by == "parts"
    assert "usage" in warnings_of(stage)[-1]


def test_what_may_help_with_failures_is_told():
    stage = stage_result(
        "s", [outcome(record(), record(cause="answer of another length"))], SloOptions()
    )
    assert hints_on([stage]) == ["bench.ignore_eos=false, where answers end as they want to"]
    assert hints_on([stage_result("s", [outcome(record())], SloOptions())]) == []


def test_skew_is_the_most_against_the_mean():
    assert skew([10, 10, 40]) == 2
    assert skew([7, 7]) == 1
    assert skew([]) is skew([0, 0]) is None
