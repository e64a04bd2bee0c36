"""What holds for every plan, whatever was asked of whatever cluster."""

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.config import Device, DType, ProcessSpec, Role
from launcher.cluster import Cluster, Node
from launcher.config import LaunchConfig
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
    lambda head, others: Cluster(nodes=(*others[:1], head, *others[1:])),
    nodes("head"),
    st.lists(nodes("n"), max_size=2).map(
        lambda others: [
            Node(id=f"node-{index}", cpus=each.cpus, gpus=each.gpus, in_use=each.in_use)
            for index, each in enumerate(others)
        ]
    ),
)
configs = st.builds(
    config_of,
    dp=st.integers(1, 6),
    tp=st.integers(1, 3),
    engine__device=st.sampled_from(Device),
    engine__threads=st.none() | st.integers(1, 9),
    profile__block_size=st.sampled_from([1, 16, 1000]),
    profile__max_model_len=st.none() | st.integers(1, 9000),
    profile__kv_cache_bytes=st.just("auto") | st.sampled_from(["1MiB", "3GiB", "1TiB"]),
    frontend__count=st.integers(1, 3),
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
        assert len(here) == asked[node.id] <= node.free_gpus
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
            assert groups[worker.group].bundles[worker.bundle].node == worker.node == each.node
            used.add((worker.group, worker.bundle))
    assert len(used) == config.dp * config.tp == sum(len(group.bundles) for group in plan.groups)


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
    try:
        plan_for(config, facts, cluster)
    except Refused as refused:
        for overrides in filter(None, refused.hint.split(", or ")):
            plan = plan_or_none(changed(config, overrides), facts, cluster)
            # A limit that is mended may uncover a shortage; that one has its own hint.
            is_limit = overrides.startswith("profile.") and "auto" not in overrides
            assert plan is not None or is_limit


def changed(config: LaunchConfig, overrides: str) -> LaunchConfig:
    for override in overrides.split():
        key, _, typed = override.partition("=")
        words = {"cpu": Device.cpu, "bfloat16": DType.bfloat16, "null": None}
        value: Any = int(typed) if typed.isdigit() else words.get(typed, typed)
        section, _, name = key.rpartition(".")
        part: Any = replace(getattr(config, section), **{name: value}) if section else value
        config = replace(config, **{section or name: part})
    return config
