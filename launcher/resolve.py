"""The one step before planning that looks at the world: model, machines, environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.checkpoints.sources import default_name, model_directory, pinned, read_facts
from engine.config import ModelKind, ModelOptions
from engine.errors import ModelError
from engine.model.facts import ModelFacts
from launcher.addresses import with_head_address
from launcher.cluster import Cluster, ClusterKind
from launcher.config import (
    Action,
    AutoClusterOptions,
    EmulatedClusterOptions,
    ExistingClusterOptions,
    FileClusterOptions,
    LaunchConfig,
    RayOptions,
)
from launcher.emulation import emulated_cluster
from launcher.errors import Refused
from launcher.inventory import read_inventory
from launcher.this_machine import is_address_of_this_machine, local_cluster

if TYPE_CHECKING:
    from launcher.executors.ray.session import Session

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
    session: "Session | None"
    """Connected to `cluster`, if that is Ray's and runs. Whoever has it closes it."""
    passed_environment: tuple[str, ...]


def resolve(config: LaunchConfig) -> Resolved:
    """Finds the machines, then the model: that may be fetched or made first.

    Raises:
        Refused: The inventory, the cluster, the head's address or the model is not what it should
            be.
    """
    session = find_session(config, os.environ)
    try:
        return _resolve(config, session)
    except BaseException:
        if session is not None:
            session.close()
        raise


def _resolve(config: LaunchConfig, session: "Session | None") -> Resolved:
    try:
        directory = model_directory(config.model, _progress)
        facts = read_facts(directory)
        model_name = config.model.name or default_name(config.model)
    except ModelError as error:
        raise Refused(str(error), error.hint) from error
    cluster = find_cluster(config, session)  # as it is now: a model may take minutes to fetch
    return Resolved(
        facts=facts,
        model=pinned(config.model, directory),
        model_name=model_name,
        cluster=cluster,
        session=session,
        passed_environment=passed_environment(config, os.environ),
    )


def find_session(config: LaunchConfig, environment: Mapping[str, str]) -> "Session | None":
    """A connection to the Ray cluster that the config is for, if that runs already.

    Raises:
        Refused: It must run and does not, or does not answer.
    """
    backend, cluster = config.backend, config.cluster
    if not isinstance(backend, RayOptions):
        return None
    if not isinstance(cluster, AutoClusterOptions | ExistingClusterOptions):
        return None
    from launcher.executors.ray.session import Session, running_cluster

    address = running_cluster(backend.address, environment)
    if address is None:
        if isinstance(cluster, ExistingClusterOptions):
            raise Refused(
                "no Ray cluster runs on this machine, and RAY_ADDRESS names none: cluster=existing",
                "ray start --head, backend.address=HOST:PORT, or cluster=emulated",
            )
        if config.action is not Action.plan:
            _progress("no Ray cluster is running: nodes are emulated on this machine")
        return None
    session = Session(address)
    try:
        session.connect()
    except BaseException:
        session.close()
        raise
    return session


def find_cluster(config: LaunchConfig, session: "Session | None" = None) -> Cluster:
    """The machines of a Ray cluster or an inventory, this one, or what it would be said to be.

    Args:
        session: Connected to the cluster, if one runs.
    """
    match config.cluster:
        case _ if session is not None and isinstance(config.backend, RayOptions):
            cluster = session.discover(local_cluster(), config.backend.grows)
        case FileClusterOptions(path=str(path)):
            cluster = _from_file(path)
        case EmulatedClusterOptions() as options:
            cluster = emulated_cluster(options, config.topology.kind, local_cluster())
        case AutoClusterOptions() as options if isinstance(config.backend, RayOptions):
            cluster = emulated_cluster(options, config.topology.kind, local_cluster())
        case _:
            cluster = local_cluster()
    name = config.head.address
    if (
        name is not None
        and cluster.kind is not ClusterKind.file
        and is_address_of_this_machine(name)
    ):
        known = (*cluster.head_names, name)
        cluster = msgspec.structs.replace(cluster, head_names=known)
    return with_head_address(cluster, config.head)


def passed_environment(config: LaunchConfig, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the set variables of other tools that concern the processes; never their values."""
    kept_here = set()
    if isinstance(config.backend, RayOptions):
        kept_here.add("CUDA_VISIBLE_DEVICES")  # Ray says itself what an actor sees
        if config.model.kind is not ModelKind.hub:
            kept_here.add("HF_TOKEN")  # each rank fetches its model, but no other kind with it
    return tuple(
        name
        for name in sorted(environment.keys() - kept_here)
        if name.startswith(PASSED_PREFIXES) or name.upper() in PASSED_NAMES
    )


def _from_file(path: str) -> Cluster:
    try:
        text = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise Refused(
            f"cluster.path cannot be read, {reason}: {path}", "cluster.path=FILE"
        ) from None
    return read_inventory(text, path)


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
