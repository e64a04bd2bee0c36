"""Deployments from Python on Ray, in processes of their own: each has one connection to Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.ray.clusters import HandStarted
from tests.running import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

START = """
import json
import os
import sys
import urllib.request

import launcher
from launcher.errors import Refused

address = sys.argv[1]


def start(*overrides, **options):
    return launcher.serve(["model=dummy", "frontend.port=0", *overrides], **options)


def answers(deployment):
    asked = json.dumps({"model": "dummy", "prompt": [1], "max_tokens": 2}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{deployment.url}/completions", asked, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["usage"]["completion_tokens"] == 2


def refusal(*overrides, **options):
    try:
        start(*overrides, **options).stop()
    except Refused as problem:
        return str(problem)
"""


def run(script: str, address: str, runtime: Path, tmp_path: Path) -> str:
    """What a program says that starts deployments."""
    program = tmp_path / "program.py"
    program.write_text(START + script)
    done = subprocess.run(
        [sys.executable, str(program), address],
        env=os.environ | {"XDG_RUNTIME_DIR": str(runtime), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_deployments_share_the_connection_of_their_process(
    shared: HandStarted, runtime: Path, tmp_path: Path
):
    said = run(
        """
before = dict(os.environ)
where = ("topology=auto", f"backend.address={address}")
one, two = start("name=one", *where), start("name=two", *where)
print(answers(one), answers(two))
print(refusal("name=three", "topology=auto", "cluster=emulated"))
one.stop()
print(answers(two))
two.stop()
import ray
changed = {name for name, _ in os.environ.items() ^ before.items()}
print(ray.is_initialized(), [name for name in changed if name.startswith(("RAY_A", "RAY_U"))])
""",
        shared.address,
        runtime,
        tmp_path,
    )
    lines = said.splitlines()
    assert lines[0] == "True True"
    assert f"is connected to the Ray cluster at {shared.address}" in lines[1]
    assert lines[2:] == ["True", "False []"]


def test_groups_that_stand_are_used_and_left(shared: HandStarted, runtime: Path, tmp_path: Path):
    said = run(
        """
import ray
from ray.util.placement_group import placement_group, placement_group_table

ray.init(address=address, log_to_driver=False, logging_level="ERROR")
group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")
assert group.wait(30)
print(refusal("name=three", "dp=3", placement_groups=[group]))
with start("name=two", "dp=2", placement_groups=[group]) as deployment:
    print(answers(deployment), [each.name for each in deployment.plan.groups])
print(placement_group_table(group)["state"], ray.is_initialized())


@ray.remote(num_cpus=1)
def runs():
    return True


there = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, 0)
print(ray.get(runs.options(scheduling_strategy=there).remote(), timeout=30))
""",
        shared.address,
        runtime,
        tmp_path,
    )
    refused, *rest = said.splitlines()
    assert refused.startswith("dp=3 tp=1 does not fit into 1 placement group with 2 bundles")
    assert rest == ["True ['given-0']", "CREATED True", "True"]


def test_one_emulated_cluster_after_the_other(shared: HandStarted, runtime: Path, tmp_path: Path):
    said = run(
        """
for _ in range(2):
    with start("topology=auto", "cluster=emulated") as deployment:
        print(answers(deployment))
""",
        shared.address,
        runtime,
        tmp_path,
    )
    assert said.splitlines() == ["True", "True"]
