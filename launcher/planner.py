"""`make_plan`: from config, model and cluster to the plan. Pure: same inputs, same bytes."""

from collections import Counter
from collections.abc import Iterator, Sequence

from engine.config import (
    Device,
    DType,
    Kernels,
    ModelKind,
    ProcessSpec,
    Role,
    Settings,
    WorkerSpec,
)
from engine.model.facts import ModelFacts
from engine.wording import counted
from launcher.alternatives import alternatives
from launcher.cluster import Cluster, Node
from launcher.config import LaunchConfig
from launcher.errors import Refused
from launcher.memory import size_cache
from launcher.placement import DoesNotFit, allowed_nodes, place, ranks_per_node
from launcher.plan import PLAN_VERSION, Bundle, DeploymentPlan, PlacementGroup, sealed


def make_plan(
    config: LaunchConfig,
    facts: ModelFacts,
    cluster: Cluster,
    *,
    model_name: str,
    passed_environment: tuple[str, ...] = (),
) -> DeploymentPlan:
    """Which processes run where, and what they are told.

    Args:
        config: Checked (`launcher.config_checks.check`).
        facts: Of the model.
        cluster: Every machine that could be used.
        model_name: What clients send as `model`.
        passed_environment: Names of other tools' variables that reach the processes.

    Raises:
        Refused: It cannot be placed; the hint names the nearest overrides that can.
    """

    def attempt(wanted: LaunchConfig) -> DeploymentPlan:
        return _plan(wanted, facts, cluster, model_name, passed_environment)

    def fits(wanted: LaunchConfig) -> bool:
        try:
            attempt(wanted)
        except Refused:
            return False
        return True

    try:
        return attempt(config)
    except DoesNotFit as shortage:
        raise DoesNotFit(str(shortage), ", or ".join(alternatives(config, facts, fits))) from None


def _plan(
    config: LaunchConfig,
    facts: ModelFacts,
    cluster: Cluster,
    model_name: str,
    passed_environment: tuple[str, ...],
) -> DeploymentPlan:
    device = _device(config, cluster)
    if config.engine.kernels is Kernels.native and device is not Device.cpu:
        raise Refused("engine.kernels needs engine.device=cpu: native", "engine.kernels=auto")
    dtype = _dtype(config, facts, device)
    homes = place(config, cluster, device)
    plan = DeploymentPlan(
        version=PLAN_VERSION,
        name=config.name,
        generation=1,
        digest="",
        backend=config.backend.choice,
        topology=config.topology.kind.name,
        dp=config.dp,
        tp=config.tp,
        head=cluster.head.id,
        nodes=cluster.nodes,
        groups=tuple(_group(rank, home, config, device) for rank, home in enumerate(homes)),
        processes=tuple(_processes(config, cluster.head, homes, device)),
        settings=_settings(config, facts, dtype, device, homes, model_name),
        passed_environment=passed_environment,
        warnings=tuple(_warnings(config, facts, homes)),
    )
    return sealed(plan)


def _device(config: LaunchConfig, cluster: Cluster) -> Device:
    if config.engine.device is not Device.auto:
        return config.engine.device
    if config.model.kind is ModelKind.dummy:
        return Device.cpu  # it computes nothing: as many ranks as wanted, GPUs or not
    usable = allowed_nodes(config.topology.kind, cluster)
    return Device.cuda if any(node.gpus for node in usable) else Device.cpu


def _dtype(config: LaunchConfig, facts: ModelFacts, device: Device) -> DType:
    wanted = config.engine.dtype
    half_on_cpu = "float16" if device is Device.cpu else None
    if wanted is DType.auto:
        # CPUs compute float16 slowly or not at all; float32 holds every float16 value.
        return DType.float32 if facts.dtype == half_on_cpu else DType(facts.dtype)
    if wanted.value == half_on_cpu:
        raise Refused("engine.dtype needs a GPU: float16", "engine.dtype=float32")
    return wanted


def _settings(
    config: LaunchConfig,
    facts: ModelFacts,
    dtype: DType,
    device: Device,
    homes: Sequence[Node],
    model_name: str,
) -> Settings:
    cache, max_model_len = size_cache(config, facts, dtype, device, homes)
    return Settings(
        name=config.name,
        dp=config.dp,
        tp=config.tp,
        model=config.model,
        model_name=model_name,
        facts=facts,
        dtype=dtype,
        device=device,
        kernels=config.engine.kernels,
        seed=config.engine.seed,
        max_model_len=max_model_len,
        max_num_seqs=config.profile.max_num_seqs,
        max_num_batched_tokens=config.profile.max_num_batched_tokens,
        cache=cache,
        frontend=config.frontend,
        balancer=config.balancer,
        health=config.health,
        coordinator=config.coordinator,
        restart=config.restart,
        log=config.log,
        drain_s=config.drain_s,
    )


def _group(rank: int, home: Node, config: LaunchConfig, device: Device) -> PlacementGroup:
    """One bundle per worker, packed on one node."""
    resources = {"CPU": config.engine.threads or 1}
    if device is Device.cuda:
        resources = {"GPU": 1, **resources}
    bundle = Bundle(resources=resources, node=home.id)
    return PlacementGroup(
        name=_engine_name(rank), strategy="STRICT_PACK", bundles=(bundle,) * config.tp
    )


def _processes(
    config: LaunchConfig, head: Node, homes: Sequence[Node], device: Device
) -> Iterator[ProcessSpec]:
    yield ProcessSpec(name="coordinator", role=Role.coordinator, node=head.id)
    for index in range(config.frontend.count):
        yield ProcessSpec(name=f"frontend-{index}", role=Role.frontend, node=head.id)
    on_node = {node.id: num_ranks for node, num_ranks in ranks_per_node(homes)}
    placed: Counter[str] = Counter()
    for rank, home in enumerate(homes):
        local_rank = placed[home.id]
        placed[home.id] += 1
        num_threads = _num_threads(config, home, on_node[home.id])
        yield ProcessSpec(
            name=_engine_name(rank),
            role=Role.engine,
            node=home.id,
            rank=rank,
            local_rank=local_rank,
            num_local_ranks=on_node[home.id],
            workers=tuple(
                WorkerSpec(
                    index=index,
                    node=home.id,
                    group=_engine_name(rank),
                    bundle=index,
                    devices=_devices(home, local_rank * config.tp + index, device),
                    num_threads=num_threads,
                )
                for index in range(config.tp)
            ),
        )


def _engine_name(rank: int) -> str:
    return f"engine-{rank}"


def _num_threads(config: LaunchConfig, node: Node, num_ranks: int) -> int:
    """CPU threads of one worker: an even share of the node unless the user says more."""
    return config.engine.threads or max(1, node.free_cpus // num_ranks // config.tp)


def _devices(node: Node, local_worker: int, device: Device) -> tuple[int, ...]:
    """GPU ids of one worker; the ids that other work holds are taken to be the lowest."""
    return (node.gpus - node.free_gpus + local_worker,) if device is Device.cuda else ()


def _warnings(config: LaunchConfig, facts: ModelFacts, homes: Sequence[Node]) -> Iterator[str]:
    for node, num_ranks in ranks_per_node(homes):
        asked = num_ranks * config.tp * (config.engine.threads or 1)
        if 0 < node.free_cpus < asked:
            wanted = f"{counted(num_ranks, 'rank')} should have {counted(asked, 'CPU')}"
            yield f"{wanted} on {node.id}, which has {node.free_cpus}: all will be slower"
    if facts.num_attention_heads % config.tp:
        heads = counted(facts.num_attention_heads, "head")
        yield f"tp={config.tp} does not divide the model's {heads}"
