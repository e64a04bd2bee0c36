"""`action=compare` on the command line: what is shown, exit codes, what is refused."""

import json
from pathlib import Path

import pytest

from launcher.bench import results as benchmarks
from launcher.sweep import rows as sweeps
from launcher.sweep.rows import Outcome, Row
from tests.launcher.sweep.sample_sweeps import grid, results, row, stage, sweep


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A directory of results and sweeps."""

    def benchmark(name: str, speed: float, problems: tuple[str, ...] = ()) -> None:
        (tmp_path / name).mkdir()
        whole = results([stage(4, speed=speed)], ["action=bench"], problems=problems)
        (tmp_path / name / "results.json").write_bytes(benchmarks.encode(whole))

    def whole_sweep(name: str, rows: list[Row]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.json").write_bytes(sweeps.encode(sweep(rows)))

    benchmark("base", 1.0)
    benchmark("alike", 0.99)
    benchmark("slow", 0.8)
    benchmark("invalid", 1.0, ("1 of 16 requests failed",))
    keys = {"dp": ["1", "2"], "frontend.count": ["1", "2"]}
    whole_sweep("sweep", grid(keys, num_repetitions=3))
    whole_sweep("slow-sweep", grid(keys, num_repetitions=3, speed=0.7))
    whole_sweep("dead-sweep", [row({"dp": "1"}, outcome=Outcome.crashed, said="out of memory")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no JSON")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "new.json").write_text('{"version": 99, "stages": []}')
    return tmp_path


def two(runs: Path, first: str, second: str) -> tuple[str, str]:
    return "action=compare", f"compare.runs=[{runs / first},{runs / second}]"


def test_a_second_that_is_not_worse_exits_with_0(flotilla, runs: Path):
    code, out, err = flotilla(*two(runs, "base", "alike"))
    assert (code, err) == (0, "")
    assert "concurrency 4" in out
    assert "note: the spread is not known" in out
    assert out.endswith("the second is not worse: no figure by more than 5%\n")


def test_a_second_that_is_worse_exits_with_3(flotilla, runs: Path):
    code, out, _ = flotilla(*two(runs, "base", "slow"))
    assert code == 3
    assert "0.800" in out
    assert out.endswith("the second is worse: 4 of 4 figures by more than 5%\n")
    assert flotilla(*two(runs, "slow", "base"))[0] == 0


def test_tolerance_and_metrics_can_be_chosen(flotilla, runs: Path):
    assert flotilla(*two(runs, "base", "slow"), "compare.tolerance=0.3")[0] == 0
    assert flotilla(*two(runs, "base", "slow"), "compare.metrics=[pss_mib]")[0] == 0
    assert flotilla(*two(runs, "base", "alike"), "compare.tolerance=0")[0] == 3


def test_sweeps_are_compared_variant_by_variant(flotilla, runs: Path):
    code, out, _ = flotilla(*two(runs, "sweep", "slow-sweep"))
    assert code == 3
    for dp in ("1", "2"):
        assert f"dp={dp} frontend.count=2" in out
    assert "the second is worse: 48 of 48 figures" in out
    assert flotilla(*two(runs, "sweep", "sweep"))[0] == 0


def test_files_are_taken_as_directories_are(flotilla, runs: Path):
    assert flotilla(*two(runs, "base/results.json", "slow"))[0] == 3


def test_programs_get_json(flotilla, runs: Path):
    code, out, _ = flotilla(*two(runs, "sweep", "slow-sweep"), "compare.format=json")
    content = json.loads(out)
    assert (code, content["is_worse"], content["tolerance"]) == (3, True, 0.05)
    first = content["differences"][0]
    assert first["variant"] == "dp=1 frontend.count=1"
    assert (first["metric"], first["unit"], first["better"]) == ("output_tok_s", "tok/s", "higher")
    assert first["first"]["num_repetitions"] == 3
    assert first["exceeds_spread"] is True
    assert first["verdict"] == "worse"


def test_a_pull_request_gets_markdown(flotilla, runs: Path):
    _, out, _ = flotilla(*two(runs, "base", "slow"), "compare.format=markdown")
    heading, rule, *rows = out.splitlines()
    assert heading.startswith("|stage")
    assert set(rule) == {"|", "-", ":"} or set(rule) == {"|", "-"}
    assert len([row for row in rows if row.startswith("|concurrency 4")]) == 4
    assert out.splitlines()[-1].startswith("- the second is worse")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("missing", "there is no {}"),
        ("empty", "{} holds no results.json and no sweep.json"),
        ("text", "{} is no results.json or sweep.json"),
        ("other.json", "{} is no results.json or sweep.json"),
        ("new.json", "{} has version 99 of its form"),
        ("invalid", "{}/results.json has no valid results: invalid: 1 of 16 requests failed"),
        ("dead-sweep", "{}/sweep.json has no valid results: crashed: out of memory"),
        ("sweep", "{}/sweep.json is a sweep"),
    ],
)
def test_what_cannot_be_compared_is_refused(flotilla, runs: Path, second: str, message: str):
    code, out, err = flotilla(*two(runs, "base", second))
    assert (code, out) == (2, "")
    assert message.format(runs / second) in err
    assert "hint: " in err


def test_nothing_in_common_is_refused(flotilla, runs: Path):
    override = "compare.metrics=[goodput_req_s]"
    code, _, err = flotilla(*two(runs, "base", "slow"), override)
    assert code == 2
    assert "have no figure in common\n    goodput_req_s is measured by neither\n" in err
    assert "hint: compare.metrics=[], or compare.runs=[A,B]" in err


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        (
            "compare.runs=[a]",
            "compare.runs must be two results or two sweeps: [a]",
            "compare.runs=[A,B]",
        ),
        (
            "compare.metrics=[ttft_ms.p55]",
            "compare.metrics has a figure that there is not: ttft_ms.p55",
            "compare.metrics=[ttft_ms.p50]",
        ),
        (
            "compare.tolerance=-1",
            "compare.tolerance must be at least 0: -1.0",
            "compare.tolerance=0",
        ),
    ],
)
def test_options_are_checked(flotilla, runs: Path, override: str, message: str, hint: str):
    code, _, err = flotilla(*two(runs, "base", "slow"), override)
    assert code == 2
    assert message in err
    assert hint in err


def test_options_without_effect_are_named(flotilla, runs: Path):
    code, _, err = flotilla(*two(runs, "base", "alike"), "dp=2")
    assert (code, err) == (0, "warning: dp=2 has no effect with action=compare\n")
