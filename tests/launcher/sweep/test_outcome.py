"""What becomes of a job, and what is said of it."""

import re

import msgspec
import pytest

from launcher.sweep.job_processes import Ended
from launcher.sweep.outcome import row_of
from launcher.sweep.progress import duration, eta_s, finished
from launcher.sweep.rows import Outcome, Row
from tests.launcher.sweep.sample_sweeps import row, stage

VALID = row({"dp": "1"}, [stage(1), stage(4)]).results
assert VALID is not None
INVALID = msgspec.structs.replace(VALID, is_valid=False, problems=["engine-0 ended", "no tokens"])
BEFORE = row({"dp": "1"}, outcome=Outcome.not_run, said="not run yet")


def became(exit_code: int, results=None, log=(), interrupted=False, **how) -> Row:
    ended = Ended(exit_code, 3.5, **{"timed_out": False, "num_killed": 0, **how})
    return row_of(BEFORE, ended, results, log, 9.0, interrupted)


@pytest.mark.parametrize(
    ("after", "outcome", "said"),
    [
        (became(0, VALID), Outcome.valid, ""),
        (became(0, VALID, interrupted=True), Outcome.valid, ""),
        (became(1, INVALID), Outcome.invalid, "engine-0 ended; no tokens"),
        (became(1, VALID), Outcome.invalid, "valid results, but then exit code 1"),
        (became(2, log=["dp is wrong", "hint: dp=1"]), Outcome.refused, "dp is wrong"),
        (became(1, log=["Traceback", "KeyError"]), Outcome.crashed, "exit code 1: KeyError"),
        (became(-9), Outcome.crashed, "killed by SIGKILL"),
        (became(-40), Outcome.crashed, "killed by signal 40"),
        (became(143, timed_out=True), Outcome.timed_out, "not done after 9 s (sweep.timeout_s)"),
        (became(143, VALID, timed_out=True), Outcome.timed_out, "not done after 9 s (sweep.timeo"),
        (became(130, interrupted=True), Outcome.not_run, "interrupted"),
        (became(-9, num_killed=1), Outcome.crashed, "killed by SIGKILL; left behind and killed: 1"),
    ],
)
def test_a_job_becomes(after: Row, outcome: Outcome, said: str):
    assert after.outcome is outcome
    assert after.said.startswith(said)
    assert bool(after.said) is bool(said)
    assert (after.results is not None) is (outcome in (Outcome.valid, Outcome.invalid))
    assert (after.exit_code is None) is (outcome is Outcome.not_run)


def test_a_finished_job_is_told_in_one_line():
    told = finished(became(0, VALID))
    assert re.fullmatch(
        r"valid after 4 s: output [\d.]+ tok/s, TTFT [\d.]+ ms, TPOT [\d.]+ ms at concurrency 4",
        told,
    )
    assert finished(became(-9)) == "crashed after 4 s: killed by SIGKILL"
    assert finished(became(130, interrupted=True)) == "interrupted"


def test_the_time_left_is_reckoned_from_jobs_that_are_done():
    assert eta_s([], 3, 1.0) is None
    assert eta_s([10.0, 20.0], 3, 5.0) == 40.0
    assert eta_s([10.0], 1, 25.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "shown"), [(7.4, "7 s"), (187, "3:07 min"), (7387, "2:03:07 h")]
)
def test_durations(seconds: float, shown: str):
    assert duration(seconds) == shown
