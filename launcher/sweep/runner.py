"""Runs a sweep of benchmarks: job after job, each a row as soon as it has ended."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from engine.wording import counted
from launcher.api_keys import without_keys
from launcher.bench.environment import read_environment
from launcher.errors import Refused
from launcher.sweep.directory import LOG_NAME, SweepDirectory
from launcher.sweep.job_processes import JobProcesses
from launcher.sweep.jobs import (
    Job,
    Typed,
    measured_config,
    quoted,
    swept_keys,
    swept_values,
)
from launcher.sweep.options import SweepOptions
from launcher.sweep.outcome import row_of
from launcher.sweep.progress import Progress
from launcher.sweep.report import write_report
from launcher.sweep.resume import lost_rows, resumed, run_order
from launcher.sweep.rows import Outcome, Row, Sweep

_TAIL_LINES = 5
"""Of the log of a job that failed, on the terminal."""
_TAIL_BYTES = 8192


class BenchSweep:
    """Measures every variant `bench.repeat` times.

    Args:
        variants: Jobs that differ in what is measured.

    Raises:
        Refused: There is another sweep in the directory.
    """

    def __init__(
        self,
        variants: Sequence[Job],
        typed: Typed,
        directory: SweepDirectory,
        processes: JobProcesses,
    ) -> None:
        self._typed, self._directory, self._processes = typed, directory, processes
        self._variants, config = variants, variants[0].config
        self._options: SweepOptions = config.sweep
        self._num_repetitions = config.bench.repeat
        environment = read_environment()
        before = directory.read()
        rows = self._new_rows(variants)
        lost = lost_rows(rows, before.rows) if before is not None else []
        if lost:
            raise Refused(
                f"sweep.dir holds rows that this sweep does not have: {directory.path}, such as"
                f" {shlex.join(lost[0].overrides)}",
                "sweep.dir=... of a new one, or the same overrides as before",
            )
        configs = [measured_config(job.config) for job in variants for _ in self._repetitions]
        kept = before.rows if before is not None else []
        rows, self._notes = resumed(rows, kept, configs, environment)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._sweep = Sweep(
            created=before.created if before is not None else now,
            overrides=without_keys(typed.overrides),
            environment=environment,
            slo=asdict(config.bench.slo),
            rows=rows,
        )

    def run(self) -> int:
        """Runs what is still to be run, and writes the report.

        Returns:
            0: every job is valid. 1: one is not. 128 and the signal: interrupted.

        Raises:
            NotWritten, OSError: The directory cannot be written any more.
        """
        rows = self._sweep.rows
        order = [
            self._num_repetitions * variant + repetition
            for variant, repetition in run_order(
                len(rows) // self._num_repetitions, self._num_repetitions
            )
        ]
        to_run = [index for index in order if rows[index].outcome is Outcome.not_run]
        _say(f"sweep of {counted(len(rows), 'job')}: {self._directory.path}")
        for line in self._notes:
            _say(f"    {line}")
        self._directory.write_sweep(self._sweep)
        progress = Progress(len(to_run), rows)
        for index in to_run:
            if self._processes.signal is not None:
                break
            progress.begin(rows[index])
            job = self._variants[index // self._num_repetitions]
            rows[index] = self._run_job(job, rows[index], progress)
            self._directory.write_sweep(self._sweep)
            progress.end(rows[index])
            self._tell_failure(rows[index])
        return self._finish()

    @property
    def _repetitions(self) -> range:
        return range(self._num_repetitions)

    def _new_rows(self, variants: Sequence[Job]) -> list[Row]:
        keys = swept_keys(variants)
        return [
            Row(
                overrides=without_keys(job.overrides),
                swept=swept_values(job, keys),
                repetition=repetition,
                outcome=Outcome.not_run,
                exit_code=None,
                seconds=0.0,
                said="not run yet",
                directory="",
                results=None,
            )
            for job in variants
            for repetition in self._repetitions
        ]

    def _run_job(self, job: Job, row: Row, progress: Progress) -> Row:
        path = self._directory.for_job(row.directory)
        own = ("bench.repeat=1", quoted("bench.dir", str(path)))
        with open(path / LOG_NAME, "wb") as log:
            ended = self._processes.run(
                [*self._typed.flags, *job.overrides, *own],
                timeout_s=self._options.timeout_s,
                end_s=self._options.end_s,
                stdout=log,
                stderr=log,
                kept_open=(self._directory.lock,),
                on_tick=lambda: progress.tick(self._processes.signal is not None),
            )
        return row_of(
            row,
            ended,
            self._directory.results_of(row.directory),
            _tail(path / LOG_NAME),
            self._options.timeout_s,
            is_interrupted=self._processes.signal is not None,
        )

    def _tell_failure(self, row: Row) -> None:
        if row.outcome in (Outcome.valid, Outcome.not_run):
            return
        log = self._directory.path / row.directory / LOG_NAME
        for line in _tail(log):
            if line != row.said:  # which has been told
                _say(f"        {line}")
        _say(f"    log: {log}")

    def _finish(self) -> int:
        rows, number = self._sweep.rows, self._processes.signal
        for line in write_report(self._sweep, self._directory.path):
            _say(line)
        num_valid = sum(row.outcome is Outcome.valid for row in rows)
        num_not_run = sum(row.outcome is Outcome.not_run for row in rows)
        _say(f"{num_valid} of {counted(len(rows), 'job')} valid")
        if num_valid < len(rows):
            again = shlex.join(self._typed.again(str(self._directory.path)))
            what = "go on with it" if num_not_run else "run again what is not valid"
            _say(f"{what}: {again}")
        if num_not_run and number is not None:
            return 128 + number
        return 0 if num_valid == len(rows) else 1


def _tail(log: Path) -> list[str]:
    """The last lines that say something."""
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
