"""The processes and placement groups of a plan, once every rank has a home: pure."""

from collections import Counter
from collections.abc import Sequence

from engine.config import ProcessSpec, Role, WorkerSpec
from launcher.capacity import Need
from launcher.cluster import Cluster, Node
from launcher.config import LaunchConfig, MpOptions
from launcher.given_groups import GivenPlace
from launcher.placement import Home, Load, loads
from launcher.plan import Bundle, PlacementGroup
from launcher.shortage import group_strategy


def groups(config: LaunchConfig, homes: Sequence[Home], need: Need) -> tuple[PlacementGroup, ...]:
    """One group per rank, one bundle per worker, each on its node."""
    strategy = group_strategy(config)
    bundles = {
        node.id: Bundle(resources=need.bundle, node=node.id) for home in homes for node in home
    }
    return tuple(
        PlacementGroup(
            name=_engine_name(rank),
            strategy=strategy,
            bundles=tuple(bundles[node.id] for node in home),
        )
        for rank, home in enumerate(homes)
    )


def processes(
    config: LaunchConfig,
    cluster: Cluster,
    homes: Sequence[Home],
    need: Need,
    given: Sequence[GivenPlace] = (),
) -> tuple[ProcessSpec, ...]:
    """Coordinator and front ends on the head, engine cores where their ranks live.

    Args:
        given: Each rank's bundles in groups of others; none: each rank has a group of its own.
    """
    head = cluster.head.id
    front = [
        ProcessSpec(name="coordinator", role=Role.coordinator, node=head),
        *(
            ProcessSpec(name=f"frontend-{index}", role=Role.frontend, node=head)
            for index in range(config.frontend.count)
        ),
    ]
    load_of = {load.node.id: load for load in loads(homes)}
    num_threads = {id: _num_threads(config, load) for id, load in load_of.items()}
    # Which GPUs Ray gives is known only when it has.
    gives_ids = isinstance(config.backend, MpOptions) and need.gpus_per_worker > 0
    ranks_before: Counter[str] = Counter()
    workers_before: Counter[str] = Counter()

    def worker(rank: int, index: int, node: Node) -> WorkerSpec:
        before = workers_before[node.id]
        workers_before[node.id] += 1
        return WorkerSpec(
            index=index,
            node=node.id,
            group=given[rank].group if given else _engine_name(rank),
            bundle=given[rank].bundles[index] if given else index,
            # The ids that other work holds are taken to be the lowest.
            devices=(node.gpus - node.free_gpus + before,) if gives_ids else (),
            num_gpus=need.gpus_per_worker,
            num_threads=num_threads[node.id],
        )

    for rank, home in enumerate(homes):
        id = home[0].id
        local_rank = ranks_before[id]
        ranks_before[id] += 1
        front.append(
            ProcessSpec(
                name=_engine_name(rank),
                role=Role.engine,
                node=id,
                rank=rank,
                local_rank=local_rank,
                num_local_ranks=load_of[id].num_ranks,
                workers=tuple(worker(rank, index, node) for index, node in enumerate(home)),
            )
        )
    return tuple(front)


def _engine_name(rank: int) -> str:
    return f"engine-{rank}"


def _num_threads(config: LaunchConfig, load: Load) -> int:
    """CPU threads of one worker: an even share of the node unless the user says more."""
    return config.engine.threads or max(1, load.node.free_cpus // load.num_workers)
