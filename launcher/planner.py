"""`make_plan`: from config, model and cluster to the plan. Pure: same inputs, same bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.config import (
    CacheSettings,
    Device,
    DType,
    EngineOptions,
    Kernels,
    ModelKind,
    Quantization,
    Settings,
)
from engine.model.facts import ModelFacts
from engine.wording import counted
from launcher.addresses import is_loopback
from launcher.alternatives import alternatives
from launcher.capacity import Need
from launcher.cluster import Cluster, Node
from launcher.config import LaunchConfig, TopologyKind
from launcher.errors import Refused
from launcher.given_groups import GivenPlace, given_places
from launcher.memory import RankMemory, memory_room, size_cache
from launcher.placement import Home, loads, place, usable_nodes
from launcher.plan import PLAN_VERSION, DeploymentPlan, PlacementGroup, sealed
from launcher.ports import parse_ports
from launcher.processes import groups, processes
from launcher.shortage import DoesNotFit, shortage


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known before anything is placed."""

    device: Device
    dtype: DType
    need: Need
    memory: RankMemory

    def memory_room(self, node: Node) -> int | None:
        return memory_room(self.memory, self.device, node)


@dataclass(frozen=True, slots=True)
class Decisions:
    """What had to be decided before a plan could be written down."""

    homes: tuple[Home, ...]
    given: tuple[GivenPlace, ...]
    """Each rank's, if it was given."""
    cache: CacheSettings
    max_model_len: int


def make_plan(
    config: LaunchConfig,
    facts: ModelFacts,
    cluster: Cluster,
    *,
    model_name: str,
    passed_environment: tuple[str, ...] = (),
    given: Sequence[PlacementGroup] = (),
) -> DeploymentPlan:
    """Which processes run where, and what they are told.

    Args:
        config: Checked (`launcher.config_checks.check`).
        facts: Of the model.
        cluster: Every machine that could be used.
        model_name: What clients send as `model`.
        passed_environment: Names of other tools' variables that reach the processes.
        given: Placement groups that stand already and say where ranks go; none: the planner says.

    Raises:
        MustGrow: It cannot be placed yet; the cluster can be asked for what lacks.
        Refused: It cannot be placed; the hint names the nearest overrides that can.
    """

    outlook = _outlook(config, facts, cluster, given)

    def fits(wanted: LaunchConfig) -> bool:
        try:
            asked = _outlook(wanted, facts, cluster, given)
            found = _decide(wanted, cluster, asked, given) is not None
        except Refused:
            return False
        # Nothing leaves the GPUs without saying so.
        cpu = Device.cpu
        leaves = asked.device is cpu and cpu not in (outlook.device, wanted.engine.device)
        return found and not leaves

    try:
        decisions = _decide(config, cluster, outlook, given)
        if decisions is None:
            raise shortage(config, cluster, outlook.need, outlook.memory_room)
    except DoesNotFit as problem:
        problem.hint = ", or ".join(alternatives(config, facts, problem.room, fits))
        raise
    homes = decisions.homes
    return sealed(
        DeploymentPlan(
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
            groups=tuple(given) or groups(config, homes, outlook.need),
            processes=processes(config, cluster, homes, outlook.need, decisions.given),
            settings=_settings(config, facts, outlook, decisions, model_name),
            cluster=cluster.kind,
            ports=parse_ports(config.ports),
            passed_environment=passed_environment,
            warnings=tuple(_warnings(config, facts, outlook.need, homes)),
        )
    )


def _outlook(
    config: LaunchConfig, facts: ModelFacts, cluster: Cluster, given: Sequence[PlacementGroup]
) -> Outlook:
    device = _device(config, cluster, given)
    if config.engine.kernels is Kernels.native and device is not Device.cpu:
        raise Refused("engine.kernels needs engine.device=cpu: native", "engine.kernels=auto")
    dtype = _dtype(config, facts, device)
    if config.engine.quantization is not Quantization.none:
        _check_quantization(config.engine, device)
    memory = RankMemory(config, facts, dtype, device)
    return Outlook(device, dtype, Need.of(config, cluster, device), memory)


