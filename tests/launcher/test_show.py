"""The plan as a table and as JSON."""

import msgspec

from engine.config import Device
from launcher.cluster import Node
from launcher.plan import DeploymentPlan, encode
from launcher.show import as_json, as_table
from tests.launcher.samples import GIB, LLAMA_8B, SMOLLM2, cluster_of, config_of, gpu_head, plan_for


def test_golden_table_on_cpus(assert_golden):
    config = config_of(dp=2, frontend__count=2, engine__threads=6, engine__device=Device.cpu)
    idle = Node(id="idle", address="10.0.0.2", cpus=4, gpus=1, gpu_memory_bytes=24 * GIB)
    assert_golden("cpus.txt", as_table(plan_for(config, SMOLLM2, cluster_of(idle))))


def test_golden_table_on_gpus(assert_golden):
    plan = plan_for(config_of(dp=2, tp=2), LLAMA_8B, gpu_head(4), ["HF_HOME", "NCCL_DEBUG"])
    assert_golden("gpus.txt", as_table(plan))


def test_json_reads_back_as_the_same_plan():
    plan = plan_for(config_of(dp=2), SMOLLM2, cluster_of(cpus=1))
    assert plan.warnings
    assert msgspec.json.decode(as_json(plan), type=DeploymentPlan) == plan
    assert encode(msgspec.json.decode(encode(plan), type=DeploymentPlan)) == encode(plan)


def test_names_are_shown_as_they_are():
    plan = plan_for(config_of(frontend__host="[bold]:smile:"))
    assert "[bold]:smile::8000" in as_table(plan)


def test_a_table_has_no_lines_wider_than_it_must():
    lines = as_table(plan_for(config_of())).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert max(map(len, lines)) <= 120
