"""Plans for clusters: golden tables, and what is said when there is no room.

The digest at the end of a table stands for every byte of the plan.
"""

from collections import Counter
from typing import Any

import pytest

from engine.config import Device, ModelKind
from launcher.cluster import Cluster, ClusterKind, Node
from launcher.config import LaunchConfig
from launcher.plan import DeploymentPlan
from launcher.shortage import DoesNotFit, MustGrow
from launcher.show import as_table
from tests.launcher.samples import (
    GIB,
    LLAMA_8B,
    SMOLLM2,
    config_of,
    node,
    on_ray,
    plan_for,
    ray_cluster,
)

RAGGED = ray_cluster(node("head", 4), node("node-1", 2))
EVEN = ray_cluster(node("head", 4), node("node-1", 4), node("node-2", 4), node("node-3", 4))
CPU_NODES = ray_cluster(*(node(id, cpus=8) for id in ("head", "node-1", "node-2")))
CPU_HEAD = ray_cluster(node("head"), *(node(f"node-{index}", 1) for index in range(1, 5)))
BUSY = ray_cluster(
    node("head", 4, in_use={"GPU": 3}),
    node("node-1", 8, in_use={"GPU": 8}),
    node("node-2", 8, cpus=4, in_use={"CPU": 4}),
    holders={"head": ("notebook",), "node-1": ("training", "evaluation")},
)
MANY = ray_cluster(
    node("head", address="10.0.0.1"),
    *(node(f"node-{index}", 8, address=f"10.0.1.{index}") for index in range(1, 200)),
)
UNLIKE = ray_cluster(
    node("head", 1, gpu_memory_bytes=16 * GIB),
    node("node-1", 4, gpu_memory_bytes=16 * GIB),
    node("node-2", 2),
)
LAPTOP = Cluster(
    nodes=(
        Node(id="head", head=True, cpus=1, memory_bytes=8 * GIB),
        Node(id="node-1", cpus=1, memory_bytes=8 * GIB),
    ),
    kind=ClusterKind.emulated,
)


@pytest.mark.parametrize(
    ("name", "config", "cluster"),
    [
        ("split_of_a_ragged_cluster", on_ray("split", dp=5, dp_local=3), RAGGED),
        ("split_in_halves", on_ray("split", dp=8), EVEN),
        ("split_in_equal_parts", on_ray("split", dp=6, dp_local=2, strategy="strict"), EVEN),
        ("split_spread_over_the_rest", on_ray("split", dp=6, dp_local=1, strategy="spread"), EVEN),
        ("split_on_one_machine", on_ray("split", dp=4), LAPTOP),
        ("remote_only_beside_a_cpu_head", on_ray("remote_only", dp=4), CPU_HEAD),
        ("remote_only_in_equal_parts", on_ray("remote_only", dp=6, strategy="strict"), EVEN),
        ("remote_only_on_many_nodes", on_ray("remote_only", dp=600, tp=2), MANY),
        ("remote_only_on_cpus", on_ray("remote_only", dp=3, engine__threads=4), CPU_NODES),
        ("auto_fills_the_head_first", on_ray("auto", dp=6), EVEN),
        ("auto_spread", on_ray("auto", dp=6, strategy="spread"), EVEN),
        ("auto_around_what_others_hold", on_ray("auto", dp=1), BUSY),
        ("auto_where_the_memory_is", on_ray("auto", dp=2), UNLIKE),
        ("auto_with_some_on_the_head", on_ray("auto", dp=3, dp_local=1), RAGGED),
        ("auto_on_cpus", on_ray("auto", dp=20), CPU_NODES),
        ("span_over_nodes", on_ray("auto", dp=3, tp=5, strategy="span"), EVEN),
        ("span_beside_the_head", on_ray("split", dp=2, tp=3, strategy="span"), RAGGED),
        ("head_only_on_ray", on_ray("head_only", dp=2, ports="40000-40009"), EVEN),
    ],
)  # fmt: skip
def test_golden_plan(assert_golden, name: str, config: LaunchConfig, cluster: Cluster):
    if name == "span_beside_the_head":
        cluster = ray_cluster(*RAGGED.nodes, node("node-2", 1))
    plan = plan_for(config, SMOLLM2 if cluster is LAPTOP else LLAMA_8B, cluster)
    assert_golden(f"{name}.txt", as_table(plan))


def ranks_by_node(plan: DeploymentPlan) -> dict[str, int]:
    return dict(Counter(each.node for each in plan.processes if each.rank is not None))


def refusal(config: LaunchConfig, cluster: Cluster, **facts: Any) -> tuple[str, str]:
    with pytest.raises(DoesNotFit) as refused:
        plan_for(config, facts.get("facts", SMOLLM2), cluster)
    assert refused.value.exit_code == 2
    return str(refused.value), refused.value.hint


