"""The placement plan: frozen values that can be read, compared, stored and carried out."""

import hashlib

import msgspec

from engine.config import ProcessSpec, Settings
from launcher.cluster import ClusterKind, Node

PLAN_VERSION = 1


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """Resources of one worker on one node, in Ray's words: {"GPU": 1, "CPU": 1} or {"CPU": n}."""

    resources: dict[str, int]
    node: str


class PlacementGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The bundles of one rank: all of them or none."""

    name: str
    strategy: str
    """Ray's: STRICT_PACK, or PACK where a rank's workers may cross nodes."""
    bundles: tuple[Bundle, ...]


class PendingResources(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster that can grow is to be asked for, before a plan can be made."""

    num_ranks: int
    """How many ranks have no place yet."""
    strategy: str
    """Ray's, for the bundles of each."""
    bundles: tuple[dict[str, int], ...]
    """Resources of each worker of one rank."""
    beside_head: bool
    """The head does not count: each must be on another node."""


class DeploymentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Which processes of a deployment run where, and what they are told."""

    version: int
    name: str
    generation: int
    """1 for a new deployment; grows when a running one is changed."""
    digest: str
    """SHA-256 of the rest."""
    backend: str
    topology: str
    dp: int
    tp: int
    head: str
    nodes: tuple[Node, ...]
    groups: tuple[PlacementGroup, ...]
    processes: tuple[ProcessSpec, ...]
    settings: Settings
    cluster: ClusterKind = ClusterKind.machine
    """What stands behind the nodes."""
    ports: tuple[int, int] | None = None
    """First and last TCP port that coordinator and front ends may listen on for other nodes."""
    passed_environment: tuple[str, ...] = ()
    """Names of the environment variables of other tools that reach the processes."""
    warnings: tuple[str, ...] = ()


def sealed(plan: DeploymentPlan) -> DeploymentPlan:
    """The plan with its digest filled in."""
    blank = msgspec.structs.replace(plan, digest="")
    return msgspec.structs.replace(plan, digest=hashlib.sha256(encode(blank)).hexdigest())


def encode(plan: DeploymentPlan) -> bytes:
    """The plan as one line of JSON; the same plan gives the same bytes."""
    return msgspec.json.encode(plan, order="sorted")
