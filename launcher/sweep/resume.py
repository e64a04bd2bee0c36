"""Which jobs of a sweep are still to be run, and in which order. No processes, no files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from engine.wording import counted
from launcher.bench.results import Environment
from launcher.sweep.jobs import without_the_sweep
from launcher.sweep.rows import Outcome, Row


def run_order(num_variants: int, num_repetitions: int) -> list[tuple[int, int]]:
    """Variant and repetition of each job: all variants once, then again, there and back.

    A machine that drifts steadily touches all variants alike: with two repetitions each of them
    stands on average in the middle.
    """
    order = []
    for repetition in range(num_repetitions):
        variants = range(num_variants)
        for variant in variants if repetition % 2 == 0 else reversed(variants):
            order.append((variant, repetition))
    return order


def resumed(
    rows: Sequence[Row],
    before: Sequence[Row],
    configs: Sequence[Mapping[str, Any]],
    environment: Environment,
) -> tuple[list[Row], list[str]]:
    """The rows of a sweep that goes on: those before that still hold, the others to be run.

    Args:
        rows: None of them run.
        before: Rows of the same sweep, as far as it came.
        configs: Of each of the rows, as `measured_config` gives it.
        environment: Of now.

    Returns:
        The rows, each in the directory that it had; and lines that say what is kept and what is
        measured again, and why.
    """
    old = {(tuple(row.overrides), row.repetition): row for row in before}
    names = _new_directories(before)
    reasons: Counter[str] = Counter()
    found, num_kept = [], 0
    for row, config in zip(rows, configs, strict=True):
        known = old.get((tuple(row.overrides), row.repetition))
        why = why_again(known, config, environment) if known is not None else None
        if known is not None and why is None:
            num_kept += 1
            found.append(msgspec.structs.replace(known, swept=row.swept))
            continue
        if why:
            reasons[why] += 1
        directory = known.directory if known is not None else next(names)
        found.append(msgspec.structs.replace(row, directory=directory))
    lines = []
    if before:
        what = "with the same configuration, code and environment"
        lines.append(f"{num_kept} of {counted(len(found), 'job')} measured already, {what}")
    lines += [f"{counted(number, 'job')} again: {why}" for why, number in reasons.items()]
    return found, lines


def why_again(row: Row, config: Mapping[str, Any], environment: Environment) -> str | None:
    """Why what a row holds is not to be kept; empty: it was not run; None: it is."""
    if row.outcome is Outcome.not_run:
        return ""
    if row.outcome is not Outcome.valid or row.results is None:
        return f"{row.outcome.value.replace('_', ' ')} before"
    change = environment_change(row.results.environment, environment)
    if change is not None:
        return change
    if without_the_sweep(row.results.config) != config:
        return "another configuration: a file of it has changed"
    return None


def environment_change(before: Environment, now: Environment) -> str | None:
    """The first difference that can change figures; None: there is none.

    Another commit with the same code is none.
    """
    if before.code_digest is None or before.code_digest != now.code_digest:
        return "other code"
    for name in sorted(before.versions.keys() | now.versions.keys()):
        one, other = before.versions.get(name, "none"), now.versions.get(name, "none")
        if one != other:
            return f"{name} was {one}, is {other}"
    for name in ("cpu", "num_cpus", "memory_bytes", "gpus"):
        one, other = getattr(before, name), getattr(now, name)
        if one != other:
            return f"another machine: {name} was {one}, is {other}"
    return None


def lost_rows(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """What a sweep has measured and would no longer hold."""
    kept = {(tuple(row.overrides), row.repetition) for row in rows}
    return [
        row
        for row in before
        if row.outcome is not Outcome.not_run and (tuple(row.overrides), row.repetition) not in kept
    ]


def _new_directories(before: Sequence[Row]) -> Iterator[str]:
    taken = {row.directory for row in before}
    number = 0
    while True:
        number += 1
        if (name := f"job-{number:03}") not in taken:
            yield name
