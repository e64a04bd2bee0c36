"""The config as typed values.

The dataclasses own names, types, defaults, units and limits; YAML in `conf/` holds choices.
Sections that a process of the deployment needs too are in `engine.config`.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from hydra.core.config_store import ConfigStore

from engine.config import (
    BalancerOptions,
    CoordinatorOptions,
    EngineOptions,
    FrontendOptions,
    HealthOptions,
    LogOptions,
    ModelOptions,
    ProfileOptions,
    RestartOptions,
    option,
)


class Action(Enum):
    """What `python -m launcher` does with the plan."""

    serve = "serve"
    plan = "plan"
    smoke = "smoke"


class TopologyKind(Enum):
    head_only = "head_only"


class PlanFormat(Enum):
    table = "table"
    json = "json"


@dataclass(slots=True, kw_only=True)
class BackendOptions:
    """What every backend has; each choice of the group `backend` is a class of its own."""

    choice: ClassVar[str]

    start_deadline_s: float = option(300.0, gt=0, le=86400)
    """Seconds until every process must be ready, loading and warming up included."""


@dataclass(slots=True, kw_only=True)
class MpOptions(BackendOptions):
    """Processes on this machine."""

    choice: ClassVar[str] = "mp"


@dataclass(slots=True, kw_only=True)
class ClusterOptions:
    """Each choice of the group `cluster` is a class of its own."""

    choice: ClassVar[str]


@dataclass(slots=True, kw_only=True)
class AutoClusterOptions(ClusterOptions):
    """What the backend finds."""

    choice: ClassVar[str] = "auto"


@dataclass(slots=True, kw_only=True)
class FileClusterOptions(ClusterOptions):
    """A YAML inventory, for `action=plan` only."""

    choice: ClassVar[str] = "file"

    path: str | None = None
    """File with `nodes:`, a list of `{id, head, address, cpus, memory_bytes, gpus,
    gpu_memory_bytes}` (`cluster=file`).
    """


@dataclass(slots=True, kw_only=True)
class TopologyOptions:
    kind: TopologyKind
    """Which ranks run on the head; each choice of the group `topology` sets it."""
    dp_local: int | None = None
    """Ranks on the head, 0 to dp; null: what the topology says (head_only: all)."""


@dataclass(slots=True, kw_only=True)
class HeadOptions:
    address: str | None = None
    """Address of the head for other nodes; null, localhost or its hostname mean it too."""


@dataclass(slots=True, kw_only=True)
class PlanOptions:
    format: PlanFormat = PlanFormat.table
    """How `action=plan` prints."""


@dataclass(slots=True, kw_only=True)
class LaunchConfig:
    """Everything a user can say."""

    action: Action = Action.serve
    """serve, plan (show what would run where), smoke (start, ask, stop)."""
    name: str = "flotilla"
    """Of the deployment: lower-case letters, digits and hyphens, at most 40."""
    dp: int = option(1, ge=1, le=4096)
    """Data-parallel ranks."""
    tp: int = option(1, ge=1, le=512)
    """Tensor-parallel workers per rank."""
    drain_s: float = option(30.0, ge=0, le=86400)
    """Seconds that requests in flight get to finish when the deployment ends."""
    backend: BackendOptions
    topology: TopologyOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    profile: ProfileOptions = field(default_factory=ProfileOptions)
    frontend: FrontendOptions = field(default_factory=FrontendOptions)
    balancer: BalancerOptions = field(default_factory=BalancerOptions)
    cluster: ClusterOptions
    health: HealthOptions = field(default_factory=HealthOptions)
    coordinator: CoordinatorOptions = field(default_factory=CoordinatorOptions)
    restart: RestartOptions = field(default_factory=RestartOptions)
    log: LogOptions = field(default_factory=LogOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)


GROUP_SCHEMAS: dict[str, tuple[type[BackendOptions] | type[ClusterOptions], ...]] = {
    "backend": (MpOptions,),
    "cluster": (AutoClusterOptions, FileClusterOptions),
}
"""Groups whose choices differ in shape."""


def register() -> None:
    """Makes the schemas known to Hydra, outside the groups: there they would look like choices."""
    store = ConfigStore.instance()
    store.store(name="launch_schema", node=LaunchConfig)
    for group, schemas in GROUP_SCHEMAS.items():
        for schema in schemas:
            store.store(name=f"{group}_{schema.choice}_schema", node=schema)