def test_ranks_are_placed_in_proportion_to_the_cpus_where_these_are_no_limit():
    nodes = (node("n0", head=True, cpus=4), node("n1", cpus=2), node("n2", cpus=1))
    shared = Cluster(nodes=nodes, kind=ClusterKind.emulated)
    assert ranks_by_node(plan_for(on_ray("auto", dp=7), cluster=shared)) == {
        **{"n0": 4, "n1": 2, "n2": 1}
    }
    plan = plan_for(on_ray("auto", dp=14), cluster=shared)
    assert ranks_by_node(plan) == {"n0": 8, "n1": 4, "n2": 2}
    assert plan.warnings == (
        "8 ranks should have 8 CPUs on n0, which has 4: all will be slower",
        "4 ranks should have 4 CPUs on n1, which has 2: all will be slower",
        "2 ranks should have 2 CPUs on n2, which has 1: all will be slower",
    )


def test_strict_crowds_a_node_where_cpus_are_no_limit():
    assert ranks_by_node(plan_for(on_ray("split", dp=6, strategy="strict"), cluster=LAPTOP)) == {
        **{"head": 3, "node-1": 3}
    }


def test_cpus_of_real_nodes_are_a_limit():
    assert ranks_by_node(plan_for(on_ray("auto", dp=24), cluster=CPU_NODES)) == {
        **{"head": 8, "node-1": 8, "node-2": 8}
    }
    message, hint = refusal(on_ray("auto", dp=25), CPU_NODES)
    assert "room for 24 of 25 ranks; a rank takes 1 CPU" in message
    assert hint == "dp=24"


def test_the_users_threads_are_what_a_rank_takes():
    message, hint = refusal(on_ray("auto", dp=4, engine__threads=8), CPU_NODES)
    assert "head, node-1, node-2: 8 CPUs: room for 1 rank" in message
    assert hint == "dp=3, or engine.threads=null"


def test_an_oversize_dp_local():
    message, hint = refusal(on_ray("split", dp=6, dp_local=5), RAGGED)
    assert message == (
        "dp=6 tp=1 topology=split topology.dp_local=5 engine.device=auto does not fit:"
        " room for 4 of 5 ranks on the head, 1 of 1 rank on other nodes;"
        " a rank takes 1 GPU and 1 CPU\n"
        "    head: 4 GPUs, 96 CPUs: room for 4 ranks\n"
        "    node-1: 2 GPUs, 96 CPUs: room for 2 ranks"
    )
    assert hint == (
        "dp=5 topology.dp_local=4, or topology.dp_local=4,"
        " or topology=auto topology.dp_local=null, or engine.device=cpu"
    )


def test_no_worker_nodes_for_split():
    message, hint = refusal(on_ray("split", dp=4), ray_cluster(node("head", 4)))
    assert (
        "2 of 2 ranks on the head, 0 of 2 ranks on other nodes, of which there are none" in message
    )
    assert hint == "topology.dp_local=4, or topology=auto"


def test_other_jobs_that_hold_the_gpus_are_named():
    message, hint = refusal(on_ray("auto", dp=4), BUSY)
    assert message.splitlines()[1:] == [
        "    head: 4 GPUs, 3 in use by notebook, 96 CPUs: room for 1 rank",
        "    node-1: 8 GPUs, 8 in use by training, evaluation, 96 CPUs: lacks 1 GPU for a rank",
        "    node-2: 8 GPUs, 4 CPUs, 4 in use by other work: lacks 1 CPU for a rank",
    ]
    assert hint == "dp=1, or engine.device=cpu"


def test_gpus_without_cpus():
    config = on_ray("remote_only", dp=2, tp=4)
    message, _ = refusal(config, ray_cluster(node("head"), node("node-1", 8, cpus=3)))
    assert "node-1: 8 GPUs, 3 CPUs: lacks 1 CPU for a rank" in message
    message, _ = refusal(config, ray_cluster(node("head"), node("node-1", 2, cpus=2)))
    assert "node-1: 2 GPUs, 2 CPUs: lacks 2 GPUs and 2 CPUs for a rank" in message


def test_ranks_that_only_fit_across_nodes():
    three = ray_cluster(node("head", 3), node("node-1", 3), node("node-2", 6))
    message, hint = refusal(on_ray("auto", dp=3, tp=4), three, facts=LLAMA_8B)
    assert "head, node-1: 3 GPUs, 96 CPUs: lacks 1 GPU for a rank" in message
    assert hint == "dp=1, or topology.strategy=span, or tp=2, or engine.device=cpu"
    message, _ = refusal(on_ray("auto", dp=4, tp=4, strategy="span"), three)
    assert "room for 3 of 4 ranks; a rank takes 4 GPUs and 4 CPUs on any nodes" in message
    assert "node-2: 6 GPUs, 96 CPUs: room for 6 workers" in message


