"""The real model gives transformers' tokens: batched, cached, chunked or preempted."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.checkpoints.sources import model_directory
from engine.config import Kernels, ModelOptions
from tests.engine.greedy import Reference, Seen, make_core, one_by_one, run
from tests.engine.settings import make_settings

pytestmark = pytest.mark.timeout(600)

NUM_TOKENS = 64
PREFIX = (
    "You are a careful assistant. You answer in whole sentences, you say so when you do not know "
    "something, and you never make up names, numbers or places. The user is in a hurry, so be "
    "brief, but do not leave out what matters. "
)
TEXTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "List three uses of copper.",
    "def fibonacci(n):",
    "The quick brown fox",
    "In the year 1969,",
    "Translate to German: good morning",
    "2 + 2 =",
    "Once upon a time in a small village there lived",
    "The three laws of thermodynamics are",
    "SELECT name, age FROM",
    "How do I boil an egg?",
    "Water boils at",
    "The opposite of hot is",
    "Dear Sir or Madam,",
    "A haiku about autumn:",
    "Why is the sky blue?",
    "import numpy as np\n\n",
    "The longest river in the world",
    "Q: Who wrote Hamlet?\nA:",
]


@pytest.fixture(scope="module")
def directory() -> Path:
    return model_directory(ModelOptions())


@pytest.fixture(scope="module")
def prompts(directory: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.fixture(scope="module")
def reference(directory: Path) -> Reference:
    return Reference(directory)


@pytest.fixture(scope="module", params=[Kernels.native, Kernels.torch], ids=lambda k: k.value)
def kernels(request) -> Kernels:
    return request.param


@pytest.fixture(scope="module")
def alone(directory: Path, prompts, reference: Reference) -> list[list[int]]:
    """Each prompt's output when it runs alone, checked here, for the other tests to compare."""
    core = make_core(make_settings(directory, kernels=Kernels.native), directory)
    outputs = list(one_by_one(core, prompts, NUM_TOKENS))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output) == NUM_TOKENS
        reference.check(prompt, output)
    return outputs


def check(outputs, alone, prompts, reference: Reference) -> None:
    for output, expected, prompt in zip(outputs, alone, prompts, strict=True):
        if output != expected:
            reference.check(prompt, output)


def test_requests_that_run_alone_give_the_reference_tokens(alone):
    assert len(alone) == len(TEXTS)


def test_requests_that_run_alone_with_torchs_operators(directory, prompts, alone, reference):
    core = make_core(make_settings(directory, kernels=Kernels.torch), directory)
    some = slice(None, None, 5)  # they take two seconds each
    outputs = one_by_one(core, prompts[some], NUM_TOKENS)
    check(outputs, alone[some], prompts[some], reference)


def test_mixed_batches_with_different_arrival_times(directory, prompts, kernels, alone, reference):
    core = make_core(make_settings(directory, kernels=kernels, max_num_seqs=16), directory)
    arrivals = [(index * 7) % 40 for index in range(len(prompts))]
    check(run(core, prompts, NUM_TOKENS, arrivals), alone, prompts, reference)


def test_prefix_cache_hits(directory, prompts, kernels, reference):
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    shared = [tokenizer.encode(PREFIX + text).ids for text in TEXTS]
    core = make_core(make_settings(directory, kernels=kernels), directory)
    first = run(core, shared[:1], NUM_TOKENS)
    with_others, with_itself = Seen(), Seen()
    rest = run(core, shared[1:], NUM_TOKENS, seen=with_others)
    again = run(core, shared[:1], NUM_TOKENS, seen=with_itself)
    common = (len(tokenizer.encode(PREFIX).ids) - 1) // 16 * 16  # its last token may merge
    assert common > 16
    assert all(request.num_cached >= common for request in with_others.requests.values())
    assert with_itself.num_cached == (len(shared[0]) - 1) // 16 * 16
    for prompt, output in zip(shared, first + rest, strict=True):
        reference.check(prompt, output)
    assert again == first


def test_prefill_in_chunks_of_seven_tokens(directory, prompts, kernels, alone, reference):
    settings = make_settings(directory, kernels=kernels, max_num_batched_tokens=7, max_num_seqs=3)
    core = make_core(settings, directory)
    longest, seen = max(prompts, key=len), Seen()
    run(core, [longest], 1, seen=seen)
    assert seen.num_steps == -(-len(longest) // 7) > 1
    check(run(core, prompts, NUM_TOKENS), alone, prompts, reference)


def test_a_cache_so_small_that_requests_are_preempted(
    directory, prompts, kernels, alone, reference
):
    settings = make_settings(
        directory, kernels=kernels, max_model_len=128, cache={"num_blocks": 24}
    )
    core = make_core(settings, directory)
    outputs = run(core, prompts, NUM_TOKENS)
    assert core.num_preemptions > 10
    check(outputs, alone, prompts, reference)
