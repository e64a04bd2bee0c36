"""`action=bench`: measures a deployment, or a server that runs already, and writes the results."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import psutil

from launcher import BEGAN_S
from launcher.actions.serve import Serving
from launcher.api_keys import without_keys
from launcher.bench.benchmark import Benchmark, Load
from launcher.bench.checks import without_effect
from launcher.bench.directory import ResultsDirectory
from launcher.bench.environment import read_environment
from launcher.bench.load import make_stages, make_warm_up
from launcher.bench.measure import hints_on, problems_of, warnings_of
from launcher.bench.options import BenchOptions
from launcher.bench.resources import local_processes, process_tree
from launcher.bench.results import Results, StartUp
from launcher.bench.server import Server
from launcher.bench.table import tables
from launcher.bench.trace import read_trace
from launcher.config import LaunchConfig
from launcher.end_signals import end_signals
from launcher.errors import Interrupted, LauncherError, Refused, report
from launcher.executors.base import Executor, Means
from launcher.plan import DeploymentPlan
from launcher.smoke.results import print_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured, and what the results shall say of it."""

    name: str
    options: BenchOptions
    overrides: list[str]
    """As typed, less API keys."""
    config: dict[str, Any]
    """All that there is to know of it, as plain values, but for API keys."""

    @classmethod
    def of(cls, config: LaunchConfig, overrides: Sequence[str]) -> "Asked":
        """What a config says; where nothing is started, only its section `bench` counts."""
        whole = config.bench.url is None
        values = asdict(config) if whole else {"bench": asdict(config.bench)}
        if whole:
            del values["frontend"]["api_keys"]
        return cls(
            name=config.name,
            options=config.bench,
            overrides=without_keys(overrides),
            config=msgspec.to_builtins(values),
        )


def bench(plan: DeploymentPlan, means: Means, asked: Asked) -> int:
    """Measures the deployment of a plan: starts it, drives the load, drains it.

    Returns:
        0: the results are valid. 1: they are not, and say why.

    Raises:
        Refused: Nothing was started.
        Interrupted: By a signal; there are no results.
        NotWritten: The results were shown, and could not be written.
    """
    run = _Run(asked, plan.settings.max_model_len)
    run.model, run.plan_digest = plan.settings.model_name, plan.digest

    def measure(executor: Executor, say: Callable[[str], None]) -> None:
        run.ready_s = time.monotonic() - BEGAN_S
        key = next(iter(means.access.api_keys), None)
        server = Server.at(executor.addresses[0], key)
        processes = local_processes(server.members())
        run.measure(server, plan.settings.facts.vocab_size, processes, say)

    async def serve() -> None:
        try:
            await Serving(plan, means, measure, stop_check=run.end).run()
        finally:
            run.end()  # the thread that measures would wait for its clients

    return run.to_end(lambda: asyncio.run(serve()))


def bench_url(url: str, asked: Asked) -> int:
    """Measures a server that runs already; nothing is started but clients. As `bench`."""
    server = Server.at(url, _read_key(asked.options.api_key_file))
    run = _Run(asked, None)

    def measure() -> None:
        run.url = server.url
        run.model = server.model(asked.options.model)
        pid = asked.options.pid
        try:
            tree = process_tree(pid) if pid is not None else local_processes(server.members())
        except psutil.NoSuchProcess:
            message = f"bench.pid must be a process of this machine: {pid}"
            raise Refused(message, "bench.pid=null") from None
        run.measure(server, None, tree, _say)

    with _signals_raised():
        try:
            return run.to_end(measure)
        finally:
            run.end()


