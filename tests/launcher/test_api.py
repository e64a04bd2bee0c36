"""Deployments from Python."""

import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

import launcher
from launcher.errors import DeploymentFailed, Refused

DEADLINE_S = 30


@pytest.fixture(autouse=True)
def own_runtime(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return runtime


def answer(deployment: launcher.Deployment) -> int:
    """How many tokens came back."""
    asked = {"model": "dummy", "prompt": [1, 2, 3], "max_tokens": 4}
    request = urllib.request.Request(
        f"{deployment.url}/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
        tokens: int = json.load(response)["usage"]["completion_tokens"]
        return tokens


def test_a_deployment_serves_in_any_thread_and_leaves_nothing_behind(own_runtime: Path):
    seen: list[Any] = []

    def use() -> None:
        with launcher.serve(["model=dummy", "dp=2", "frontend.port=0", "name=one"]) as deployment:
            seen.append((answer(deployment), deployment.plan.dp, deployment.is_serving))
            seen.append(deployment)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(2 * DEADLINE_S)
    assert seen[0] == (4, 2, True)
    assert not seen[1].is_serving
    assert seen[1].wait(0)
    assert not list((own_runtime / "flotilla").iterdir())


def test_two_deployments_serve_beside_each_other_and_stop_twice():
    one = launcher.serve(["model=dummy", "frontend.port=0", "name=one"])
    with launcher.serve(["model=dummy", "frontend.port=0", "name=two"]) as two:
        assert one.url != two.url
        assert answer(one) == answer(two) == 4
        assert not two.wait(0.01)
        one.stop()
        one.stop()
        assert answer(two) == 4


def test_it_warns_as_the_command_line_does(capfd: pytest.CaptureFixture[str]):
    wide = ["model=dummy", "frontend.port=0", "name=one", "frontend.host=0.0.0.0"]
    with launcher.serve(wide):
        told = capfd.readouterr().err
    assert "warning: whoever reaches frontend.host=0.0.0.0 can use the API" in told
    with launcher.serve([*wide, "frontend.api_keys=[sk-one]", "model.seed=5"]):
        told = capfd.readouterr().err
    assert "can use the API" not in told
    assert "warning: model.seed=5 has no effect with model=dummy" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dpp=2"], "there is no option dpp: dpp=2"),
        (["dp=0"], "dp must be at least 1: 0"),
        (["action=plan"], "action must be serve: plan"),
        (["model=path", "model.path=/does/not/exist"], "/does/not/exist"),
    ],
)
def test_a_mistake_is_refused_as_on_the_command_line(overrides: list[str], message: str):
    with pytest.raises(Refused, match=message):
        launcher.serve(overrides)


def test_placement_groups_need_the_cluster_that_they_are_of():
    with pytest.raises(Refused, match="placement groups need the Ray cluster"):
        launcher.serve(
            ["model=dummy", "backend=mp", "topology=head_only", "cluster=auto"], [object()]
        )


def test_a_name_in_use_is_refused_and_the_other_goes_on():
    with launcher.serve(["model=dummy", "frontend.port=0", "name=one"]) as deployment:
        with pytest.raises(Refused, match="name is in use"):
            launcher.serve(["model=dummy", "frontend.port=0", "name=one"])
        assert answer(deployment) == 4


def test_a_dead_rank_ends_it_and_is_told_to_who_waits_and_who_stops():
    deployment = launcher.serve(["model=dummy", "frontend.port=0", "name=one", "drain_s=1"])
    children = psutil.Process().children(recursive=True)
    next(child for child in children if "one engine-0" in " ".join(child.cmdline())).kill()
    with pytest.raises(DeploymentFailed, match="engine-0 ended: killed by SIGKILL"):
        deployment.wait(DEADLINE_S)
    with pytest.raises(DeploymentFailed):
        deployment.stop()


def test_a_hydra_application_keeps_its_own_configuration():
    with initialize_config_module("conf", version_base="1.3"):
        before = GlobalHydra.instance().hydra
        with launcher.serve(["model=dummy", "frontend.port=0", "name=one"]):
            assert GlobalHydra.instance().hydra is before
        assert compose("config", ["dp=3"]).dp == 3
