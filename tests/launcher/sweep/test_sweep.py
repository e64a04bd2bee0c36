"""Sweeps as a user runs them: real jobs, signals, crashes, and going on afterwards."""

import csv
import re
import signal
import socket
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from launcher.sweep.rows import Outcome, Sweep, decode, encode
from tests.running import Launcher, ask, assert_ended, launched

pytestmark = pytest.mark.timeout(900)

TINY_LOAD = (
    *("action=bench", "model=dummy", "coordinator.metrics_interval_s=0.1"),
    *("bench.concurrency=[2]", "bench.num_sessions=4", "bench.warm_up_sessions=1"),
    *("bench.input.mean=8", "bench.output.mean=4", "drain_s=2", "health.stop_s=2"),
)
STEPS = "model.step_s=0.001,0.002"
ENDLESS = "model.step_s=60"
END_S = 400


def sweep_in(directory: Path) -> Sweep:
    return decode((directory / "sweep.json").read_bytes())


def outcomes(directory: Path) -> list[str]:
    return [row.outcome.value for row in sweep_in(directory).rows]


def deployment_of(launcher: Launcher) -> list[psutil.Process]:
    """The processes of the job that runs, its launcher first, once there are several."""
    sweeping = psutil.Process(launcher.process.pid)
    deadline = time.monotonic() + END_S
    while len(found := sweeping.children(recursive=True)) < 3:
        assert time.monotonic() < deadline, launcher.output
        psutil.wait_procs([sweeping], timeout=0.1)
    return found


@pytest.mark.slow
def test_a_sweep_measures_every_variant_and_leaves_a_report(runtime, tmp_path: Path):
    where = tmp_path / "it is, a=sweep"
    overrides = (*TINY_LOAD, STEPS, "bench.repeat=2", f'sweep.dir="{where}"', "-m")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(END_S) == 0, launcher.output
    assert not launcher.directory.exists()
    sweep = sweep_in(where)
    assert [row.swept["model.step_s"] for row in sweep.rows] == ["0.001", "0.001", "0.002", "0.002"]
    assert [row.repetition for row in sweep.rows] == [0, 1, 0, 1]
    assert {row.outcome for row in sweep.rows} == {Outcome.valid}
    begun = re.findall(r"job \d of 4: model.step_s=([\d.]+)", launcher.output)
    assert begun == ["0.001", "0.002", "0.002", "0.001"]  # there and back
    for row in sweep.rows:
        assert (row.exit_code, row.said) == (0, "")
        assert row.results is not None
        assert row.results.is_valid
        assert row.results.config["model"]["step_s"] == float(row.swept["model.step_s"])
        assert "ready after" in (where / row.directory / "job.log").read_text()
        assert (where / row.directory / "results.json").exists()
        assert not [text for text in row.overrides if text.startswith(("sweep.", "bench.repeat"))]
    with open(where / "sweep.csv") as file:
        assert [line["outcome"] for line in csv.DictReader(file)] == ["valid"] * 4
    assert "<html" in (where / "report.html").read_text()
    assert list(where.glob("*.png"))
    assert "valid after" in launcher.output
    assert "best: variant" in launcher.output
    assert launcher.lines[-1] == "4 of 4 jobs valid\n"


