"""How long a plan takes on a large cluster: 10 000 nodes of 8 GPUs unless told otherwise.

    PYTHONPATH=. python benchmarks/planning.py [--nodes 10000] [--gpus 8] [--rounds 5]

Prints one JSON object per case: what was asked, the seconds that `make_plan` took (best and median
of the rounds, digest and all), the number of nodes that it used. A refusal counts as a plan does:
it has tried what it offers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

from engine.model.facts import ModelFacts
from launcher.cluster import Cluster, ClusterKind, Node
from launcher.config import (
    AutoClusterOptions,
    LaunchConfig,
    RayOptions,
    Strategy,
    TopologyKind,
    TopologyOptions,
)
from launcher.planner import make_plan
from launcher.shortage import DoesNotFit

GIB = 2**30
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    dtype="bfloat16",
    eos_token_ids=(128009,),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cluster = cluster_of(args.nodes, args.gpus)
    for config in configs(args.nodes, args.gpus):
        print(json.dumps(measure(config, cluster, args.rounds)), flush=True)  # noqa: T201


def cluster_of(num_nodes: int, gpus: int) -> Cluster:
    """A head and other nodes, all alike; every fifth has GPUs in use."""
    nodes = (
        Node(
            id=f"node-{index}" if index else "head",
            address=f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}",
            head=not index,
            cpus=96,
            memory_bytes=1024 * GIB,
            gpus=gpus,
            gpu_memory_bytes=80 * GIB,
            in_use={"GPU": index % gpus} if index % 5 == 0 else {},
        )
        for index in range(num_nodes)
    )
    return Cluster(nodes=tuple(nodes), kind=ClusterKind.existing)


def configs(num_nodes: int, gpus: int) -> Iterator[LaunchConfig]:
    """The most ranks that can be asked for, by every strategy; all GPUs; and too many."""
    for strategy in Strategy:
        yield config_of(TopologyKind.auto, strategy, dp=4096, tp=4)
    yield config_of(TopologyKind.split, Strategy.fill, dp=4096, tp=1, dp_local=gpus)
    whole = num_nodes * 4 // 5
    yield config_of(TopologyKind.remote_only, Strategy.fill, dp=whole, tp=gpus)
    for strategy in Strategy:
        yield config_of(TopologyKind.auto, strategy, dp=4096, tp=8 * gpus)


def config_of(
    kind: TopologyKind, strategy: Strategy, dp: int, tp: int, dp_local: int | None = None
) -> LaunchConfig:
    return LaunchConfig(
        dp=dp,
        tp=tp,
        backend=RayOptions(),
        topology=TopologyOptions(kind=kind, strategy=strategy, dp_local=dp_local),
        cluster=AutoClusterOptions(),
    )


def measure(config: LaunchConfig, cluster: Cluster, rounds: int) -> dict[str, Any]:
    took_s, used = [], 0
    for _ in range(rounds):
        began_s = time.perf_counter()
        try:
            plan = make_plan(config, FACTS, cluster, model_name="a-model")
            used = len({bundle.node for group in plan.groups for bundle in group.bundles})
        except DoesNotFit:
            used = 0
        took_s.append(time.perf_counter() - began_s)
    return {
        "topology": config.topology.kind.name,
        "strategy": config.topology.strategy.name,
        "dp": config.dp,
        "tp": config.tp,
        "best_s": round(min(took_s), 3),
        "median_s": round(statistics.median(took_s), 3),
        "nodes_used": used or "does not fit",
    }


if __name__ == "__main__":
    main()
