"""Models, machines and configs that the tests plan with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from engine.model.facts import ModelFacts
from launcher.cluster import Cluster, ClusterKind, Node
from launcher.config import (
    Action,
    AutoClusterOptions,
    LaunchConfig,
    MpOptions,
    RayOptions,
    Strategy,
    TopologyKind,
    TopologyOptions,
    register,
)
from launcher.plan import DeploymentPlan, PlacementGroup
from launcher.planner import make_plan

GIB = 2**30

SMOLLM2 = ModelFacts(
    architecture="LlamaForCausalLM",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    dtype="bfloat16",
    eos_token_ids=(2,),
)
LLAMA_8B = ModelFacts(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    rope_theta=500000.0,
    dtype="bfloat16",
    eos_token_ids=(128009,),
)


def cluster_of(*others: Node, **head: Any) -> Cluster:
    """A head with 8 CPUs and 32 GiB unless told otherwise, and other nodes."""
    given = {"cpus": 8, "memory_bytes": 32 * GIB, **head}
    return Cluster(nodes=(Node(id="head", head=True, **given), *others))


def gpu_head(gpus: int, gib: int = 80, **head: Any) -> Cluster:
    return cluster_of(gpus=gpus, gpu_memory_bytes=gib * GIB, cpus=64, **head)


def config_of(**changes: Any) -> LaunchConfig:
    """The default config but for root keys, or keys of sections written `profile__block_size`."""
    config = LaunchConfig(
        backend=MpOptions(),
        topology=TopologyOptions(kind=TopologyKind.head_only),
        cluster=AutoClusterOptions(),
    )
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        if section:
            value = replace(getattr(config, section), **{name: value})
        config = replace(config, **{section or name: value})
    return config


def on_ray(
    topology: str, *, dp_local: int | None = None, strategy: str = "fill", **changes: Any
) -> LaunchConfig:
    """A config that is planned for Ray, with further changes as in `config_of`."""
    options = TopologyOptions(
        kind=TopologyKind[topology], dp_local=dp_local, strategy=Strategy[strategy]
    )
    changes = {"action": Action.plan, **changes}
    return config_of(backend=RayOptions(), topology=options, **changes)


def node(id: str, gpus: int = 0, **changes: Any) -> Node:
    """A node with 96 CPUs, 512 GiB and GPUs of 80 GiB unless told otherwise."""
    given = {
        "head": id == "head",
        "cpus": 96,
        "memory_bytes": 512 * GIB,
        "gpu_memory_bytes": 80 * GIB * (gpus > 0),
    }
    return Node(id=id, gpus=gpus, **(given | changes))


def ray_cluster(*nodes: Node, **changes: Any) -> Cluster:
    """Nodes of a real Ray cluster."""
    return Cluster(nodes=nodes, **{"kind": ClusterKind.existing, **changes})


def composed(*overrides: str) -> LaunchConfig:
    """The config that a command line gives."""
    register()
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(config, LaunchConfig)
    return config


def plan_for(
    config: LaunchConfig,
    facts: ModelFacts = SMOLLM2,
    cluster: Cluster | None = None,
    environment: Sequence[str] = (),
    given: Sequence[PlacementGroup] = (),
) -> DeploymentPlan:
    return make_plan(
        config,
        facts,
        cluster or cluster_of(),
        model_name="a-model",
        passed_environment=tuple(environment),
        given=given,
    )
