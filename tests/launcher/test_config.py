"""The groups compose, and limits and rules are checked on the whole config."""

import pytest

from engine.config import BalancerPolicy, ModelKind, ModelOptions, ProfileOptions
from launcher.config import (
    Action,
    AutoClusterOptions,
    EmulatedClusterOptions,
    ExistingClusterOptions,
    FileClusterOptions,
    MpOptions,
    PlanFormat,
    RayOptions,
    Strategy,
    TopologyKind,
)
from launcher.config_checks import check, not_read, without_effect
from launcher.config_options import Catalogue, read_defaults, read_groups
from launcher.errors import Refused
from tests.launcher.samples import composed, config_of


def test_nothing_typed_means_the_default_model_on_this_machine():
    config = composed()
    assert config.action is Action.serve
    assert (config.dp, config.tp, config.name, config.drain_s) == (1, 1, "flotilla", 30.0)
    assert config.topology.kind is TopologyKind.head_only
    assert isinstance(config.backend, MpOptions)
    assert isinstance(config.cluster, AutoClusterOptions)
    assert config.model == ModelOptions(kind=ModelKind.smollm2_135m)
    assert config.balancer.policy is BalancerPolicy.least_loaded
    check(config)


def test_yaml_says_the_defaults_of_the_dataclasses_again_nowhere():
    config = composed()
    assert config == config_of()
    assert config.profile == ProfileOptions()


NEEDED = {
    ("model", "path"): ["model.path=DIR"],
    ("model", "hub"): ["model.repo=OWNER/NAME"],
    ("cluster", "file"): ["cluster.path=FILE", "action=plan"],
    ("cluster", "emulated"): ["backend=ray"],
    ("cluster", "existing"): ["backend=ray"],
    ("topology", "split"): ["dp=2"],
}
"""Without which a choice is incomplete."""


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in read_groups() for choice in read_groups()[group]],
)
def test_every_choice_of_every_group_composes(group: str, choice: str):
    check(composed(Catalogue({}).written(group, choice), *NEEDED.get((group, choice), ())))


def test_every_group_but_ci_has_a_default_choice():
    defaults = read_defaults()
    assert list(defaults)[:2] == ["backend", "topology"]  # a topology may choose the backend
    assert set(defaults) == set(read_groups()) - {"ci"}


@pytest.mark.parametrize("kind", ModelKind)
def test_each_model_choice_sets_its_kind(kind: ModelKind):
    assert composed(f"model={kind.name}").model.kind is kind


def test_profiles_differ_only_in_batch_sizes():
    low, high = composed("profile=low_latency").profile, composed("profile=high_throughput").profile
    assert (low.max_num_seqs, low.max_num_batched_tokens, low.max_step_s) == (16, 512, 0.05)
    assert (high.max_num_seqs, high.max_num_batched_tokens, high.max_step_s) == (512, 8192, 1.0)
    assert low.block_size == high.block_size == ProfileOptions().block_size


def test_a_group_with_choices_of_different_shape_gives_the_chosen_class():
    config = composed("cluster=file", "cluster.path=nodes.yaml", "backend.start_deadline_s=20")
    assert config.cluster == FileClusterOptions(path="nodes.yaml")
    assert config.backend == MpOptions(start_deadline_s=20.0)


@pytest.mark.parametrize("topology", ["split", "remote_only", "auto"])
def test_a_topology_of_several_nodes_chooses_ray_unless_told_otherwise(topology: str):
    config = composed(f"topology={topology}", "dp=4", "topology.strategy=spread")
    assert config.topology.kind is TopologyKind[topology]
    assert config.topology.strategy is Strategy.spread
    assert isinstance(config.backend, RayOptions)
    for typed in (["backend=mp", f"topology={topology}"], [f"topology={topology}", "backend=mp"]):
        assert isinstance(composed(*typed).backend, MpOptions)
    assert isinstance(composed("backend=ray").backend, RayOptions)


def test_an_emulated_cluster_takes_its_sizes():
    sizes = ["cluster.nodes=3", "cluster.gpus_per_node=2", "cluster.cpus_per_node=4"]
    config = composed("action=plan", "cluster=emulated", "topology=split", "dp=2", *sizes)
    assert config.cluster == EmulatedClusterOptions(nodes=3, gpus_per_node=2, cpus_per_node=4)
    check(config)


