"""The placement plan: frozen values that can be read, compared, stored and carried out."""

import hashlib

import msgspec

from engine.config import ProcessSpec, Settings
from launcher.cluster import Node

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
