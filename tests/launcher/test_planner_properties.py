"""What holds for every plan, whatever was asked of whatever cluster."""

from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.config import Device, DType, ModelKind, ProcessSpec, Quantization, Role
from launcher.cluster import Cluster, ClusterKind, Node
from launcher.config import (
    Action,
    LaunchConfig,
    MpOptions,
    RayOptions,
    Strategy,
    TopologyKind,
    TopologyOptions,
)
from launcher.config_checks import check
from launcher.errors import Refused
from launcher.plan import DeploymentPlan, encode, sealed
from tests.launcher.samples import GIB, LLAMA_8B, SMOLLM2, config_of, plan_for

MEMORY = st.sampled_from([GIB, 0, 24 * GIB, 80 * GIB, 512 * GIB])
IN_USE = st.fixed_dictionaries({}, optional={"CPU": st.floats(0, 20), "GPU": st.integers(0, 4)})


@st.composite
def nodes(draw: st.DrawFn, id: str) -> Node:
    return Node(
        id=id,
        head=id == "head",
        cpus=draw(st.integers(0, 64)),
        memory_bytes=draw(MEMORY),
        gpus=draw(st.integers(0, 16)),
        gpu_memory_bytes=draw(MEMORY),
        in_use=draw(IN_USE),
    )


clusters = st.builds(
    lambda head, others, kind, can_add: Cluster(
        nodes=(*others[:1], head, *others[1:]), kind=kind, can_add=can_add
    ),
    nodes("head"),
    st.integers(0, 4).flatmap(
        lambda number: st.tuples(*(nodes(f"node-{index}") for index in range(number)))
    ),
    st.sampled_from(ClusterKind),
    st.sampled_from([(), (), ("CPU", "GPU")]),
)


def topology_of(kind: TopologyKind, strategy: Strategy, dp: int, share: float) -> TopologyOptions:
    """With the ranks on the head that a share of all are, where the topology leaves them open."""
    is_open = kind in (TopologyKind.split, TopologyKind.auto) and share <= 1
    dp_local = round(share * dp) if is_open else None
    return TopologyOptions(kind=kind, strategy=strategy, dp_local=dp_local)


def with_placement(
    config: LaunchConfig, kind: TopologyKind, strategy: Strategy, share: float
) -> LaunchConfig:
    on_mp = kind is TopologyKind.head_only and share < 1
    return replace(
        config,
        backend=MpOptions() if on_mp else RayOptions(),
        topology=topology_of(kind, strategy, config.dp, share),
        action=Action.plan,
    )


plain_configs = st.builds(
    config_of,
    dp=st.integers(1, 12),
    tp=st.integers(1, 3),
    engine__device=st.sampled_from(Device),
    engine__threads=st.none() | st.integers(1, 9),
    profile__block_size=st.sampled_from([1, 16, 1000]),
    profile__max_model_len=st.none() | st.integers(1, 9000),
    profile__kv_cache_bytes=st.just("auto") | st.sampled_from(["1MiB", "3GiB", "1TiB"]),
    frontend__count=st.integers(1, 3),
)
configs = st.builds(
    with_placement,
    plain_configs,
    st.sampled_from(TopologyKind),
    st.sampled_from(Strategy),
    st.floats(0, 2),
)
models = st.sampled_from([SMOLLM2, LLAMA_8B, replace(SMOLLM2, dtype="float16")])


def plan_or_none(config: LaunchConfig, *where: Any) -> DeploymentPlan | None:
    try:
        return plan_for(config, *where)
    except Refused:
        return None


def engines(plan: DeploymentPlan) -> list[ProcessSpec]:
    return [process for process in plan.processes if process.role is Role.engine]