@pytest.mark.slow
def test_an_interrupted_and_a_killed_sweep_go_on_where_they_were(runtime, tmp_path: Path):
    overrides = (*TINY_LOAD, STEPS, f"sweep.dir={tmp_path}", "-m")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        launcher.wait_for("job 2 of 2")
        launcher.signal(signal.SIGINT)
        assert launcher.end(END_S) == 130, launcher.output
        name = launcher.name
    assert outcomes(tmp_path) == ["valid", "not_run"]
    assert (tmp_path / "report.html").exists()
    assert launcher.lines[-1].startswith("go on with it: python -m launcher -m ")
    assert f"sweep.dir={tmp_path}\n" in launcher.lines[-1]
    first = sweep_in(tmp_path).rows[0].results

    with launched(*overrides, runtime_directory=runtime, name=name) as launcher:
        launcher.wait_for("1 of 2 jobs measured already")
        launcher.wait_for("job 1 of 1: model.step_s=0.002")
        family = launcher.family()
        launcher.process.kill()
        assert_ended(family)
    assert outcomes(tmp_path) == ["valid", "not_run"]

    with launched(*overrides, runtime_directory=runtime, name=name) as launcher:
        assert launcher.end(END_S) == 0, launcher.output
    assert outcomes(tmp_path) == ["valid", "valid"]
    assert sweep_in(tmp_path).rows[0].results == first

    changed = sweep_in(tmp_path)
    rows = [_of_other_code(changed.rows[0]), changed.rows[1]]
    changed = msgspec.structs.replace(changed, rows=rows)
    (tmp_path / "sweep.json").write_bytes(encode(changed))
    with launched(*overrides, runtime_directory=runtime, name=name) as launcher:
        launcher.wait_for("1 of 2 jobs measured already")
        launcher.wait_for("1 job again: other code")
        assert launcher.end(END_S) == 0, launcher.output
    after = sweep_in(tmp_path)
    assert after.rows[1] == changed.rows[1]
    assert after.rows[0].outcome is Outcome.valid
    assert after.rows[0].results != rows[0].results


@pytest.mark.slow
def test_jobs_that_take_too_long_or_are_refused_are_rows(runtime, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = f"frontend.port=0,{taken.getsockname()[1]}"
        limits = ("sweep.timeout_s=15", "sweep.end_s=20")
        overrides = (*TINY_LOAD, ENDLESS, ports, *limits, f"sweep.dir={tmp_path}", "-m")
        with launched(*overrides, runtime_directory=runtime) as launcher:
            family = deployment_of(launcher)
            launcher.wait_for("timed out after")
            assert_ended(family)
            launcher.wait_for("refused after")
            launcher.wait_for("hint: frontend.port=")
            launcher.wait_for("log: .*/job-002/job.log")
            assert launcher.end(END_S) == 1, launcher.output
    assert not launcher.directory.exists()
    assert outcomes(tmp_path) == ["timed_out", "refused"]
    timed_out, refused = sweep_in(tmp_path).rows
    assert timed_out.said == "not done after 15 s (sweep.timeout_s)"
    assert refused.exit_code == 2
    assert f"        {refused.said}\n" not in launcher.output  # told already, on the row's line
    assert refused.said.startswith("frontend.port is taken")
    assert (tmp_path / "report.html").exists()
    assert launcher.lines[-1].startswith("run again what is not valid: python -m launcher -m ")


def test_a_job_that_crashes_is_a_row(runtime, tmp_path: Path):
    overrides = (*TINY_LOAD, ENDLESS, f"sweep.dir={tmp_path}", "-m")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        family = deployment_of(launcher)
        family[0].kill()
        launcher.wait_for("crashed after .* killed by SIGKILL")
        assert_ended(family)
        assert launcher.end(END_S) == 1, launcher.output
    (row,) = sweep_in(tmp_path).rows
    assert (row.outcome, row.exit_code, row.results) == (Outcome.crashed, -signal.SIGKILL, None)


def test_repetitions_need_no_flag(runtime, tmp_path: Path):
    keys = "frontend.api_keys=[a-secret]"
    overrides = (*TINY_LOAD, keys, "bench.repeat=2", f"sweep.dir={tmp_path}")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(END_S) == 0, launcher.output
        assert "a-secret" not in launcher.output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"a-secret" in path.read_bytes()]
    assert outcomes(tmp_path) == ["valid", "valid"]
    assert [row.swept for row in sweep_in(tmp_path).rows] == [{}, {}]


def test_each_plan_of_a_sweep_is_shown(runtime):
    done = ask("-m", "action=plan", "model=tiny", "dp=1,2", runtime_directory=runtime)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("digest ") == 2


def _of_other_code(row):
    environment = msgspec.structs.replace(row.results.environment, code_digest="other")
    results = msgspec.structs.replace(row.results, environment=environment)
    return msgspec.structs.replace(row, results=results)
