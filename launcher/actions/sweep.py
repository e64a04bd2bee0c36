"""`-m`: several configs one after the other, each job in a process of its own."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from launcher.config import Action, MpOptions
from launcher.errors import Interrupted, LauncherError, Refused
from launcher.sweep.job_processes import JobProcesses
from launcher.sweep.jobs import Job, Typed, check_jobs, refuse_all, variants_of_jobs


def run_sweep(jobs: Sequence[Job], typed: Typed) -> int:
    """Runs the jobs; the exit code of all of them.

    Raises:
        Refused: Nothing was started; every config has been looked at.
    """
    if not jobs:
        raise Refused(f"no choice fits, nothing was run: {' '.join(typed.overrides)}")
    check_jobs(jobs)
    match jobs[0].config.action:
        case Action.bench:
            return bench_sweep(jobs, typed)
        case Action.smoke:
            from launcher.smoke.sweep import smoke_sweep

            return smoke_sweep(jobs, typed)
        case Action.serve:
            raise Refused(
                "action=serve stays until it is ended, it cannot be one job of several",
                "-m action=bench measures them one after the other, -m action=plan shows them",
            )
        case Action.plan | Action.status | Action.stop | Action.compare:
            return _one_after_the_other(jobs, typed)


def bench_sweep(jobs: Sequence[Job], typed: Typed) -> int:
    """Measures every variant, and writes the report.

    Returns:
        0: every job is valid. 1: one is not. 128 and the signal: interrupted.
    """
    from launcher.sweep.directory import SweepDirectory
    from launcher.sweep.runner import BenchSweep

    variants = variants_of_jobs(jobs)
    chosen = next((job.config.bench.dir for job in jobs if job.config.bench.dir is not None), None)
    if chosen is not None:
        message = "bench.dir is of one benchmark, a sweep has a directory for each job"
        raise Refused(f"{message}: {chosen}", f"sweep.dir={chosen}")
    refuse_all(variants, [_problem(job) for job in variants])
    config = variants[0].config
    now = datetime.now().astimezone()
    directory = SweepDirectory.chosen(config.sweep.dir, config.name, now, config.sweep.end_s)
    try:
        with JobProcesses(os.environ) as processes:
            return BenchSweep(variants, typed, directory, processes).run()
    except OSError as problem:  # a full disk; what has been written stays
        raise LauncherError(f"sweep.dir cannot be written: {problem}") from problem
    finally:
        directory.close()


def _problem(job: Job) -> Refused | None:
    """What would refuse a job when it is started: of the model, of where it runs, of its load.

    Of a Ray cluster only the config is looked at: it may come and go between the jobs.
    """
    from launcher.actions.bench import load_of
    from launcher.planning import planned

    config = job.config
    try:
        if config.bench.url is not None:
            load_of(config.bench, None)
        elif isinstance(config.backend, MpOptions):
            # With what planning reads and no more, as action=plan does.
            with planned(replace(config, action=Action.plan)) as found:
                load_of(config.bench, found.plan.settings.max_model_len)
    except Refused as problem:
        return problem
    return None


def _one_after_the_other(jobs: Sequence[Job], typed: Typed) -> int:
    """Runs jobs that write to this terminal themselves; the highest of their exit codes."""
    exit_codes = []
    with JobProcesses(os.environ) as processes:
        for job in jobs:
            sweep = job.config.sweep
            ended = processes.run(
                [*typed.flags, *job.overrides], timeout_s=sweep.timeout_s, end_s=sweep.end_s
            )
            exit_codes.append(1 if ended.exit_code < 0 or ended.timed_out else ended.exit_code)
            if ended.timed_out:
                sys.stderr.write(f"not done after {sweep.timeout_s:g} s (sweep.timeout_s)\n")
            if processes.signal is not None:
                raise Interrupted(processes.signal)
    return max(exit_codes)
