"""What is found out about the world before planning."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints.tiny import TINY_FACTS, write_random_checkpoint
from engine.config import ModelKind, ModelOptions
from launcher.cluster import ClusterKind
from launcher.config import (
    Action,
    EmulatedClusterOptions,
    FileClusterOptions,
    HeadOptions,
    LaunchConfig,
)
from launcher.errors import Refused
from launcher.resolve import find_cluster, passed_environment, resolve
from launcher.this_machine import interface_addresses
from tests.launcher.samples import config_of, on_ray


def with_inventory(path: Path | str, **changes: object) -> LaunchConfig:
    return config_of(action=Action.plan, cluster=FileClusterOptions(path=str(path)), **changes)


def test_the_tiny_model_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    resolved = resolve(config_of(model=ModelOptions(kind=ModelKind.tiny)))
    assert resolved.model_name == "tiny"
    assert resolved.facts.num_hidden_layers > 0
    assert resolved.cluster.head.cpus > 0
    assert "XDG_CACHE_HOME" in resolved.passed_environment


def test_a_name_of_the_users_own_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (
        resolve(config_of(model=ModelOptions(kind=ModelKind.tiny, name="mine"))).model_name
        == "mine"
    )


def test_a_model_that_is_not_there_is_refused(tmp_path: Path):
    missing = tmp_path / "missing"
    with pytest.raises(Refused, match=f"model.path does not exist: {missing}") as refused:
        resolve(config_of(model=ModelOptions(kind=ModelKind.path, path=str(missing))))
    assert refused.value.exit_code == 2
    assert "model.path=DIR" in refused.value.hint


@pytest.mark.parametrize("address", [None, "localhost", "127.0.0.1", "::1", socket.gethostname()])
def test_all_names_of_this_machine_mean_the_head(address: str | None):
    cluster = find_cluster(config_of(head=HeadOptions(address=address)))
    assert cluster.head.address == "127.0.0.1"


@pytest.mark.parametrize("address", ["192.0.2.7", "é..é"])
def test_the_head_of_one_machine_is_this_machine(address: str):
    with pytest.raises(Refused, match=rf"must mean the head .*: {address}") as refused:
        find_cluster(config_of(head=HeadOptions(address=address)))
    assert refused.value.hint == "head.address=127.0.0.1"


def test_a_network_interface_has_the_address():
    interface, address = next(iter(interface_addresses().items()))
    config = config_of(head=HeadOptions(interface=interface))
    assert find_cluster(config).head.address == address


def test_ray_gets_as_many_emulated_nodes_as_the_topology_needs():
    cluster = find_cluster(on_ray("split", dp=4))
    assert [node.id for node in cluster.nodes] == ["head", "node-1"]
    assert [node.id for node in find_cluster(on_ray("auto", dp=4)).nodes] == ["head"]
    three = EmulatedClusterOptions(nodes=3, cpus_per_node=7)
    cluster = find_cluster(on_ray("auto", cluster=three))
    assert [node.cpus for node in cluster.nodes] == [7, 7, 7]
    assert cluster.kind is ClusterKind.emulated


def test_an_inventory_file(tmp_path: Path):
    path = tmp_path / "nodes.yaml"
    path.write_text("nodes: [{id: a, head: true, address: 10.0.0.1}, {id: b, gpus: 2}]")
    assert [node.id for node in find_cluster(with_inventory(path)).nodes] == ["a", "b"]
    for address in ("a", "10.0.0.1"):
        find_cluster(with_inventory(path, head=HeadOptions(address=address)))
    with pytest.raises(Refused, match="head.address must mean the head") as refused:
        find_cluster(with_inventory(path, head=HeadOptions(address="b")))
    assert refused.value.hint == "head.address=10.0.0.1"


def test_an_inventory_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "nodes.yaml"
    with pytest.raises(Refused, match=f"cluster.path cannot be read, No such file .*: {path}"):
        find_cluster(with_inventory(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match=f"cluster.path cannot be read, not text: {path}"):
        find_cluster(with_inventory(path))


def test_only_names_of_other_tools_variables_are_passed():
    environment = {
        "HF_TOKEN": "secret",
        "http_proxy": "http://proxy",
        "NCCL_DEBUG": "INFO",
        "CUDA_VISIBLE_DEVICES": "",
        "FLOTILLA_DP": "3",
        "HOME": "/root",
    }
    assert passed_environment(config_of(), environment) == (
        *("CUDA_VISIBLE_DEVICES", "HF_TOKEN", "NCCL_DEBUG", "http_proxy"),
    )


@pytest.mark.parametrize("kind", ModelKind)
def test_a_token_of_the_hub_travels_where_a_model_is_fetched_with_it(kind: ModelKind):
    environment = {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": "/models", "HF_TOKEN": "secret"}
    config = on_ray("split", model=ModelOptions(kind=kind))
    passed = ("HF_HOME", "HF_TOKEN") if kind is ModelKind.hub else ("HF_HOME",)
    assert passed_environment(config, environment) == passed


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            "architecture is not supported: MixtralForCausalLM",
            "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope_type is not supported: longrope",
            "default, dynamic, linear, llama3, yarn",
        ),
        (
            {"quantization_config": {"quant_method": "awq"}},
            "quantised checkpoints are not supported: {'quant_method': 'awq'}",
            "float32, bfloat16 or float16",
        ),
    ],
)
def test_a_model_that_is_not_supported_is_refused_with_what_is(
    flotilla, tmp_path, config: dict[str, Any], message: str, hint: str
):
    write_random_checkpoint(tmp_path, TINY_FACTS)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    code, out, err = flotilla("model=path", f"model.path={tmp_path}")
    assert (code, out, err.splitlines()[0]) == (2, "", message)
    assert hint in err.splitlines()[1]