REFUSED = [
    (["dp=0"], "dp must be at least 1: 0", "dp=1"),
    (["dp=5000"], "dp must be at most 4096: 5000", "dp=1"),
    (["frontend.port=70000"], "frontend.port must be at most 65535: 70000", "frontend.port=8000"),
    (
        ["health.heartbeat_s=0"],
        "health.heartbeat_s must be more than 0: 0.0",
        "health.heartbeat_s=0.2",
    ),
    (["drain_s=nan"], "drain_s must be a finite number: nan", "drain_s=30.0"),
    (["drain_s=inf"], "drain_s must be a finite number: inf", "drain_s=30.0"),
    (
        ["engine.threads=0", "profile.block_size=0", "profile.max_num_batched_tokens=0"],
        "engine.threads must be at least 1: 0\n"
        "profile.max_num_batched_tokens must be at least 1: 0\n"
        "profile.block_size must be at least 1: 0",
        "engine.threads=1 profile.max_num_batched_tokens=2048 profile.block_size=16",
    ),
    (
        ["name=A_b"],
        "name must be lower-case letters, digits and hyphens, no hyphen first, at most 40: A_b",
        "name=a-b",
    ),
    (
        ["dp=4", "topology.dp_local=5"],
        "topology.dp_local must be dp (4) with topology=head_only: 5",
        "topology.dp_local=4",
    ),
    (
        ["dp=4", "topology.dp_local=2"],
        "topology.dp_local must be dp (4) with topology=head_only: 2",
        "topology.dp_local=4",
    ),
    (
        ["action=plan", "topology=split", "dp=4", "topology.dp_local=5"],
        "topology.dp_local must be between 0 and dp (4): 5",
        "topology.dp_local=4",
    ),
    (
        ["action=plan", "topology=auto", "dp=4", "topology.dp_local=-1"],
        "topology.dp_local must be between 0 and dp (4): -1",
        "topology.dp_local=0",
    ),
    (
        ["action=plan", "topology=remote_only", "dp=4", "topology.dp_local=2"],
        "topology.dp_local must be 0 with topology=remote_only: 2",
        "topology.dp_local=0",
    ),
    (
        ["action=plan", "topology=split", "dp=2", "backend=mp"],
        "backend must be ray with topology=split, mp uses the head alone: mp",
        "topology=head_only, or backend=ray",
    ),
    (
        ["topology=auto", "backend=mp"],
        "backend must be ray with topology=auto, mp uses the head alone: mp",
        "topology=head_only, or backend=ray",
    ),
    (
        ["action=plan", "topology=split"],
        "dp must be at least 2 with topology=split: 1",
        "topology=head_only, or dp=2",
    ),
    (
        ["action=plan", "topology=split", "topology.dp_local=1"],
        "dp must be at least 2 with topology=split: 1",
        "topology=head_only, or dp=2",
    ),
    (
        ["action=plan", "cluster=emulated"],
        "backend must be ray with cluster=emulated, mp uses this machine as it is: mp",
        "cluster=auto, or backend=ray",
    ),
    (
        ["ports=many"],
        "ports must be ephemeral, or a range such as 40000-40031: many",
        "ports=ephemeral",
    ),
    (
        ["ports=40010-40000"],
        "ports must be ephemeral, or a range such as 40000-40031: 40010-40000",
        "ports=ephemeral",
    ),
    (
        ["ports=65530-65532", "frontend.count=2"],
        "ports must hold 6 ports with frontend.count=2: 65530-65532",
        "ports=65530-65535",
    ),
    (
        ["ports=8000-8009"],
        "frontend.port must not be one of ports (8000-8009): 8000",
        "frontend.port=7999",
    ),
    (
        ["action=plan", "topology=split", "dp=2", "cluster=emulated", "cluster.nodes=0"],
        "cluster.nodes must be at least 1: 0",
        "cluster.nodes=1",
    ),
    (
        ["profile.max_num_batched_tokens=64"],
        "profile.max_num_batched_tokens must be at least profile.max_num_seqs (128): 64",
        "profile.max_num_seqs=64",
    ),
    (
        ["profile.kv_cache_bytes=12parsecs"],
        "profile.kv_cache_bytes must be auto or a size such as 512MiB: 12parsecs",
        "profile.kv_cache_bytes=auto",
    ),
    (
        ["profile.kv_cache_bytes=0"],
        "profile.kv_cache_bytes must be auto or a size such as 512MiB: 0",
        "profile.kv_cache_bytes=auto",
    ),
    (["model=path"], "model.path must be a directory with model=path: null", "model.path=DIR"),
    (
        ["model=hub"],
        "model.repo must be a repository with model=hub: null",
        "model.repo=OWNER/NAME",
    ),
    (
        ["cluster=file", "action=plan"],
        "cluster.path must be a file with cluster=file: null",
        "cluster.path=FILE",
    ),
    (
        ["cluster=file", "cluster.path=F"],
        "cluster=file is an inventory to plan for, it cannot run: action=serve",
        "action=plan",
    ),
    (
        ["tp=2"],
        "tp must be 1 with action=serve, more can only be planned yet: 2",
        "tp=1",
    ),
    (
        ["dp=2", "health.min_ranks=3"],
        "health.min_ranks must be at most dp (2): 3",
        "health.min_ranks=2",
    ),
    (["restart.limit=-1"], "restart.limit must be at least 0: -1", "restart.limit=3"),
    (
        ["health.silence_s=0.1"],
        "health.silence_s must be at least twice health.heartbeat_s (0.2): 0.1",
        "health.silence_s=1.0",
    ),
    (
        ["coordinator.interval_s=0.3"],
        "coordinator.interval_s must be at most a quarter of health.silence_s (1.0): 0.3",
        "health.silence_s=1.2",
    ),
    (
        ["coordinator.interval_s=0.2", "health.silence_s=0.5"],
        "coordinator.interval_s must be at most a quarter of health.silence_s (0.5): 0.2",
        "health.silence_s=0.8",
    ),
    (["frontend.host="], "frontend.host must be an address: (empty)", "frontend.host=127.0.0.1"),
]


