"""`action=smoke`: a deployment that is checked and ends again; several of them in a row."""

import json
import re
import signal

import httpx2 as httpx
import psutil
import pytest

from tests.running import Launcher, launched

pytestmark = pytest.mark.timeout(180)

SOON = "coordinator.metrics_interval_s=0.1"
"""Each check of an aborted request waits for metrics."""
OF_FRONT_END = ("ready", "plan", "bad request")
OF_RANK = ("unstreamed", "greedy tokens", "streamed", "aborted")


def rows(launcher: Launcher) -> list[tuple[str, ...]]:
    """Check, front end, rank and result of each row of the table."""
    found = (
        re.match(r" (\w[\w ]+?)  +(?:(frontend-\d) +)?(?:(\d) +)?(passed|FAILED) ", line)
        for line in launcher.lines
    )
    return [tuple(filter(None, row.groups())) for row in found if row]


def test_a_smoke_test_checks_every_rank_through_every_front_end(runtime):
    overrides = ("action=smoke", "model=tiny", "dp=2", "frontend.count=2", SOON)
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(100) == 0, launcher.output
    checks: list[tuple[str, ...]] = [("started",), ("reference",)]
    for front_end in ("frontend-0", "frontend-1"):
        checks += [(check, front_end) for check in OF_FRONT_END]
        checks += [(check, front_end, rank) for rank in "01" for check in OF_RANK]
    checks += [("drained and ended",), ("nothing left",)]
    assert rows(launcher) == [(*check, "passed") for check in checks]
    assert launcher.lines[-1] == f"smoke test passed: {len(checks)} checks\n"
    assert not launcher.directory.exists()


def test_a_rank_that_hangs_fails_its_checks_alone(runtime):
    limits = (SOON, "smoke.answer_s=5", "health.silence_s=0.5", "health.stop_s=1", "drain_s=1")
    overrides = ("action=smoke", "model=tiny", "dp=2", *limits)
    with launched(*overrides, runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-1 +ready")
        engine = launcher.children()["engine-1"]
        launcher.ready()
        engine.suspend()
        assert launcher.end(100) == 1, launcher.output
    seen = rows(launcher)
    assert ("unstreamed", "frontend-0", "1", "FAILED") in seen
    assert all((check, "frontend-0", "0", "passed") in seen for check in OF_RANK), launcher.output
    assert ("nothing left", "passed") in seen
    assert "last lines of engine-1:\n" in launcher.lines
    assert re.match(r"smoke test failed: \d of \d+ checks failed; first ", launcher.lines[-1])


def test_a_deployment_that_dies_fails(runtime):
    with launched("action=smoke", "model=tiny", runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-0 +ready")
        engine = launcher.children()["engine-0"]
        launcher.ready()
        engine.kill()
        assert launcher.end(60) == 1, launcher.output
    assert rows(launcher)[0] == ("deployment", "FAILED")
    assert rows(launcher)[-1] == ("nothing left", "passed")
    first = "first deployment: engine-0 ended: killed by SIGKILL\n"
    assert launcher.lines[-1].endswith(first)
    assert [path.name for path in launcher.directory.iterdir()] == ["logs"]


def test_a_deployment_that_does_not_start_fails(runtime):
    late = "backend.start_deadline_s=0.01"
    with launched("action=smoke", "model=tiny", late, runtime_directory=runtime) as launcher:
        assert launcher.end(60) == 1, launcher.output
    assert rows(launcher) == [("deployment", "FAILED"), ("nothing left", "passed")]
    assert "first deployment: not ready after 0.01 s" in launcher.lines[-1]


def test_an_interrupted_smoke_test_is_no_success(runtime):
    with launched("action=smoke", "model=tiny", runtime_directory=runtime) as launcher:
        launcher.ready()
        launcher.signal(signal.SIGINT)
        assert launcher.end(60) == 130, launcher.output
    assert "interrupted\n" in launcher.lines
    assert "first deployment: interrupted" in launcher.lines[-1]
    assert not launcher.directory.exists()


def test_results_as_json(runtime):
    overrides = ("action=smoke", "model=dummy", "model.step_s=0.001", "smoke.format=json")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(60) == 0, launcher.output
    told = json.loads(next(line for line in launcher.lines if line.startswith("{")))
    assert told["name"] == launcher.name
    assert [row["check"] for row in told["results"]][:2] == ["started", "reference"]
    assert rows(launcher) == []


def test_a_sweep_ends_with_a_summary(runtime):
    deadlines = "backend.start_deadline_s=0.01,60"
    overrides = ("+ci=mp_head_only", "dp=1", deadlines, SOON, "-m")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(120) == 1, launcher.output
    summary = " ".join(launcher.lines[launcher.lines.index("smoke tests\n") :])
    first, then = re.findall(r"start_deadline_s=(\S+) +(\w+) +[\d.]+ +(\d+)", summary)
    assert (first, then) == (("0.01", "FAILED", "2"), ("60", "passed", "11"))
    assert "deployment: not ready" in summary
    assert launcher.lines[-1] == "1 of 2 smoke tests passed\n"
    assert not launcher.directory.exists()


def test_an_interrupted_sweep_tells_what_was_not_run(runtime):
    overrides = ("+ci=mp_head_only", "dp=1", "drain_s=5,6", "-m")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        url = launcher.ready()
        launcher.signal(signal.SIGINT)
        assert launcher.end(60) == 130, launcher.output
    assert re.search(r" drain_s=5 +FAILED .*interrupted\n drain_s=6 +not run ", launcher.output)
    assert launcher.lines[-1] == "0 of 2 smoke tests passed\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_sweep_that_is_killed_leaves_nothing(runtime):
    with launched("+ci=mp_head_only", "-m", runtime_directory=runtime) as launcher:
        launcher.ready()
        family = psutil.Process(launcher.process.pid).children(recursive=True)
        launcher.process.kill()
        _, left = psutil.wait_procs(family, 30)
        assert not left
    assert not launcher.directory.exists()


def test_a_refused_config_is_a_row(runtime):
    overrides = ("+ci=mp_head_only", "profile.max_model_len=99999", "-m")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(60) == 1, launcher.output
    assert "profile.max_model_len must be at most" in launcher.output
    assert "refused, exit code 2: see above" in launcher.output
