"""A load is a function of options and seed."""

import statistics
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.bench.benchmark import split
from launcher.bench.content import text, token_ids
from launcher.bench.load import draw, make_stages, make_warm_up
from launcher.bench.messages import Piece, Target
from launcher.bench.options import (
    BenchOptions,
    Distribution,
    InputOptions,
    OutputOptions,
    SharedPrefixOptions,
    TraceOptions,
)
from launcher.bench.trace import Entry

TARGET = Target(host="h", port=1, path="/", model="m", answer_s=1.0)


def test_each_concurrency_is_a_stage_of_sixteen_sessions_or_four_for_each():
    stages = make_stages(BenchOptions(concurrency=[1, 64]))
    assert [(each.name, len(each.sessions)) for each in stages] == [
        ("concurrency 1", 16),
        ("concurrency 64", 256),
    ]
    (turn,) = stages[0].sessions[0].turns
    assert (turn.num_tokens, turn.max_tokens) == (128, 64)


def test_the_same_seed_gives_the_same_load_and_another_another():
    lognormal = InputOptions(kind=Distribution.lognormal)
    options = BenchOptions(rate=[2.0, 8.0], concurrency=[], input=lognormal)
    assert make_stages(options) == make_stages(options)
    options.seed = 1
    other = make_stages(options)
    options.seed = 0
    assert other != make_stages(options)


def test_no_prompt_comes_twice_in_all_stages_and_the_warm_up():
    options = BenchOptions(concurrency=[4, 4])
    warm_up = make_warm_up(options)
    assert warm_up is not None
    keys = [
        piece.key
        for stage in (*make_stages(options), warm_up)
        for session in stage.sessions
        for turn in session.turns
        for piece in turn.pieces
    ]
    assert len(set(keys)) == len(keys) == 40


def test_arrivals_are_a_poisson_process():
    options = BenchOptions(rate=[5.0], num_sessions=4000)
    (stage,) = make_stages(options)
    starts = [session.start_s for session in stage.sessions]
    assert len(starts) == 4000
    gaps = [later - before for before, later in zip(starts, starts[1:], strict=False)]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.1)
    # Of an exponential distribution the standard deviation is the mean.
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_few_arrivals_are_of_the_rate_too(seed: int):
    (stage,) = make_stages(BenchOptions(rate=[2.0], num_sessions=200, seed=seed))
    assert stage.sessions[-1].start_s == pytest.approx(99.5, rel=0.05)
    (stage,) = make_stages(BenchOptions(rate=[2.0], num_sessions=1, seed=seed))
    assert [session.start_s for session in stage.sessions] == [0.0]


def test_sessions_share_one_of_several_prefixes_within_a_stage():
    options = BenchOptions(
        concurrency=[4, 4], shared_prefix=SharedPrefixOptions(tokens=50, groups=3), num_sessions=40
    )
    of_stage = []
    for stage in make_stages(options):
        firsts = [session.turns[0].pieces[0] for session in stage.sessions]
        assert {piece.num_tokens for piece in firsts} == {50}
        of_stage.append({piece.key for piece in firsts})
    assert [len(keys) for keys in of_stage] == [3, 3]
    assert not of_stage[0] & of_stage[1]


def test_only_the_first_turn_has_the_prefix():
    options = BenchOptions(turns=3, shared_prefix=SharedPrefixOptions(tokens=50))
    session = make_stages(options)[0].sessions[0]
    assert [turn.num_tokens for turn in session.turns] == [178, 128, 128]
    assert make_stages(options)[0].longest == 178 + 2 * 128 + 3 * 64


@given(
    kind=st.sampled_from(Distribution),
    mean=st.integers(1, 5000),
    bounds=st.tuples(st.integers(1, 5000), st.integers(1, 5000)).map(sorted),
    seed=st.integers(0, 10),
)
def test_lengths_keep_their_bounds(kind: Distribution, mean: int, bounds: list[int], seed: int):
    length = OutputOptions(kind=kind, mean=mean, min=bounds[0], max=bounds[1])
    drawn = draw(length, Random(seed))
    assert drawn == mean if kind is Distribution.fixed else bounds[0] <= drawn <= bounds[1]


@pytest.mark.parametrize("kind", [Distribution.lognormal, Distribution.exponential])
def test_lengths_have_their_mean(kind: Distribution):
    length = InputOptions(kind=kind, mean=200, stdev=50)
    random = Random(0)
    drawn = [draw(length, random) for _ in range(5000)]
    assert statistics.fmean(drawn) == pytest.approx(200, rel=0.05)
    stdev = 50 if kind is Distribution.lognormal else 200
    assert statistics.stdev(drawn) == pytest.approx(stdev, rel=0.1)


def test_a_trace_keeps_its_times_lengths_and_shared_blocks():
    entries = [Entry(1000, 1100, 10, [7, 8, 9]), Entry(3000, 600, 20, [7, 5])]
    (stage,) = make_stages(BenchOptions(trace=TraceOptions(path="f", speed=2)), entries)
    first, second = stage.sessions
    assert (first.start_s, second.start_s) == (0, 1)
    assert [piece.num_tokens for piece in first.turns[0].pieces] == [512, 512, 76]
    assert first.turns[0].pieces[0] == second.turns[0].pieces[0]
    assert (second.turns[0].num_tokens, second.turns[0].max_tokens) == (600, 20)
    assert stage.concurrency is None


def test_a_trace_is_scaled_to_a_smaller_model():
    entries = [Entry(0, 1100, 10, [7, 8]), Entry(0, 1, 1)]
    (stage,) = make_stages(BenchOptions(trace=TraceOptions(path="f", scale=0.125)), entries)
    first, second = (session.turns[0] for session in stage.sessions)
    assert [piece.num_tokens for piece in first.pieces] == [64, 64, 10]  # the rest is its own
    assert (first.max_tokens, second.num_tokens, second.max_tokens) == (1, 1, 1)


def test_prompts_are_as_long_as_asked_wherever_they_are_made():
    pieces = [Piece("a", 40), Piece("b", 60)]
    ids = token_ids(pieces, 32000)
    assert len(ids) == 100
    assert all(100 <= each < 32000 for each in ids)
    assert ids[:40] == token_ids([Piece("a", 40)], 32000)
    assert ids != token_ids([Piece("c", 40), Piece("b", 60)], 32000)
    assert len(text(pieces, 0.5).split()) == 50


@given(st.integers(64, 300_000))
def test_token_ids_are_of_the_vocabulary_less_its_ends(vocab_size: int):
    ids = token_ids([Piece(str(vocab_size), 50)], vocab_size)
    assert min(ids) > 0
    assert max(ids) < vocab_size - 1


@pytest.mark.parametrize(
    ("concurrency", "clients", "shares"), [(10, 3, [4, 3, 3]), (2, 3, [1, 1]), (8, 1, [8])]
)
def test_clients_share_a_stage(concurrency: int, clients: int, shares: list[int]):
    (stage,) = make_stages(BenchOptions(concurrency=[concurrency]))
    jobs = split(stage, TARGET, clients)
    assert [job.concurrency for job in jobs] == shares
    keys = [s.turns[0].pieces[0].key for job in jobs for s in job.sessions]
    assert sorted(keys) == sorted(s.turns[0].pieces[0].key for s in stage.sessions)
    assert len({job.begin_s for job in jobs}) == 1