@pytest.mark.parametrize(("overrides", "message", "hint"), REFUSED)
def test_limits_and_rules(overrides: list[str], message: str, hint: str):
    with pytest.raises(Refused) as refused:
        check(composed(*overrides))
    assert (str(refused.value), refused.value.hint) == (message, hint)


@pytest.mark.parametrize(("overrides", "hint"), [(row[0], row[2]) for row in REFUSED])
def test_hints_mend_what_they_are_for(overrides: list[str], hint: str):
    for alternative in hint.split(", or "):
        check(composed(*overrides, *alternative.split()))


def test_the_widest_limits_are_allowed():
    check(composed("action=plan", "dp=4096", "tp=512", "frontend.port=0", "drain_s=0"))
    check(
        composed("dp=4", "topology.dp_local=4", "name=" + 40 * "a", "profile.kv_cache_bytes=2GiB")
    )


def test_options_that_nothing_reads_are_named():
    config = composed(
        "model=tiny", "model.path=x", "model.repo=a/b", "plan.format=json", "smoke.format=json"
    )
    assert config.plan.format is PlanFormat.json
    assert without_effect(config) == [
        "model.path=x has no effect with model=tiny",
        "model.repo=a/b has no effect with model=tiny",
        "plan.format=json has no effect without action=plan",
        "smoke.format=json has no effect without action=smoke",
    ]
    assert without_effect(composed("model=tiny", "model.seed=3")) == []


def test_options_of_placement_that_nothing_reads_are_named():
    config = composed("topology.strategy=spread", "ports=40000-40009")
    assert without_effect(config) == [
        "topology.strategy=spread has no effect with topology=head_only",
        "ports=40000-40009 has no effect with backend=mp",
    ]
    config = composed("action=plan", "topology=auto", "cluster=emulated", "backend.address=a:1")
    assert without_effect(config) == ["backend.address=a:1 has no effect with cluster=emulated"]
    assert without_effect(composed("action=plan", "topology=split", "ports=40000-40009")) == []
    assert without_effect(composed("action=plan", "plan.format=json")) == []


@pytest.mark.parametrize("action", [Action.status, Action.stop])
def test_what_asks_a_running_deployment_needs_no_config_that_could_run(action: Action):
    check(composed(f"action={action.name}", "topology=split", "dp=2", "tp=2", "model=path"))
    with pytest.raises(Refused, match="name must be lower-case"):
        check(composed(f"action={action.name}", "name=../x"))


def test_options_that_nobody_reads_of_a_running_deployment_are_named():
    config = composed("status.format=json", "stop.force=true", "compare.runs=[a,b]")
    assert without_effect(config) == [
        "status.format=json has no effect without action=status",
        "stop.force=true has no effect without action=stop",
        "compare.runs=[a,b] has no effect without action=compare",
    ]
    typed = ["action=stop", "name=x", "stop.force=true", "hydra.verbose=true"]
    assert not_read(Action.stop, typed) == []
    typed = ["+ci=mp_head_only", "status.format=json", "name=x", "model.path=/name", "~head"]
    assert not_read(Action.stop, typed) == [
        "status.format=json has no effect with action=stop",
        "model.path=/name has no effect with action=stop",
        "~head has no effect with action=stop",
    ]


SMOKE_CONFIGS = sorted(read_groups()["ci"])


@pytest.mark.parametrize("choice", SMOKE_CONFIGS)
def test_a_smoke_config_can_be_planned(flotilla, choice: str):
    code, out, _ = flotilla(f"+ci={choice}", "action=plan", "model=tiny")
    assert code == 0
    assert f"ci-{choice.replace('_', '-')}: backend={choice.partition('_')[0]} " in out


@pytest.mark.parametrize("choice", SMOKE_CONFIGS)
def test_smoke_configs_can_run_side_by_side(choice: str):
    config = composed(f"+ci={choice}")
    assert config.name == f"ci-{choice.replace('_', '-')}"
    assert (config.action, config.frontend.port) == (Action.smoke, 0)


def test_a_smoke_config_can_be_changed():
    config = composed("+ci=ray_split", "cluster=existing", "dp=4")
    assert isinstance(config.cluster, ExistingClusterOptions)
    assert (config.topology.kind, config.dp) == (TopologyKind.split, 4)
