"""How many tokens of prompts a step takes, by how long steps have taken."""

from hypothesis import given
from hypothesis import strategies as st

from engine.core.step_budget import FIRST_TOKENS, MIN_PROMPT_TOKENS, StepBudget


def test_before_anything_was_measured_a_step_is_short():
    assert StepBudget(2048, max_step_s=0.1).num_prompt_tokens(0) == FIRST_TOKENS
    assert StepBudget(100, max_step_s=0.1).num_prompt_tokens(0) == 100


def test_a_step_takes_as_many_tokens_as_have_fitted_into_its_time():
    budget = StepBudget(2048, max_step_s=0.1)
    budget.note(num_tokens=400, num_requests=2, step_s=0.2)
    assert budget.num_prompt_tokens(0) == 200
    assert budget.num_prompt_tokens(50) == 150


def test_what_fits_follows_the_newest_steps():
    budget = StepBudget(2048, max_step_s=0.1)
    budget.note(num_tokens=400, num_requests=2, step_s=0.2)
    budget.note(num_tokens=200, num_requests=2, step_s=10.0)
    after_a_hitch = budget.num_prompt_tokens(0)
    for _ in range(30):
        budget.note(num_tokens=200, num_requests=2, step_s=0.1)
    assert after_a_hitch == MIN_PROMPT_TOKENS
    assert 195 <= budget.num_prompt_tokens(0) <= 200


def test_steps_with_few_tokens_of_prompts_say_nothing_about_prompts():
    budget = StepBudget(2048, max_step_s=0.1)
    budget.note(num_tokens=400, num_requests=2, step_s=0.2)
    budget.note(num_tokens=60, num_requests=50, step_s=5.0)
    assert budget.num_prompt_tokens(0) == 200


def test_prompts_get_two_thirds_of_a_step_however_many_streams_run():
    budget = StepBudget(2048, max_step_s=0.1)
    budget.note(num_tokens=400, num_requests=2, step_s=0.2)
    assert budget.num_prompt_tokens(60) == 140
    assert budget.num_prompt_tokens(90) == 180
    assert budget.num_prompt_tokens(2000) == 48


def test_a_runner_that_needs_no_time_gets_all_that_is_allowed():
    budget = StepBudget(2048, max_step_s=0.1)
    budget.note(num_tokens=400, num_requests=2, step_s=0.0)
    assert budget.num_prompt_tokens(48) == 2000


@given(
    st.integers(1, 4096),
    st.floats(1e-3, 10),
    st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 64), st.floats(0, 100))),
    st.data(),
)
def test_prompts_always_move_and_a_step_never_has_too_many_tokens(
    max_tokens, max_step_s, steps, data
):
    budget = StepBudget(max_tokens, max_step_s)
    for num_tokens, num_requests, step_s in steps:
        budget.note(num_tokens, num_requests, step_s)
    num_decodes = data.draw(st.integers(0, max_tokens))
    num_prompt_tokens = budget.num_prompt_tokens(num_decodes)
    assert num_prompt_tokens >= min(MIN_PROMPT_TOKENS, max_tokens - num_decodes)
    assert num_decodes + num_prompt_tokens <= max_tokens
