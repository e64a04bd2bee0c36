"""Keys of a load that were typed in vain."""

import pytest

from launcher.bench.checks import without_effect
from launcher.bench.options import (
    Api,
    BenchOptions,
    Distribution,
    InputOptions,
    SharedPrefixOptions,
    TraceOptions,
)


@pytest.mark.parametrize(
    ("options", "typed", "why"),
    [
        (
            BenchOptions(rate=[1.0, 2.5]),
            "bench.concurrency=[4]",
            "bench.rate=[1,2.5]: bench.rate=[] ends that",
        ),
        (BenchOptions(trace=TraceOptions(path="f")), "bench.concurrency=[4]", "bench.trace.path"),
        (BenchOptions(trace=TraceOptions(path="f")), "bench.input.mean=4", "bench.trace.path"),
        (BenchOptions(), "bench.trace.scale=0.5", "bench.trace.path=null"),
        (BenchOptions(), "bench.think_s=1", "bench.turns=1"),
        (BenchOptions(), "++bench.output.max=10", "bench.output.kind=fixed"),
        (BenchOptions(), "bench.shared_prefix.groups=2", "bench.shared_prefix.tokens=0"),
        (BenchOptions(api=Api.chat), "bench.prompts=token_ids", "bench.api=chat"),
        (
            BenchOptions(input=InputOptions(kind=Distribution.uniform, max=9)),
            "bench.input.mean=4",
            "bench.input.kind=uniform",
        ),
    ],
)
def test_a_key_that_the_load_does_not_read_is_named(options: BenchOptions, typed: str, why: str):
    assert list(without_effect(options, ["dp=2", typed])) == [f"{typed} has no effect with {why}"]


def test_keys_that_are_read_are_not_named():
    options = BenchOptions(
        turns=2,
        api=Api.chat,
        input=InputOptions(kind=Distribution.lognormal, max=9),
        shared_prefix=SharedPrefixOptions(tokens=5),
    )
    typed = [
        "bench=chat",
        "bench.concurrency=[4]",
        "bench.input.max=9",
        "bench.input.mean=4",
        "bench.shared_prefix.groups=2",
        "bench.think_s=1",
        "bench.seed=2",
        "bench.output.mean=4",
    ]
    assert list(without_effect(options, typed)) == []
    options = BenchOptions(rate=[1.0], concurrency=[])
    assert list(without_effect(options, ["bench.concurrency=[]", "bench.trace.path=null"])) == []
