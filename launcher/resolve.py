"""The one step before planning that looks at the world: model, machines, environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoints.sources import default_name, model_directory, pinned, read_facts
from engine.config import ModelOptions
from engine.errors import ModelError
from engine.model.facts import ModelFacts
from launcher.cluster import Cluster
from launcher.config import FileClusterOptions, LaunchConfig
from launcher.errors import Refused
from launcher.inventory import read_inventory
from launcher.this_machine import LOOPBACK, is_address_of_this_machine, local_cluster

PASSED_PREFIXES = ("HF_", "NCCL_")
PASSED_NAMES = {
    "ALL_PROXY",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "XDG_CACHE_HOME",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What the planner needs besides the config."""

    facts: ModelFacts
    model: ModelOptions
    """As in the config, but a model of the hub has the commit that `facts` are of."""
    model_name: str
    cluster: Cluster
    passed_environment: tuple[str, ...]


def resolve(config: LaunchConfig) -> Resolved:
    """Finds the machines, then the model: that may be fetched or made first.

    Raises:
        Refused: The inventory, the head's address or the model is not what it should be.
    """
    cluster = find_cluster(config)
    try:
        directory = model_directory(config.model, _progress)
        facts = read_facts(directory)
        model_name = config.model.name or default_name(config.model)
    except ModelError as error:
        raise Refused(str(error), error.hint) from error
    return Resolved(
        facts=facts,
        model=pinned(config.model, directory),
        model_name=model_name,
        cluster=cluster,
        passed_environment=passed_environment(os.environ),
    )


def find_cluster(config: LaunchConfig) -> Cluster:
    """The machines of an inventory, or this one."""
    if isinstance(config.cluster, FileClusterOptions):
        assert config.cluster.path is not None
        return _from_file(config.cluster.path, config.head.address)
    address = config.head.address
    if address is None or address in ("localhost", "::1"):
        address = LOOPBACK
    if address != LOOPBACK and not is_address_of_this_machine(address):
        raise Refused(f"head.address must mean this machine: {address}", "head.address=localhost")
    return local_cluster(address)


def passed_environment(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the set variables of other tools that concern the processes; never their values."""
    return tuple(
        name
        for name in sorted(environment)
        if name.startswith(PASSED_PREFIXES) or name.upper() in PASSED_NAMES
    )


def _from_file(path: str, head_address: str | None) -> Cluster:
    try:
        text = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise Refused(
            f"cluster.path cannot be read, {reason}: {path}", "cluster.path=FILE"
        ) from None
    cluster = read_inventory(text, path)
    head = cluster.head
    if head_address not in (None, head.id, head.address):
        raise Refused(
            f"head.address must mean the head of {path} ({head.id}, {head.address}):"
            f" {head_address}",
            f"head.address={head.address}",
        )
    return cluster


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
