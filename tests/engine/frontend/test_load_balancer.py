from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import BalancerPolicy
from engine.frontend.load_balancer import Decision, RankWork, Reason, choose, work_of
from engine.protocol import OUTPUT_HORIZON

LEAST, ROUND = BalancerPolicy.least_loaded, BalancerPolicy.round_robin
TWO = BalancerPolicy.power_of_two

TOKENS = st.integers(0, 5)
NUMBERS = st.integers(0, 2**64 - 1)
CANDIDATES = st.dictionaries(st.integers(0, 9), st.tuples(TOKENS, TOKENS, TOKENS), min_size=1).map(
    lambda ranks: [
        RankWork(rank, own=unreported + earlier, reported=reported, unreported=unreported)
        for rank, (earlier, reported, unreported) in sorted(ranks.items())
    ]
)


def ranks(*own: int) -> list[RankWork]:
    """Ranks 0, 1, ... with so many tokens in flight."""
    return [RankWork(rank, own=tokens) for rank, tokens in enumerate(own)]


# --- every policy ---


@given(st.sampled_from(BalancerPolicy), CANDIDATES, st.integers(-1, 12), NUMBERS)
def test_a_candidate_is_chosen_and_the_same_for_the_same_reasons(policy, candidates, last, number):
    decision = choose(policy, candidates, last, number)
    assert decision.rank in {each.rank for each in candidates}
    assert decision == choose(policy, candidates, last, number)
    assert (decision.reason is Reason.only) == (len(candidates) == 1)


@given(CANDIDATES)
def test_what_is_in_flight_here_is_the_least_that_a_rank_has_to_do(candidates):
    for each in candidates:
        assert each.estimate >= each.own
        assert each.estimate >= each.reported


# --- least_loaded ---


def test_the_rank_with_the_least_work_is_chosen():
    assert choose(LEAST, ranks(30, 10, 20), last=1, number=0) == Decision(1, Reason.least_loaded)


def test_a_report_counts_with_what_was_sent_since():
    busy = RankWork(0, own=5, reported=100, unreported=5)
    assert choose(LEAST, [busy, RankWork(1, own=104)], 0, 0).rank == 1
    assert choose(LEAST, [busy, RankWork(1, own=106)], 0, 0).rank == 0


def test_equal_ranks_take_turns():
    chosen, last = [], -1
    for _ in range(6):
        last, reason = choose(LEAST, ranks(5, 5, 5), last, 0)
        assert reason is Reason.tie
        chosen.append(last)
    assert chosen == [0, 1, 2, 0, 1, 2]


def test_turns_skip_ranks_that_are_away():
    candidates = [RankWork(0), RankWork(3)]
    assert choose(LEAST, candidates, last=1, number=0).rank == 3
    assert choose(LEAST, candidates, last=3, number=0).rank == 0


@given(CANDIDATES, st.integers(-1, 12))
def test_no_rank_has_less_work_than_the_chosen(candidates, last):
    work = {each.rank: each.estimate for each in candidates}
    rank, reason = choose(LEAST, candidates, last, 0)
    assert work[rank] == min(work.values())
    if reason is not Reason.only:
        assert (reason is Reason.tie) == (list(work.values()).count(work[rank]) > 1)


@given(st.integers(1, 8), st.integers(0, 40))
def test_equal_requests_are_spread_evenly(num_ranks, num_requests):
    candidates = ranks(*[0] * num_ranks)
    last = -1
    for _ in range(num_requests):
        last = choose(LEAST, candidates, last, 0).rank
        candidates[last].own += 7
    work = [each.own for each in candidates]
    assert max(work) - min(work) <= 7


@given(st.integers(2, 8), st.integers(1, 6), st.lists(st.integers(1, 300), max_size=60), st.data())
def test_front_ends_with_old_reports_spread_their_requests(num_ranks, num_others, tokens, data):
    """Each front end sees the others' requests only now and then; no rank runs away."""
    views = [ranks(*[0] * num_ranks) for _ in range(num_others)]
    lasts = [index * num_ranks // num_others - 1 for index in range(num_others)]
    true = [0] * num_ranks
    for work in tokens:
        index = data.draw(st.integers(0, num_others - 1))
        if data.draw(st.booleans()):  # a snapshot arrives
            for each, all_of_it in zip(views[index], true, strict=True):
                each.reported, each.unreported = all_of_it, 0
        rank = lasts[index] = choose(LEAST, views[index], lasts[index], 0).rank
        views[index][rank].own += work
        views[index][rank].unreported += work
        true[rank] += work
    # Each front end alone keeps within one request, whatever it does not know of the others.
    assert max(true) - min(true) <= 2 * num_others * 300


# --- round_robin ---


@given(CANDIDATES, st.integers(-1, 12))
def test_in_a_round_everyone_has_a_turn(candidates, last):
    chosen = []
    for _ in candidates:
        last = choose(ROUND, candidates, last, 0).rank
        chosen.append(last)
    assert sorted(chosen) == [each.rank for each in candidates]
    assert sum(later < earlier for earlier, later in pairwise(chosen)) <= 1  # in order


# --- power_of_two ---


@given(CANDIDATES.filter(lambda candidates: len(candidates) > 1), NUMBERS)
def test_the_less_loaded_of_two_is_chosen(candidates, number):
    work = {each.rank: each.estimate for each in candidates}
    rank, reason = choose(TWO, candidates, -1, number)
    if reason is Reason.least_loaded:
        assert work[rank] < max(work.values())  # never the only worst
    else:
        assert list(work.values()).count(work[rank]) > 1


def test_every_pair_is_as_likely():
    candidates = ranks(*range(5))
    won = Counter(choose(TWO, candidates, -1, number).rank for number in range(5 * 4))
    assert won == {0: 8, 1: 6, 2: 4, 3: 2}  # the worst of five never


@pytest.mark.parametrize("number", range(4))
def test_of_two_ranks_both_are_looked_at(number: int):
    assert choose(TWO, ranks(9, 8), -1, number) == Decision(1, Reason.least_loaded)


# --- work ---


@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_work_never_grows_and_ends_at_nothing(num_prompt_tokens, max_tokens, data):
    num_output_tokens = data.draw(st.integers(0, max_tokens - 1))
    now = work_of(num_prompt_tokens, num_output_tokens, max_tokens)
    assert now >= work_of(num_prompt_tokens, num_output_tokens + 1, max_tokens) >= 0
    assert work_of(num_prompt_tokens, max_tokens, max_tokens) == 0


def test_a_request_without_a_limit_weighs_like_a_long_one():
    assert work_of(10, 0, 100_000) == 10 + OUTPUT_HORIZON