class _Run:
    """One benchmark from load to results."""

    def __init__(self, asked: Asked, max_model_len: int | None) -> None:
        self._asked, options = asked, asked.options
        self._created = datetime.now().astimezone()
        self._load = load_of(options, max_model_len)
        self._environment = read_environment()
        for line in without_effect(options, asked.overrides):
            _say(f"warning: {line}")
        self._directory = ResultsDirectory.chosen(options.dir, asked.name, self._created)
        self._benchmark: Benchmark | None = None
        self.url, self.model = "", ""
        self.plan_digest: str | None = None
        self.ready_s: float | None = None

    def measure(
        self,
        server: Server,
        vocab_size: int | None,
        processes: dict[str, psutil.Process],
        say: Callable[[str], None],
    ) -> None:
        self.url = server.url
        options, load = self._asked.options, self._load
        self._benchmark = Benchmark(options, load, server, self.model, vocab_size, say)
        self._benchmark.run(processes)

    def end(self) -> None:
        """Ends what measures, if it still does."""
        if self._benchmark is not None:
            self._benchmark.end()

    def to_end(self, measure: Callable[[], None]) -> int:
        """Measures, and tells and writes what came of it; the exit code."""
        failure: LauncherError | None = None
        try:
            measure()
        except LauncherError as problem:
            if isinstance(problem, Refused | Interrupted):
                self._directory.remove()
                raise
            failure = problem
            report(problem)
        except BaseException:  # Ctrl-C where nothing is served
            self._directory.remove()
            raise
        results = self._results(failure)
        for table in tables(results):
            print_table(table)
        for line in results.warnings:
            _say(f"warning: {line}")
        for line in results.problems:
            _say(f"invalid: {line}")
        for stage in results.stages:
            for cause, example in stage.examples.items():
                _say(f"    {stage.name}, {cause}: {example}")
        for hint in hints_on(results.stages):
            _say(f"hint: {hint}")
        self._directory.write_results(results)
        _say(f"results: {self._directory.results}")
        if failure is not None:
            return failure.exit_code
        return 0 if results.is_valid else 1

    def _results(self, failure: LauncherError | None) -> Results:
        done = self._benchmark
        stages = done.stages if done is not None else []
        problems = [] if failure is None else [str(failure).splitlines()[0]]
        problems += [line for stage in stages for line in problems_of(stage)]
        warnings = list(done.warnings) if done is not None else []
        start_up = None
        if self.ready_s is not None:
            phases_s = done.phases_s if done is not None else {}
            start_up = StartUp(ready_s=self.ready_s, phases_s=phases_s)
        return Results(
            name=self._asked.name,
            created=self._created.isoformat(timespec="seconds"),
            is_valid=not problems,
            problems=problems,
            warnings=warnings + [line for stage in stages for line in warnings_of(stage)],
            url=self.url,
            model=self.model,
            overrides=self._asked.overrides,
            config=self._asked.config,
            plan_digest=self.plan_digest,
            environment=self._environment,
            start_up=start_up,
            stages=stages,
        )


def load_of(options: BenchOptions, max_model_len: int | None) -> Load:
    """What is to be driven.

    Args:
        max_model_len: Of the model; None: it is not known.

    Raises:
        Refused: The trace cannot be read, or the model would not take the longest session.
    """
    trace = options.trace.path
    entries = read_trace(trace, options.num_sessions) if trace else []
    load = Load(stages=make_stages(options, entries), warm_up=make_warm_up(options, entries))
    longest = max(stage.longest for stage in load.stages)
    if max_model_len is None or longest <= max_model_len:
        return load
    if trace:
        hint = f"bench.trace.scale={0.99 * max_model_len / longest * options.trace.scale:.2g}"
    else:
        hint = "bench.input.mean=... or bench.input.max=... with less; bench.output too"
    raise Refused(
        f"the load has up to {longest} tokens in a session, the model takes at most"
        f" {max_model_len}",
        hint,
    )


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Lets signals that end the process do so as Ctrl-C does, with what was begun cleared away."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    others = [number for number in end_signals() if number is not signal.SIGINT]
    before = {number: signal.signal(number, interrupt) for number in others}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text().strip()
    except OSError as problem:
        message = f"bench.api_key_file cannot be read: {path} ({problem.strerror})"
        raise Refused(message, "bench.api_key_file=FILE") from problem


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
