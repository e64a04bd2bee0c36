"""Smoke tests one after the other (`-m action=smoke ...`), each in a launcher of its own."""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from launcher.exit_codes import how_it_ended
from launcher.smoke.results import (
    Report,
    failed,
    passed_or_failed,
    print_table,
    results_table,
)
from launcher.sweep.job_processes import Ended, JobProcesses
from launcher.sweep.jobs import Job, Typed

_FORMAT = "smoke.format="


class Row(NamedTuple):
    """What became of one smoke test."""

    overrides: Sequence[str]
    passed: bool | None
    """None: it was not run."""
    seconds: float = 0.0
    num_checks: int = 0
    first_failure: str = ""


def smoke_sweep(jobs: Sequence[Job], typed: Typed) -> int:
    """Several smoke tests: a crash or a refusal of one is a row of the summary, not the end.

    A signal ends the one that runs; those after it are not run.

    Returns:
        0 if all passed, 128 and the signal after one, else 1.
    """
    rows = []
    with JobProcesses(os.environ) as processes:
        for job in jobs:
            overrides = [*typed.flags, *job.overrides]
            if processes.signal is None:
                rows.append(_run(overrides, job, processes))
            else:
                rows.append(Row(overrides, passed=None, first_failure="not run: interrupted"))
    print_table(_summary(rows))
    num_passed = sum(row.passed is True for row in rows)
    sys.stderr.write(f"{num_passed} of {len(rows)} smoke tests passed\n")
    if processes.signal is not None:
        return 128 + processes.signal
    return 0 if num_passed == len(rows) else 1


def _run(overrides: Sequence[str], job: Job, processes: JobProcesses) -> Row:
    sys.stderr.write(f"smoke test of {shlex.join(overrides)}\n")
    own = [each for each in overrides if not each.startswith(_FORMAT)]
    sweep = job.config.sweep
    with tempfile.TemporaryFile() as answer:
        ended = processes.run(
            [*own, f"{_FORMAT}json"],
            timeout_s=sweep.timeout_s,
            end_s=sweep.end_s,
            stdout=answer,
        )
        answer.seek(0)
        return _row(overrides, ended, answer.read(), sweep.timeout_s)


def _row(overrides: Sequence[str], ended: Ended, answer: bytes, timeout_s: float) -> Row:
    """Prints the table of a test that has told its results."""
    exit_code, seconds = ended.exit_code, ended.seconds
    if ended.timed_out:
        why = f"not done after {timeout_s:g} s (sweep.timeout_s)"
        return Row(overrides, False, seconds, first_failure=why)
    try:
        report = msgspec.json.decode(answer, type=Report)
    except msgspec.DecodeError:
        why = "refused" if exit_code == 2 else "ended without results"
        why += f", {how_it_ended(exit_code)}: see above"
        return Row(overrides, False, seconds, first_failure=why)
    print_table(results_table(report.name, report.results))
    wrong = failed(report.results)
    first = f"{wrong[0].subject}: {wrong[0].said}" if wrong else ""
    return Row(overrides, exit_code == 0, seconds, len(report.results), first)


def _summary(rows: Sequence[Row]) -> Table:
    table = Table(
        title="smoke tests", title_justify="left", title_style="", box=box.SIMPLE, pad_edge=False
    )
    for heading in ("config", "result"):
        table.add_column(heading, overflow="fold")
    for heading in ("seconds", "checks"):
        table.add_column(heading, justify="right")
    table.add_column("first failure", overflow="fold")
    shared = set.intersection(*(set(row.overrides) for row in rows))
    for row in rows:
        own = [override for override in row.overrides if override not in shared]
        result = Text("not run") if row.passed is None else passed_or_failed(row.passed)
        seconds = f"{row.seconds:.1f}"
        table.add_row(
            shlex.join(own or row.overrides),
            result,
            seconds,
            str(row.num_checks),
            Text(row.first_failure),
        )
    return table
