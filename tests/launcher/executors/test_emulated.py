"""What the nodes of an emulated cluster are said to have."""

import pytest

from engine.config import Device
from launcher.cluster import ClusterKind
from launcher.executors.ray.emulated import NodeSize, sizes_for
from tests.launcher.samples import LLAMA_8B, node, on_ray, plan_for, ray_cluster


@pytest.mark.parametrize(
    ("visible", "gpu_ids"),
    [(["4", "5", "6"], ("4,5", "6")), (["4", "5"], (None, None)), ([], (None, None))],
)
def test_each_node_has_gpus_of_its_own_where_there_are_as_many(visible, gpu_ids):
    cluster = ray_cluster(node("head", 2), node("node-1", 1), kind=ClusterKind.emulated)
    plan = plan_for(on_ray("auto", dp=3), LLAMA_8B, cluster)
    own, other = gpu_ids
    assert sizes_for(plan, visible) == (
        NodeSize("head", 96, 2, own),
        NodeSize("node-1", 96, 1, other),
    )


def test_a_node_has_the_cpus_that_are_planned_on_it():
    cluster = ray_cluster(node("head", cpus=1), kind=ClusterKind.emulated)
    plan = plan_for(on_ray("auto", dp=3, engine__device=Device.cpu), cluster=cluster)
    assert sizes_for(plan, []) == (NodeSize("head", 3, 0),)
