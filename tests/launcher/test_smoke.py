"""`action=smoke`: a deployment that is asked something and ends again."""

import signal

import httpx2 as httpx
import pytest

from tests.running import launched, random_model, until_plan

pytestmark = pytest.mark.timeout(120)


def test_a_smoke_test_starts_asks_every_front_end_and_ends(runtime):
    overrides = ("action=smoke", "model=tiny", "dp=2", "frontend.count=2")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(60) == 0, launcher.output
    assert "drained" in launcher.output
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
        launcher.wait_for(r"drain limit passed \(drain_s=0.5\): 1 requests cut off")
        assert launcher.end() == 130, launcher.output
