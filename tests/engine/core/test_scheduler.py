"""The scheduler by examples, and by random lives of many requests (hypothesis)."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.block_manager import BlockManager
from engine.core.request import Request, RequestKey
from engine.core.scheduler import Produced, Scheduler
from engine.core.step_budget import StepBudget
from engine.protocol import OUTPUT_HORIZON, FinishReason
from engine.sampling import SamplingParams

BLOCK = 4
EOS = 9


def make_scheduler(num_blocks=64, max_num_seqs=8, budget=32, max_model_len=64) -> Scheduler:
    blocks = BlockManager(num_blocks, BLOCK, prefix_caching=True)
    return Scheduler(blocks, max_num_seqs, StepBudget(budget, max_step_s=1.0), max_model_len, [EOS])


def make_request(
    request_id: int, tokens: list[int], max_tokens=4, ignore_eos=False, **sampling_options: Any
) -> Request:
    sampling = SamplingParams(
        max_tokens, temperature=0.0, ignore_eos=ignore_eos, **sampling_options
    )
    return Request(RequestKey("test", request_id), list(tokens), len(tokens), sampling)


def step(scheduler: Scheduler, token_id: int = 1) -> tuple[dict[int, int], list[Produced]]:
    """One step that gives this token to all that want one; how many tokens each computed."""
    scheduled = scheduler.schedule()
    counts = {item.request.key.request_id: item.num_tokens for item in scheduled}
    wanting = [item for item in scheduled if item.wants_token]
    return counts, scheduler.postprocess(scheduled, [token_id] * len(wanting))


def test_a_prompt_is_computed_then_one_token_a_step():
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1, 2, 3]))
    assert [step(scheduler)[0] for _ in range(4)] == [{0: 3}, {0: 1}, {0: 1}, {0: 1}]
    assert scheduler.num_requests == 0


def test_a_long_prompt_is_computed_in_chunks_and_gives_its_token_after_the_last():
    scheduler = make_scheduler(budget=7)
    scheduler.add(make_request(0, list(range(10, 26))))
    steps = [step(scheduler) for _ in range(3)]
    assert [counts for counts, _ in steps] == [{0: 7}, {0: 7}, {0: 2}]
    assert [len(produced) for _, produced in steps] == [0, 0, 1]


def test_running_requests_come_before_waiting_ones():
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request(0, [1] * 4))
    step(scheduler)
    scheduler.add(make_request(1, [2] * 20))
    assert step(scheduler)[0] == {0: 1, 1: 7}


def test_decodes_come_before_a_prompt_that_is_more_urgent():
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request(0, [1] * 4))
    step(scheduler)
    scheduler.add(make_request(1, [2] * 20, priority=-1))
    assert [step(scheduler)[0] for _ in range(3)] == [{0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 6}]


def test_prompts_take_what_fits_into_the_time_of_a_step():
    budget = StepBudget(max_tokens=1000, max_step_s=0.1)
    scheduler = Scheduler(BlockManager(1000, BLOCK, prefix_caching=True), 8, budget, 1000, [EOS])
    budget.note(num_tokens=200, num_requests=1, step_s=0.125)
    scheduler.add(make_request(0, [1] * 4))
    step(scheduler)
    for index in (1, 2):
        scheduler.add(make_request(index, [index + 1] * 90))
    assert [step(scheduler)[0] for _ in range(2)] == [{0: 1, 1: 90, 2: 69}, {0: 1, 1: 1, 2: 21}]


def test_no_more_requests_run_than_allowed():
    scheduler = make_scheduler(max_num_seqs=2)
    for index in range(3):
        scheduler.add(make_request(index, [index] * 3))
    assert set(step(scheduler)[0]) == {0, 1}


def test_an_end_token_ends_a_request_and_is_its_last():
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1]))
    _, [produced] = step(scheduler, EOS)
    assert produced.finish_reason is FinishReason.stop
    assert produced.token_id == EOS


def test_an_end_token_may_be_ignored():
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1], ignore_eos=True))
    _, [produced] = step(scheduler, EOS)
    assert produced.finish_reason is None


def test_a_stop_token_ends_a_request_and_is_told():
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1], ignore_eos=True, stop_token_ids=(5, 6)))
    _, [produced] = step(scheduler, 6)
    assert produced.finish_reason is FinishReason.stop
    assert produced.stop_token_id == 6
    assert produced.output().stop_token_id == 6


def test_no_token_ends_a_request_before_its_least_number():
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1], min_tokens=2, stop_token_ids=(5,)))
    reasons = [step(scheduler, token)[1][0].finish_reason for token in (EOS, 5, EOS)]
    assert reasons == [None, None, FinishReason.stop]


def test_waiting_requests_run_by_priority_then_as_they_came():
    scheduler = make_scheduler(max_num_seqs=1)
    for index, priority in enumerate([0, 5, -1, 0, -1]):
        scheduler.add(make_request(index, [1, 2], max_tokens=1, priority=priority))
    order = [next(iter(step(scheduler)[0])) for _ in range(5)]
    assert order == [2, 4, 0, 3, 1]


def test_a_more_urgent_prompt_does_not_wait_for_the_rest_of_one_that_has_begun():
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request(0, [1] * 20))
    assert step(scheduler)[0] == {0: 8}
    scheduler.add(make_request(1, [2] * 12))
    scheduler.add(make_request(2, [3] * 12, priority=-1))
    assert [step(scheduler)[0] for _ in range(3)] == [{2: 8}, {2: 4, 0: 4}, {2: 1, 0: 7}]


def test_a_waiting_request_does_not_take_the_place_of_a_running_one():
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request(0, [1]))
    step(scheduler)
    scheduler.add(make_request(1, [1], priority=-1))
    assert set(step(scheduler)[0]) == {0}


def test_when_blocks_run_out_the_least_urgent_gives_way():
    scheduler = make_scheduler(num_blocks=4, max_model_len=16)
    old = make_request(0, [1] * 7, 8, priority=1)
    young = make_request(1, [2] * 7, 8)
    scheduler.add(old)
    step(scheduler)
    scheduler.add(young)
    step(scheduler)
    step(scheduler)
    assert (old.num_preemptions, young.num_preemptions) == (1, 0)


def test_requests_with_the_same_prompt_share_what_one_step_computes():
    scheduler = make_scheduler()
    for index in range(3):
        scheduler.add(make_request(index, [*range(10, 20), index]))
    assert step(scheduler)[0] == {0: 11, 1: 3, 2: 3}


def test_a_prompt_longer_than_the_budget_is_still_shared():
    scheduler = make_scheduler(budget=9)
    for index in range(2):
        scheduler.add(make_request(index, list(range(10, 24))))
    assert [step(scheduler)[0] for _ in range(2)] == [{0: 9}, {0: 5, 1: 2}]


def test_a_prompt_that_is_scored_takes_nothing_from_the_cache():
    scheduler = make_scheduler(budget=64)
    scheduler.add(make_request(0, list(range(10, 24))))
    scheduler.add(make_request(1, list(range(10, 24)), prompt_logprobs=0))
    scheduler.add(make_request(2, list(range(10, 24))))
    assert step(scheduler)[0] == {0: 14, 1: 14, 2: 2}


def test_a_request_ends_at_its_own_limit_and_at_the_models():
    scheduler = make_scheduler(max_model_len=6)
    scheduler.add(make_request(0, [1] * 2, max_tokens=2))
    scheduler.add(make_request(1, [2] * 4, max_tokens=9))
    step(scheduler)
    _, produced = step(scheduler)
    assert [item.finish_reason for item in produced] == [FinishReason.length] * 2


def test_when_blocks_run_out_the_youngest_gives_way_and_keeps_its_tokens():
    scheduler = make_scheduler(num_blocks=4, max_model_len=16)
    old, young = make_request(0, [1] * 7, 8), make_request(1, [2] * 7, 8)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)
    step(scheduler)  # both need a third block next
    assert step(scheduler)[0] == {0: 1}
    assert young.num_preemptions == 1
    assert young.num_outputs == 2
    assert young.block_ids == []


def test_a_preempted_request_is_computed_anew_with_its_outputs():
    scheduler = make_scheduler(num_blocks=4, max_model_len=16)
    young = make_request(1, [2] * 7, 5)
    scheduler.add(make_request(0, [1] * 7, 3))
    scheduler.add(young)
    while young.num_preemptions == 0:
        step(scheduler)
    while scheduler.num_requests:
        step(scheduler)
    assert young.num_outputs == 5


def test_an_aborted_request_frees_its_blocks():
    blocks = BlockManager(8, BLOCK, prefix_caching=True)
    scheduler = Scheduler(blocks, 8, StepBudget(32, max_step_s=1.0), 64, [EOS])
    request = make_request(0, [1] * 9)
    scheduler.add(request)
    step(scheduler)
    scheduler.abort(request.key)
    scheduler.abort(request.key)
    assert blocks.num_free == 8
    assert scheduler.num_requests == 0


def test_requests_of_a_front_end_that_is_gone_are_forgotten():
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1]))
    other = Request(RequestKey("other", 0), [1], 1, SamplingParams(4))
    scheduler.add(other)
    step(scheduler)
    scheduler.abort_all_of("test")
    assert scheduler.num_requests == 1


def test_a_prompt_without_room_for_an_answer_is_refused():
    scheduler = make_scheduler(max_model_len=8)
    with pytest.raises(ValueError, match="8 prompt tokens leave no room in 8"):
        scheduler.add(make_request(0, [1] * 8))


def test_a_request_that_is_there_already_is_refused():
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1]))
    with pytest.raises(ValueError, match="there already"):
        scheduler.add(make_request(0, [1]))


lives = st.lists(
    st.tuples(
        st.integers(0, 30),  # arrival
        st.integers(1, 40),  # prompt tokens
        st.integers(1, 20),  # output tokens
        st.booleans(),  # shares a prefix with others
        st.none() | st.integers(1, 15),  # aborted so many steps after its arrival
        st.integers(-1, 1),  # priority
    ),
    min_size=1,
    max_size=20,
)


@given(lives, st.integers(16, 40), st.integers(1, 6), st.integers(6, 40), st.booleans())
def test_every_request_ends_with_its_tokens_and_every_block_comes_back(
    requests, num_blocks, max_num_seqs, budget, prefix_caching
):
    blocks = BlockManager(num_blocks, BLOCK, prefix_caching)
    step_budget = StepBudget(budget, max_step_s=1.0)
    scheduler = Scheduler(blocks, max_num_seqs, step_budget, max_model_len=64, eos_token_ids=[])
    alive, aborted, now = {}, set(), 0
    contents: dict[tuple[int, int], int] = {}
    while now <= 45 or scheduler.num_requests:
        for index, life in enumerate(requests):
            arrival, num_prompt, num_output, shared, abort_after, priority = life
            if arrival == now:
                tokens = [0 if shared else index + 1] * num_prompt
                num_output = min(num_output, 64 - num_prompt)
                alive[index] = make_request(index, tokens, num_output, priority=priority)
                scheduler.add(alive[index])
            elif abort_after is not None and now == arrival + abort_after:
                scheduler.abort(alive[index].key)
                aborted.add(index)
        check_step(scheduler, budget, max_num_seqs, contents)
        check_work(scheduler, alive.values())
        now += 1
        assert now < 5000, "requests never end"
    assert blocks.num_free == num_blocks
    for index, request in alive.items():
        if index not in aborted:
            assert request.num_outputs == request.sampling.max_tokens


def check_work(scheduler: Scheduler, requests: Iterable[Request]) -> None:
    there = [request for request in requests if request.key in scheduler._by_key]
    assert scheduler.num_waiting + scheduler.num_running == len(there) == scheduler.num_requests
    assert scheduler.work() == (
        sum(request.num_to_prefill for request in there),
        sum(request.num_ahead for request in there),
    )


def test_a_request_with_a_huge_limit_counts_as_far_as_the_horizon():
    scheduler = make_scheduler(max_num_seqs=1)
    for index in range(2):
        scheduler.add(make_request(index, [1, 2, 3, 4, 5], max_tokens=10_000))
    assert scheduler.work() == (10, 2 * OUTPUT_HORIZON)
    step(scheduler)
    assert scheduler.admitted == [scheduler._running[0]]
    assert scheduler.work() == (5, 2 * OUTPUT_HORIZON)
    step(scheduler)
    assert scheduler.admitted == []


def check_step(
    scheduler: Scheduler, budget: int, max_num_seqs: int, contents: dict[tuple[int, int], int]
) -> None:
    """One step, with what it keeps: `contents` is the cache, a prefix's hash in each slot."""
    scheduled = scheduler.schedule()
    assert sum(item.num_tokens for item in scheduled) <= budget
    assert len(scheduled) <= max_num_seqs
    written: Counter[tuple[int, int]] = Counter()
    for item in scheduled:
        request = item.request
        end = request.num_computed + item.num_tokens
        assert item.num_tokens > 0
        assert len(request.block_ids) * BLOCK >= end
        for position in range(request.num_computed, end):
            slot = request.block_ids[position // BLOCK], position % BLOCK
            written[slot] += 1
            contents[slot] = hash(tuple(request.token_ids[: position + 1]))
    assert all(count == 1 for count in written.values()), "two tokens in one slot"
    for item in scheduled:
        request = item.request
        for position in range(request.num_computed):
            slot = request.block_ids[position // BLOCK], position % BLOCK
            assert contents[slot] == hash(tuple(request.token_ids[: position + 1]))
    wanting = [item for item in scheduled if item.wants_token]
    scheduler.postprocess(scheduled, list(range(100, 100 + len(wanting))))
