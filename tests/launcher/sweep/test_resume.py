"""Which jobs of a sweep are run, and in which order."""

import msgspec
import pytest

from launcher.sweep.jobs import measured_config
from launcher.sweep.resume import environment_change, lost_rows, resumed, run_order, why_again
from launcher.sweep.rows import Outcome, Row
from tests.launcher.samples import config_of
from tests.launcher.sweep.sample_sweeps import ENVIRONMENT, row, stage

HERE = msgspec.structs.replace(ENVIRONMENT, code_digest="a" * 64)
CONFIG = measured_config(config_of())


def measured(dp: str, repetition: int = 0, **changes) -> Row:
    """A valid row of the default config, measured here, unless told otherwise."""
    found = row({"dp": dp}, [stage()], repetition=repetition)
    assert found.results is not None
    results = msgspec.structs.replace(found.results, environment=HERE, config=CONFIG)
    found = msgspec.structs.replace(found, results=results, directory=f"job-{int(dp):03}")
    return msgspec.structs.replace(found, **changes)


def planned(dp: str, repetition: int = 0) -> Row:
    return measured(
        dp, repetition, outcome=Outcome.not_run, results=None, directory="", said="not run yet"
    )


def test_repetitions_go_there_and_back():
    assert run_order(3, 3) == [
        *((0, 0), (1, 0), (2, 0)),
        *((2, 1), (1, 1), (0, 1)),
        *((0, 2), (1, 2), (2, 2)),
    ]


def test_a_steady_drift_touches_all_variants_alike():
    order = run_order(4, 2)
    times = [[at for at, (variant, _) in enumerate(order) if variant == each] for each in range(4)]
    assert len({sum(each) for each in times}) == 1


def test_a_new_sweep_has_everything_to_run():
    rows, lines = resumed([planned("1"), planned("2")], [], [CONFIG, CONFIG], HERE)
    assert [row.directory for row in rows] == ["job-001", "job-002"]
    assert {row.outcome for row in rows} == {Outcome.not_run}
    assert lines == []


def test_what_was_measured_alike_is_kept_with_its_directory():
    before = [measured("1"), planned("2")]
    before[1] = msgspec.structs.replace(before[1], directory="job-002")
    rows, lines = resumed([planned("1"), planned("2")], before, [CONFIG, CONFIG], HERE)
    assert rows == before
    assert lines == [
        "1 of 2 jobs measured already, with the same configuration, code and environment"
    ]


def test_more_values_and_more_repetitions_find_directories_of_their_own():
    planned_rows = [planned("1"), planned("1", 1), planned("2"), planned("3")]
    rows, _ = resumed(planned_rows, [measured("1"), measured("2")], [CONFIG] * 4, HERE)
    assert [row.directory for row in rows] == ["job-001", "job-003", "job-002", "job-004"]
    assert [row.outcome is Outcome.valid for row in rows] == [True, False, True, False]


def test_what_else_was_swept_before_is_not_told_of_a_row_that_is_kept():
    (now,) = [msgspec.structs.replace(planned("1"), swept={})]
    (kept,), _ = resumed([now], [measured("1")], [CONFIG], HERE)
    assert (kept.swept, kept.outcome) == ({}, Outcome.valid)


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (measured("1"), None),
        (planned("1"), ""),
        (measured("1", outcome=Outcome.timed_out), "timed out before"),
        (measured("1", outcome=Outcome.invalid), "invalid before"),
    ],
)
def test_what_is_not_valid_is_run_again(before: Row, why: str | None):
    assert why_again(before, CONFIG, HERE) == why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"git_commit": "another"}, None),
        ({"code_digest": "b" * 64}, "other code"),
        ({"versions": {**HERE.versions, "torch": "3"}}, "torch was 2.13.0+cpu, is 3"),
        ({"num_cpus": 2}, "another machine: num_cpus was 16, is 2"),
    ],
)
def test_other_code_and_another_machine_are_told(changes, why: str | None):
    assert environment_change(HERE, msgspec.structs.replace(HERE, **changes)) == why


def test_results_that_do_not_tell_their_code_are_not_trusted():
    old = msgspec.structs.replace(HERE, code_digest=None)
    assert environment_change(old, old) == "other code"


def test_another_configuration_under_the_same_overrides_is_measured_again():
    changed = measured_config(config_of(drain_s=1.0))
    assert why_again(measured("1"), changed, HERE) == (
        "another configuration: a file of it has changed"
    )


def test_how_a_sweep_is_run_is_no_part_of_what_is_measured():
    of_the_sweep = {"bench__repeat": 3, "bench__dir": "there", "sweep__timeout_s": 1.0}
    assert measured_config(config_of(**of_the_sweep)) == CONFIG


def test_rows_that_would_be_lost_are_found():
    before = [measured("1"), measured("2"), planned("4")]
    assert lost_rows([planned("1")], before) == [before[1]]
