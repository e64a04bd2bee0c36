"""Clusters on which vLLM 0.32.0 fails to place its ranks, one test each.

Source: vllm/v1/engine/utils.py, `CoreEngineActorManager` and `create_dp_placement_groups`.
"""

from collections import Counter

import pytest

from engine.config import Device
from launcher.addresses import with_head_address
from launcher.cluster import Cluster
from launcher.config import HeadOptions, LaunchConfig
from launcher.plan import DeploymentPlan
from launcher.shortage import DoesNotFit, MustGrow
from tests.launcher.samples import LLAMA_8B, node, on_ray, plan_for, ray_cluster


def ranks_by_node(plan: DeploymentPlan) -> dict[str, int]:
    return dict(Counter(each.node for each in plan.processes if each.rank is not None))


def placed(config: LaunchConfig, cluster: Cluster) -> dict[str, int]:
    return ranks_by_node(plan_for(config, LLAMA_8B, cluster))


@pytest.mark.parametrize("dp", [1, 2])
@pytest.mark.parametrize(
    "address", [None, "localhost", "127.0.0.1", "::1", "gpu07", "10.0.0.1", "192.168.5.1"]
)
def test_any_name_of_the_head_finds_it(dp: int, address: str | None):
    """`The DP master node (ip: 127.0.0.1) is missing or dead`, also with one rank."""
    found = ray_cluster(node("head", 2, address="10.0.0.1"), head_names=("gpu07", "192.168.5.1"))
    cluster = with_head_address(found, HeadOptions(address=address))
    assert placed(on_ray("auto", dp=dp), cluster) == {"head": dp}
    assert cluster.head.address == (address if address == "192.168.5.1" else "10.0.0.1")


def test_no_rank_on_the_head_with_equal_parts_elsewhere():
    """`Not enough resources to allocate 4 placement groups, only created 0`."""
    cluster = ray_cluster(node("head", 4), node("node-1", 2), node("node-2", 2))
    config = on_ray("remote_only", dp=4, strategy="strict")
    assert placed(config, cluster) == {"node-1": 2, "node-2": 2}


def test_a_ragged_cluster():
    """dp=5 with 3 on the head of 4+2 GPUs: refused by its default strategy."""
    cluster = ray_cluster(node("head", 4), node("node-1", 2))
    assert placed(on_ray("split", dp=5, dp_local=3), cluster) == {"head": 3, "node-1": 2}


def test_ranks_that_nobody_gave_a_place_are_not_all_on_the_head():
    """`Not enough resources to allocate 4 DP ranks on DP master node, possible to fit 2`."""
    cluster = ray_cluster(node("head", 2), node("node-1", 2))
    assert placed(on_ray("split", dp=4), cluster) == {"head": 2, "node-1": 2}
    assert placed(on_ray("auto", dp=4), cluster) == {"head": 2, "node-1": 2}


def test_nodes_without_gpus():
    """`No  found in Ray cluster`: CPU nodes cannot be used at all."""
    cluster = ray_cluster(node("head", cpus=2), node("node-1", cpus=2))
    plan = plan_for(on_ray("split", dp=4), cluster=cluster)
    assert ranks_by_node(plan) == {"head": 2, "node-1": 2}
    assert {each.resources["CPU"] for group in plan.groups for each in group.bundles} == {1}
    assert plan.settings.device is Device.cpu


def test_a_head_without_gpus_and_workers_with_one_each():
    """`Not enough resources to allocate 2 placement groups, only created 1` (kuberay#4366)."""
    cluster = ray_cluster(node("head"), node("node-1", 1), node("node-2", 1))
    assert placed(on_ray("remote_only", dp=2), cluster) == {"node-1": 1, "node-2": 1}
    assert placed(on_ray("auto", dp=2), cluster) == {"node-1": 1, "node-2": 1}


def test_a_cluster_that_has_not_scaled_up():
    """`No GPU found in Ray cluster`: before anything was requested, so that nothing ever comes."""
    cluster = ray_cluster(node("head"), can_add=("CPU", "GPU"))
    with pytest.raises(MustGrow) as grows:
        plan_for(on_ray("remote_only", dp=2), LLAMA_8B, cluster)
    assert grows.value.pending.num_ranks == 2


