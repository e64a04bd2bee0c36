from hypothesis import given
from hypothesis import strategies as st

from engine.config import BalancerPolicy
from engine.frontend.load_balancer import OUTPUT_HORIZON, choose, work_of

LEAST = BalancerPolicy.least_loaded


def test_the_rank_with_the_least_work_is_chosen():
    assert choose(LEAST, {0: 30, 1: 10, 2: 20}, last=1) == 1


def test_equal_ranks_take_turns():
    chosen, last = [], -1
    for _ in range(6):
        last = choose(LEAST, {0: 5, 1: 5, 2: 5}, last)
        chosen.append(last)
    assert chosen == [0, 1, 2, 0, 1, 2]


def test_turns_skip_ranks_that_are_away():
    assert choose(LEAST, {0: 0, 3: 0}, last=1) == 3
    assert choose(LEAST, {0: 0, 3: 0}, last=3) == 0


@given(st.dictionaries(st.integers(0, 9), st.integers(0, 3), min_size=1), st.integers(-1, 12))
def test_no_rank_has_less_work_than_the_chosen(work, last):
    assert work[choose(LEAST, work, last)] == min(work.values())


@given(st.integers(1, 8), st.integers(0, 40))
def test_equal_requests_are_spread_evenly(num_ranks, num_requests):
    work = dict.fromkeys(range(num_ranks), 0)
    last = -1
    for _ in range(num_requests):
        last = choose(LEAST, work, last)
        work[last] += 7
    assert max(work.values()) - min(work.values()) <= 7


@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_work_never_grows_and_ends_at_nothing(num_prompt_tokens, max_tokens, data):
    num_output_tokens = data.draw(st.integers(0, max_tokens - 1))
    now = work_of(num_prompt_tokens, num_output_tokens, max_tokens)
    assert now >= work_of(num_prompt_tokens, num_output_tokens + 1, max_tokens) >= 0
    assert work_of(num_prompt_tokens, max_tokens, max_tokens) == 0


def test_a_request_without_a_limit_weighs_like_a_long_one():
    assert work_of(10, 0, 100_000) == 10 + OUTPUT_HORIZON