def _decide(
    config: LaunchConfig, cluster: Cluster, outlook: Outlook, given: Sequence[PlacementGroup]
) -> Decisions | None:
    """Places the ranks and sizes their caches; None where there is no room but for memory.

    Raises:
        DoesNotFit: There is too little memory.
    """
    places = given_places(config, cluster, outlook.need, given) if given else ()
    homes: tuple[Home, ...] | None = tuple(each.home for each in places)
    if not given:
        homes = place(config, cluster, outlook.need, outlook.memory_room)
    if homes is None:  # without regard to memory, which has errors of its own
        homes = place(config, cluster, outlook.need, lambda _: None)
    if homes is None:
        return None
    cache, max_model_len = size_cache(outlook.memory, outlook.device, homes)
    return Decisions(homes, places, cache, max_model_len)


def _device(config: LaunchConfig, cluster: Cluster, given: Sequence[PlacementGroup]) -> Device:
    if config.engine.device is not Device.auto:
        return config.engine.device
    if config.model.kind is ModelKind.dummy:
        return Device.cpu  # it computes nothing: as many ranks as wanted, GPUs or not
    if given:
        has_gpus = any(bundle.resources.get("GPU") for group in given for bundle in group.bundles)
        return Device.cuda if has_gpus else Device.cpu
    grows = config.topology.kind in (TopologyKind.auto, TopologyKind.remote_only)
    has_gpus = any(node.gpus for node in usable_nodes(config, cluster))
    return Device.cuda if has_gpus or (grows and "GPU" in cluster.can_add) else Device.cpu


def _dtype(config: LaunchConfig, facts: ModelFacts, device: Device) -> DType:
    wanted = config.engine.dtype
    half_on_cpu = "float16" if device is Device.cpu else None
    if wanted is DType.auto:
        # CPUs compute float16 slowly or not at all; float32 holds every float16 value.
        return DType.float32 if facts.dtype == half_on_cpu else DType(facts.dtype)
    if wanted.value == half_on_cpu:
        raise Refused("engine.dtype needs a GPU: float16", "engine.dtype=float32")
    return wanted


def _check_quantization(engine: EngineOptions, device: Device) -> None:
    """Raises Refused where other operators than the C kernels would compute."""
    wanted = engine.quantization.value
    if device is not Device.cpu:
        message = f"engine.quantization needs engine.device=cpu: {wanted}"
        raise Refused(message, "engine.quantization=none, or engine.device=cpu")
    if engine.kernels is Kernels.torch:
        message = f"engine.quantization needs the C kernels, not engine.kernels=torch: {wanted}"
        raise Refused(message, "engine.kernels=auto, or engine.quantization=none")


def _settings(
    config: LaunchConfig,
    facts: ModelFacts,
    outlook: Outlook,
    decisions: Decisions,
    model_name: str,
) -> Settings:
    return Settings(
        name=config.name,
        dp=config.dp,
        tp=config.tp,
        model=config.model,
        model_name=model_name,
        facts=facts,
        dtype=outlook.dtype,
        device=outlook.device,
        kernels=config.engine.kernels,
        quantization=config.engine.quantization,
        seed=config.engine.seed,
        max_model_len=decisions.max_model_len,
        max_num_seqs=config.profile.max_num_seqs,
        max_num_batched_tokens=config.profile.max_num_batched_tokens,
        max_step_s=config.profile.max_step_s,
        cache=decisions.cache,
        frontend=config.frontend.without_secrets(),
        balancer=config.balancer,
        health=config.health,
        coordinator=config.coordinator,
        restart=config.restart,
        log=config.log,
        drain_s=config.drain_s,
    )


def _warnings(
    config: LaunchConfig, facts: ModelFacts, need: Need, homes: Sequence[Home]
) -> Iterator[str]:
    for load in loads(homes) if not need.cpus_are_a_limit else ():
        node, asked = load.node, load.num_workers * need.cpus_per_worker
        if 0 < node.free_cpus < asked:
            wanted = f"{counted(load.num_ranks, 'rank')} should have {counted(asked, 'CPU')}"
            yield f"{wanted} on {node.id}, which has {node.free_cpus}: all will be slower"
    if not config.frontend.has_keys and not is_loopback(config.frontend.host):
        yield (
            f"whoever reaches frontend.host={config.frontend.host} can use the API, no key is"
            " asked for: see frontend.api_key_file"
        )
    if facts.num_attention_heads % config.tp:
        heads = counted(facts.num_attention_heads, "head")
        yield f"tp={config.tp} does not divide the model's {heads}"
