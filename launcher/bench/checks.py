"""What the options of `bench` can have wrong together."""

from collections.abc import Iterator

from launcher.bench.options import Api, BenchOptions, Distribution, LengthOptions
from launcher.config_errors import Problem


def broken_bench_rules(options: BenchOptions) -> Iterator[Problem]:
    """All that is wrong, each with an override that mends it."""
    trace = options.trace.path
    if trace == "":
        yield Problem(
            "bench.trace.path must be a file with bench=trace: (empty)", "bench.trace.path=FILE"
        )
    if trace is None and not options.rate and not options.concurrency:
        message = "bench.concurrency or bench.rate must hold a number"
        yield Problem(f"{message}: both are empty", "bench.concurrency=[4]")
    if options.turns > 1 and options.api is not Api.chat:
        message = f"bench.api must be chat with bench.turns={options.turns}"
        yield Problem(f"{message}: {options.api.name}", "bench.api=chat")
    if options.turns > 1 and trace:
        message = "bench.turns must be 1 with a trace, whose requests stand alone"
        yield Problem(f"{message}: {options.turns}", "bench.turns=1")
    yield from _length("bench.input", options.input)
    yield from _length("bench.output", options.output)


def _length(key: str, length: LengthOptions) -> Iterator[Problem]:
    if length.kind is Distribution.fixed:
        return
    if length.max is None:
        if length.kind is Distribution.uniform:
            message = f"{key}.max must be a number with {key}.kind=uniform"
            yield Problem(f"{message}: null", f"{key}.max={max(length.min, 2 * length.mean)}")
    elif length.max < length.min:
        message = f"{key}.max must be at least {key}.min ({length.min})"
        yield Problem(f"{message}: {length.max}", f"{key}.max={length.min}")
