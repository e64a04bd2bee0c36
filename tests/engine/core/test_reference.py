"""The single process that a smoke test compares with."""

import pytest

from engine.checkpoints.sources import model_directory
from engine.config import ModelKind, ModelOptions, Settings
from engine.core import reference
from engine.core.reference import Task, decode
from tests.engine.greedy import make_core, run
from tests.engine.settings import dummy_settings, make_settings

TEXT = "Gravity is"
NUM_TOKENS = 24


def task(settings: Settings, prompt: str = TEXT) -> Task:
    return Task(settings=settings, prompt=prompt, max_tokens=NUM_TOKENS, device=None, num_threads=1)


@pytest.fixture
def tiny() -> Settings:
    options = ModelOptions(kind=ModelKind.tiny)
    return make_settings(model_directory(options), model=options)


def test_it_says_what_an_engine_core_says(tiny: Settings):
    told = decode(task(tiny))
    [tokens] = run(
        make_core(tiny, model_directory(tiny.model)), [told.prompt_token_ids], NUM_TOKENS
    )
    assert told.prompt_token_ids == list(TEXT.encode())
    assert (told.num_tokens, told.num_certain) == (NUM_TOKENS, NUM_TOKENS)
    assert told.text == bytes(token for token in tokens if token < 256).decode(errors="replace")


def test_nothing_is_certain_from_the_first_tie_on(tiny: Settings, monkeypatch):
    monkeypatch.setattr(reference, "TIE", 1e9)
    told = decode(task(tiny))
    assert (told.num_tokens, told.num_certain, told.text) == (NUM_TOKENS, 0, "")


def test_the_dummy_says_the_alphabet():
    assert decode(task(dummy_settings())).text == "abcdefghijklmnopqrstuvwx"


def test_a_short_context_is_shared_by_prompt_and_answer():
    told = decode(task(dummy_settings(max_model_len=16)))
    assert (len(told.prompt_token_ids), told.num_tokens) == (8, 8)
