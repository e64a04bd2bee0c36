"""What is read of `/metrics`."""

import pytest

from launcher.bench.metrics import parse_metrics, prefix_hit_rate, rank_skew, rank_tokens

PAGE = """\
# HELP {p}:prompt_tokens_total Prompt tokens
# TYPE {p}:prompt_tokens_total counter
{p}:prompt_tokens_total{{model_name="a \\"b\\"",{rank}="0"}} {prompt}
{p}:generation_tokens_total{{model_name="m",{rank}="0"}} {output}
{p}:generation_tokens_total{{model_name="m",{rank}="1"}} 30.0
{p}:prefix_cache_queries_total{{{rank}="0",model_name="m"}} {queries}
{p}:prefix_cache_hits_total{{{rank}="0",model_name="m"}} {hits}
{p}:iteration_tokens_total_bucket{{le="+Inf",{rank}="0"}} 5
process_cpu_seconds_total 1
"""
FLOTILLA = {"p": "flotilla", "rank": "rank"}
VLLM = {"p": "vllm", "rank": "engine"}


@pytest.mark.parametrize("server", [FLOTILLA, VLLM])
def test_what_ranks_did_between_two_scrapes(server: dict[str, str]):
    before = parse_metrics(PAGE.format(**server, prompt=5, output=10, queries=100, hits="9e1"))
    after = parse_metrics(PAGE.format(**server, prompt=25, output=40, queries=300, hits=140))
    assert before.total("generation_tokens_total") == 40
    assert prefix_hit_rate(before, after) == 0.25
    ranks = rank_tokens(before, after)
    counts = [(each.rank, each.num_prompt_tokens, each.num_output_tokens) for each in ranks]
    assert counts == [(0, 20, 30), (1, 0, 0)]
    assert rank_skew(ranks) == 2


def test_a_rank_that_was_started_again_counts_from_0():
    before = parse_metrics(PAGE.format(**FLOTILLA, prompt=50, output=100, queries=100, hits=90))
    after = parse_metrics(PAGE.format(**FLOTILLA, prompt=20, output=40, queries=40, hits=10))
    assert prefix_hit_rate(before, after) == 0.25
    first = rank_tokens(before, after)[0]
    assert (first.num_prompt_tokens, first.num_output_tokens) == (20, 40)


def test_a_page_before_the_first_report_is_told_from_one_of_another_server():
    early = parse_metrics('flotilla:http_requests_in_flight{frontend="frontend-0"} 0\n')
    assert (early.has_ranks, early.total("generation_tokens_total")) == (True, None)


def test_a_page_without_them_says_nothing():
    empty = parse_metrics("python_info 1\n")
    assert not empty.has_ranks
    assert empty.total("generation_tokens_total") is None
    assert prefix_hit_rate(empty, empty) is None
    assert rank_tokens(empty, empty) == []


def test_phases_of_the_start_by_process():
    name = "flotilla:startup_phase_seconds"
    page = parse_metrics(
        f'{name}{{model_name="m",rank="1",phase="warming up"}} 2.5\n'
        f'{name}{{model_name="m",frontend="frontend-0",phase="importing"}} 1\n'
    )
    assert page.phases_s == {"rank 1": {"warming up": 2.5}, "frontend-0": {"importing": 1}}
