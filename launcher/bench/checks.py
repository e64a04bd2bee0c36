"""What the options of `bench` can have wrong together."""

from collections.abc import Iterator, Sequence

from launcher.bench.options import Api, BenchOptions, Distribution, LengthOptions, PromptKind
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


def without_effect(options: BenchOptions, overrides: Sequence[str]) -> Iterator[str]:
    """A line for each key of `bench` that was typed, and that this load does not read."""
    reasons = dict(_unread(options))
    for text in overrides:
        key = text.lstrip("+").partition("=")[0]
        why = reasons.get(key) or reasons.get(key.rpartition(".")[0])
        if why is not None:
            yield f"{text} has no effect with {why}"


def _unread(options: BenchOptions) -> Iterator[tuple[str, str]]:
    """Keys or sections, and what they have no effect with."""
    if options.trace.path:
        loads = [key for key in ("concurrency", "rate") if getattr(options, key)]
        of_others = (*loads, "input", "output", "shared_prefix", "think_s")
        yield from ((f"bench.{key}", "bench.trace.path") for key in of_others)
        return
    if options.rate and options.concurrency:
        rate = ",".join(f"{each:g}" for each in options.rate)
        yield "bench.concurrency", f"bench.rate=[{rate}]: bench.rate=[] ends that"
    for key in ("speed", "scale", "block_size"):
        yield f"bench.trace.{key}", "bench.trace.path=null"
    if options.api is Api.chat and options.prompts is not PromptKind.text:
        yield "bench.prompts", "bench.api=chat"
    if options.turns == 1:
        yield "bench.think_s", "bench.turns=1"
    if not options.shared_prefix.tokens:
        yield "bench.shared_prefix.groups", "bench.shared_prefix.tokens=0"
    for name, length in (("input", options.input), ("output", options.output)):
        key, kind = f"bench.{name}", f"bench.{name}.kind={length.kind.name}"
        if length.kind is Distribution.fixed:
            yield from ((f"{key}.{each}", kind) for each in ("min", "max"))
        if length.kind is Distribution.uniform:
            yield f"{key}.mean", kind
        if length.kind is not Distribution.lognormal:
            yield f"{key}.stdev", kind


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