def test_ranks_that_cross_unlike_nodes():
    """`Nodes are not homogeneous`: a node with other GPUs, or none, breaks `span`."""
    cluster = ray_cluster(node("head"), node("node-1", 3), node("node-2", 5), node("node-3"))
    plan = plan_for(on_ray("auto", dp=2, tp=4, strategy="span"), LLAMA_8B, cluster)
    bundles = Counter(bundle.node for group in plan.groups for bundle in group.bundles)
    assert bundles == {"node-1": 3, "node-2": 5}
    assert {group.strategy for group in plan.groups} == {"PACK"}


def test_several_ranks_on_the_head_that_may_cross_nodes():
    """`span` asserts that one rank is local and that a rank is larger than a node."""
    cluster = ray_cluster(node("head", 4), node("node-1", 3), node("node-2", 1))
    config = on_ray("split", dp=4, tp=2, dp_local=2, strategy="span")
    plan = plan_for(config, LLAMA_8B, cluster)
    homes = [{bundle.node for bundle in group.bundles} for group in plan.groups]
    assert homes == [{"head"}, {"head"}, {"node-1"}, {"node-1", "node-2"}]


def test_gpus_on_a_node_whose_cpus_are_all_taken():
    """A bundle of one CPU that no node has: an endless wait without a word."""
    cluster = ray_cluster(node("head"), node("node-1", 8, cpus=0))
    with pytest.raises(DoesNotFit, match="node-1: 8 GPUs, no CPU: lacks 1 CPU for a rank"):
        plan_for(on_ray("remote_only", dp=2), LLAMA_8B, cluster)


def test_one_rank_too_many_places_none():
    """Four placement groups stay behind when the fifth cannot be made, and the error is a dump."""
    cluster = ray_cluster(node("head", 2), node("node-1", 2))
    with pytest.raises(DoesNotFit) as refused:
        plan_for(on_ray("auto", dp=5), LLAMA_8B, cluster)
    assert "room for 4 of 5 ranks" in str(refused.value)
    assert refused.value.hint.startswith("dp=4")


def test_nodes_that_share_an_address():
    """Nodes are told apart by IP: `There can only be one head node`."""
    nodes = [node(id, 1, address="10.0.0.1") for id in ("head", "node-1", "node-2")]
    assert placed(on_ray("split", dp=3, dp_local=1), ray_cluster(*nodes)) == {
        **{"head": 1, "node-1": 1, "node-2": 1}
    }


def test_gpus_that_other_work_holds():
    """Device ids are counted from 0, whatever Ray gives: wrong ones where GPUs are in use."""
    cluster = ray_cluster(node("head", 4, in_use={"GPU": 3}), node("node-1", 4, in_use={"GPU": 2}))
    plan = plan_for(on_ray("auto", dp=3), LLAMA_8B, cluster)
    assert ranks_by_node(plan) == {"head": 1, "node-1": 2}
    assert {worker.devices for each in plan.processes for worker in each.workers} == {()}


def test_no_rank_is_on_a_node_that_was_not_planned():
    """Bundles of other nodes name no node, so that ranks land anywhere (ray#63917)."""
    plan = plan_for(on_ray("split", dp=4), cluster=ray_cluster(node("head", 2), node("n", 2)))
    engines = [each for each in plan.processes if each.rank is not None]
    assert [{each.node} for each in engines] == [
        {bundle.node for bundle in group.bundles} for group in plan.groups
    ]


def test_room_left_on_used_nodes_is_not_wasted():
    """`strict` gives every node what the head has; what others have more of stays idle."""
    cluster = ray_cluster(node("head", 1), node("node-1", 8))
    assert placed(on_ray("split", dp=9, dp_local=1), cluster) == {"head": 1, "node-1": 8}


def test_a_head_that_is_used_up_is_not_needed():
    """The head is checked first and for all ranks, even if others could take them."""
    cluster = ray_cluster(node("head", 4, in_use={"GPU": 4}), node("node-1", 4))
    assert placed(on_ray("auto", dp=4), cluster) == {"node-1": 4}