@given(configs, models, clusters)
def test_every_rank_runs_exactly_once(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is None:
        return
    assert [each.rank for each in engines(plan)] == list(range(config.dp))
    by_node: dict[str, list[ProcessSpec]] = {}
    for each in engines(plan):
        by_node.setdefault(each.node, []).append(each)
        assert [worker.index for worker in each.workers] == list(range(config.tp))
    for here in by_node.values():
        assert [each.local_rank for each in here] == list(range(len(here)))
        assert {each.num_local_ranks for each in here} == {len(here)}
    names = [process.name for process in plan.processes]
    assert len(names) == len(set(names)) == 1 + config.frontend.count + config.dp


@given(configs, models, clusters)
def test_no_node_gives_more_gpus_than_it_has_free(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is None:
        return
    asked: Counter[str] = Counter()
    for group in plan.groups:
        for bundle in group.bundles:
            asked[bundle.node] += bundle.resources.get("GPU", 0)
    devices: dict[str, list[int]] = {}
    for each in engines(plan):
        for worker in each.workers:
            devices.setdefault(worker.node, []).extend(worker.devices)
    for node in plan.nodes:
        here = devices.get(node.id, [])
        assert asked[node.id] <= node.free_gpus
        assert len(here) == (asked[node.id] if plan.backend == "mp" else 0)
        assert len(set(here)) == len(here)
        assert all(0 <= device < node.gpus for device in here)


@given(configs, models, clusters)
def test_every_worker_has_a_bundle_of_its_own_on_its_node(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is None:
        return
    groups = {group.name: group for group in plan.groups}
    used = set()
    for each in engines(plan):
        for worker in each.workers:
            assert groups[worker.group].bundles[worker.bundle].node == worker.node
            used.add((worker.group, worker.bundle))
    assert len(used) == config.dp * config.tp == sum(len(group.bundles) for group in plan.groups)


@given(configs, models, clusters)
def test_no_bundle_takes_what_its_node_does_not_have(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is None or plan.backend == "mp" or cluster.kind is ClusterKind.emulated:
        return
    asked: Counter[str] = Counter()
    for group in plan.groups:
        for bundle in group.bundles:
            asked[bundle.node] += bundle.resources["CPU"]
    for node in plan.nodes:
        assert asked[node.id] <= node.free_cpus


def ranks_by_node(plan: DeploymentPlan) -> Counter[str]:
    """Ranks that have a worker on each node."""
    return Counter(id for each in engines(plan) for id in {worker.node for worker in each.workers})


@given(configs, models, clusters)
def test_the_head_has_the_ranks_that_the_topology_gives_it(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is None:
        return
    on_head = ranks_by_node(plan)[plan.head]
    match config.topology:
        case TopologyOptions(dp_local=int(dp_local)):
            assert on_head == dp_local
        case TopologyOptions(kind=TopologyKind.head_only):
            assert on_head == config.dp
        case TopologyOptions(kind=TopologyKind.split):
            assert on_head == (config.dp + 1) // 2
        case TopologyOptions(kind=TopologyKind.remote_only):
            assert on_head == 0
    first = [each.node for each in engines(plan) if each.node == plan.head]
    assert [each.node for each in engines(plan)][: len(first)] == first


@given(configs, models, clusters)
def test_a_rank_stays_on_one_node_unless_it_may_cross(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is None:
        return
    may_cross = config.topology.strategy is Strategy.span
    assert {group.strategy for group in plan.groups} == {"PACK" if may_cross else "STRICT_PACK"}
    for group in plan.groups:
        assert may_cross or len({bundle.node for bundle in group.bundles}) == 1


@given(configs, models, clusters)
def test_strict_puts_the_same_number_on_every_node_used(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is not None and config.topology.strategy is Strategy.strict:
        assert len(set(ranks_by_node(plan).values())) == 1


@given(configs, clusters)
def test_every_strategy_but_strict_fits_where_another_does(config, cluster):
    """Without regard to memory, of which a crowded node may have too little."""
    config = replace(config, model=replace(config.model, kind=ModelKind.dummy))
    if config.engine.device is Device.cpu:
        nodes = [msgspec.structs.replace(node, memory_bytes=0) for node in cluster.nodes]
        cluster = msgspec.structs.replace(cluster, nodes=tuple(nodes))
    fit = {
        strategy: plan_or_none(
            replace(config, topology=replace(config.topology, strategy=strategy)), SMOLLM2, cluster
        )
        is not None
        for strategy in Strategy
    }
    assert fit[Strategy.fill] == fit[Strategy.spread]
    assert fit[Strategy.fill] or not fit[Strategy.strict]
    assert fit[Strategy.span] or not fit[Strategy.fill]


@given(configs, models, clusters)
def test_the_longest_request_fits_into_the_cache_alone(config, facts, cluster):
    plan = plan_or_none(config, facts, cluster)
    if plan is None:
        return
    settings = plan.settings
    assert 1 <= settings.max_model_len <= settings.cache.num_blocks * settings.cache.block_size
    assert settings.max_model_len <= facts.max_position_embeddings
    assert DType.auto is not settings.dtype
    assert Device.auto is not settings.device


@given(configs, models, clusters)
def test_same_inputs_give_the_same_bytes(config, facts, cluster):
    plan, again = (plan_or_none(config, facts, cluster) for _ in range(2))
    assert plan == again
    if plan is not None and again is not None:
        assert encode(plan) == encode(again)
        assert sealed(plan).digest == plan.digest


@given(configs, models, clusters)
def test_whatever_a_refusal_offers_can_be_planned(config, facts, cluster):
    # which is checked before
    assume(config.dp > 1 or config.topology.kind is not TopologyKind.split)
    try:
        plan_for(config, facts, cluster)
    except Refused as refused:
        for overrides in filter(None, refused.hint.split(", or ")):
            wanted = changed(config, overrides)
            check(wanted)
            plan = plan_or_none(wanted, facts, cluster)
            # A limit that is mended may uncover a shortage; that one has its own hint.
            is_limit = overrides.startswith("profile.") and "auto" not in overrides
            assert plan is not None or is_limit


WORDS: dict[str, Any] = {
    "cpu": Device.cpu,
    "bfloat16": DType.bfloat16,
    "int8": Quantization.int8,
    "null": None,
    "ray": RayOptions(),
    **Strategy.__members__,
}


def changed(config: LaunchConfig, overrides: str) -> LaunchConfig:
    for override in overrides.split():
        key, _, typed = override.partition("=")
        value: Any = int(typed) if typed.isdigit() else WORDS.get(typed, typed)
        if key == "topology":
            key, value = "topology.kind", TopologyKind[typed]
        section, _, name = key.rpartition(".")
        part: Any = replace(getattr(config, section), **{name: value}) if section else value
        config = replace(config, **{section or name: part})
    return config