def test_equal_parts_that_there_are_not():
    message, hint = refusal(on_ray("split", dp=5, dp_local=3, strategy="strict"), RAGGED)
    assert message.splitlines()[0].endswith(
        "a rank takes 1 GPU and 1 CPU, and every node used takes 3 ranks"
    )
    assert hint == "dp=3, or topology.strategy=fill"
    message, hint = refusal(on_ray("auto", dp=7, strategy="strict"), EVEN)
    assert "every node used takes the same number" in message
    assert hint == "dp=6, or topology.strategy=fill, or engine.device=cpu"


def test_nothing_leaves_the_gpus_without_saying_so():
    config = on_ray("split", dp=400)
    _, hint = refusal(config, CPU_HEAD)
    assert hint == "dp=4 topology.dp_local=0"
    assert plan_for(on_ray("split", dp=1), cluster=CPU_HEAD).settings.device is Device.cpu


def test_nodes_that_are_alike_share_a_line():
    message, _ = refusal(on_ray("remote_only", dp=2000), MANY)
    assert "node-1, node-2, node-3 and 196 more: 8 GPUs, 96 CPUs: room for 8 ranks" in message
    odd = [node(f"n{index}", 1, cpus=index) for index in range(50)]
    message, _ = refusal(on_ray("remote_only", dp=2000), ray_cluster(node("head"), *odd))
    assert len(message.splitlines()) == 22


def test_a_node_without_the_memory_is_left_out():
    plan = plan_for(on_ray("remote_only", dp=2), LLAMA_8B, UNLIKE)
    assert ranks_by_node(plan) == {"node-2": 2}
    message, hint = refusal(on_ray("remote_only", dp=3), UNLIKE, facts=LLAMA_8B)
    assert "a rank does not fit into tp=1 GPU of 16.0 GiB on node-1" in message
    assert "dp=2" in hint


# Clusters that can grow


def growing(*nodes: Node, can_add: tuple[str, ...] = ("CPU", "GPU")) -> Cluster:
    return ray_cluster(*nodes, can_add=can_add)


def pending(config: LaunchConfig, cluster: Cluster) -> Any:
    with pytest.raises(MustGrow) as grows:
        plan_for(config, SMOLLM2, cluster)
    return grows.value.pending


def test_a_cluster_that_has_not_grown_yet_is_asked_for_gpus():
    asked = pending(on_ray("remote_only", dp=3, tp=2), growing(node("head")))
    assert (asked.num_ranks, asked.strategy, asked.beside_head) == (3, "STRICT_PACK", True)
    assert asked.bundles == ({"GPU": 1, "CPU": 1},) * 2
    asked = pending(on_ray("auto", dp=4), growing(node("head"), node("node-1", 1)))
    # what there is room for too: else that would stand where there is room already
    assert (asked.num_ranks, asked.beside_head) == (4, False)
    assert pending(on_ray("auto", tp=2, strategy="span"), growing(node("head"))).strategy == "PACK"


def test_the_request_says_what_lacks():
    with pytest.raises(MustGrow) as grows:
        plan_for(on_ray("auto", dp=4), SMOLLM2, growing(node("head", 1)))
    lines = str(grows.value).splitlines()
    assert lines[-1] == "the cluster can grow: it lacks 3 ranks of 1 GPU and 1 CPU"
    assert (grows.value.exit_code, grows.value.hint) == (2, "dp=1, or engine.device=cpu")


def test_cpus_are_asked_for_too():
    asked = pending(
        on_ray("remote_only", dp=2, engine__device=Device.cpu, engine__threads=4),
        growing(node("head"), can_add=("CPU",)),
    )
    assert asked.bundles == ({"CPU": 4},)


def test_what_there_is_room_for_is_not_asked_for():
    plan = plan_for(on_ray("auto", dp=2), SMOLLM2, growing(node("head", 2)))
    assert ranks_by_node(plan) == {"head": 2}
    config = on_ray("auto", dp=2, model__kind=ModelKind.dummy)
    assert plan_for(config, SMOLLM2, growing(node("head"))).settings.device is Device.cpu


@pytest.mark.parametrize(
    ("config", "cluster"),
    [
        (on_ray("split", dp=4), growing(node("head", 2))),
        (on_ray("head_only", dp=4), growing(node("head", 2))),
        (on_ray("auto", dp=4, dp_local=3), growing(node("head", 2))),
        (
            on_ray("remote_only", engine__device=Device.cuda),
            growing(node("head", 1), can_add=("CPU",)),
        ),
    ],
)
def test_growing_is_no_answer_to_what_new_nodes_cannot_give(config, cluster):
    with pytest.raises(DoesNotFit) as refused:
        plan_for(config, SMOLLM2, cluster)
    assert not isinstance(refused.value, MustGrow)


def test_mp_asks_nobody_for_cpus():
    assert len(plan_for(config_of(dp=3), cluster=LAPTOP).groups) == 3
