"""`action=smoke`: a deployment that is asked something and ends again."""

import re
import signal

import httpx2 as httpx
import pytest

from tests.running import launched, random_model, until_plan

pytestmark = pytest.mark.timeout(120)


def test_a_smoke_test_starts_asks_every_front_end_and_ends(runtime):
    overrides = ("action=smoke", "model=tiny", "dp=2", "frontend.count=2")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(60) == 0, launcher.output
    checks = [line for line in launcher.lines if line.startswith("check ")]
    for front_end, its_checks in (("frontend-0", checks[:4]), ("frontend-1", checks[4:])):
        ready, plan, first, again = its_checks
        assert ready == f"check {front_end}: GET /ready: 2 ranks ready, as planned\n"
        assert re.fullmatch(rf"check {front_end}: GET /plan: digest [0-9a-f]{{12}} .*\n", plan)
        assert re.fullmatch(rf"check {front_end}: 8 greedy tokens after \[1, 2, 3\]: '.+'\n", first)
        assert again == first.replace("\n", ", the same again\n")
    assert "drained\n" in launcher.lines
    assert launcher.lines[-2:] == ["ended\n", "smoke test passed: 8 checks\n"]
    assert not launcher.directory.exists()


def test_an_interrupted_smoke_test_is_no_success(runtime, tmp_path):
    model = random_model(tmp_path, num_hidden_layers=200)  # not done before the engine is stopped
    limits = ("drain_s=0.5", "health.stop_s=1")
    with launched("action=smoke", *model, *limits, runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-0 +ready")
        engine = launcher.children()["engine-0"]
        url = launcher.ready()
        engine.suspend()
        with httpx.Client(base_url=url) as client:
            until_plan(client, lambda counts: counts["frontend-0"] == 1)
        launcher.signal(signal.SIGINT)
        launcher.wait_for(r"drain limit passed \(drain_s=0.5\): 1 request cut off")
        assert launcher.end() == 130, launcher.output
    assert launcher.lines[-2:] == ["interrupted\n", "smoke test failed after 2 passed checks\n"]


def test_a_smoke_test_of_an_engine_that_dies_fails(runtime, tmp_path):
    model = random_model(tmp_path, num_hidden_layers=200)
    with launched("action=smoke", *model, runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-0 +ready")
        engine = launcher.children()["engine-0"]
        launcher.ready()
        engine.suspend()
        launcher.wait_for("check frontend-0: GET /plan")
        engine.kill()
        assert launcher.end() == 1, launcher.output
    assert launcher.lines[-1] == "smoke test failed after 2 passed checks\n"
