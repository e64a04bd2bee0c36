"""The config as typed values.

The dataclasses own names, types, defaults, units and limits; YAML in `conf/` holds choices.
Sections that a process of the deployment needs too are in `engine.config`.
"""

from dataclasses import dataclass, field, fields
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
from launcher.bench.options import BenchOptions
from launcher.compare.options import CompareOptions
from launcher.sweep.options import SweepOptions


class Action(Enum):
    """What `python -m launcher` does."""

    serve = "serve"
    plan = "plan"
    smoke = "smoke"
    bench = "bench"
    compare = "compare"
    status = "status"
    stop = "stop"


class TopologyKind(Enum):
    """Which nodes may have ranks."""

    head_only = "head_only"
    split = "split"
    remote_only = "remote_only"
    auto = "auto"


class Strategy(Enum):
    """How ranks are dealt to the nodes that may have them."""

    fill = "fill"
    strict = "strict"
    spread = "spread"
    span = "span"


class PlanFormat(Enum):
    table = "table"
    json = "json"


class StatusFormat(Enum):
    table = "table"
    json = "json"


class SmokeFormat(Enum):
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
class RayOptions(BackendOptions):
    """Actors on a Ray cluster."""

    choice: ClassVar[str] = "ray"

    address: str | None = None
    """Of a running Ray cluster, host:port; null: RAY_ADDRESS, else one found on this machine."""
    group_deadline_s: float = option(60.0, gt=0, le=86400)
    """Seconds until every placement group must stand, on a cluster that has the room."""
    grows: bool | None = None
    """Whether the cluster adds nodes when asked; null: as its autoscaler says."""
    grow_deadline_s: float = option(600.0, gt=0, le=86400)
    """Seconds that a cluster gets to add the nodes that it was asked for."""


@dataclass(slots=True, kw_only=True)
class ClusterOptions:
    """Each choice of the group `cluster` is a class of its own."""

    choice: ClassVar[str]


@dataclass(slots=True, kw_only=True)
class AutoClusterOptions(ClusterOptions):
    """What the backend finds."""

    choice: ClassVar[str] = "auto"


@dataclass(slots=True, kw_only=True)
class ExistingClusterOptions(ClusterOptions):
    """A Ray cluster that must be there."""

    choice: ClassVar[str] = "existing"


@dataclass(slots=True, kw_only=True)
class EmulatedClusterOptions(ClusterOptions):
    """Several Ray nodes that are all this machine."""

    choice: ClassVar[str] = "emulated"

    nodes: int | None = option(None, ge=1, le=1024)
    """Head included (`cluster=emulated`); null: 1 with topology=head_only and auto, else 2."""
    cpus_per_node: int | None = option(None, ge=0, le=4096)
    """CPUs that each node is said to have; null: an even share of this machine's."""
    gpus_per_node: int | None = option(None, ge=0, le=1024)
    """GPUs that each node is said to have; null: an even share of this machine's."""


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
    """Ranks on the head, 0 to dp; null: what the topology says (head_only: all, split: half,
    rounded up, remote_only: none, auto: as many as it takes)."""
    strategy: Strategy = Strategy.fill
    """fill: the head first, then as few nodes as possible; strict: the same number of ranks on
    every node used; spread: as even as possible; span: fill, and a rank's workers may cross nodes.
    """


@dataclass(slots=True, kw_only=True)
class FrontendConfig(FrontendOptions):
    """With what is secret, and so no part of the plan."""

    api_keys: list[str] = field(default_factory=list)
    """Keys of which clients must send one; others see command lines: better `api_key_file`."""
    api_key_file: str | None = None
    """File of mode 0600 with an API key per line."""

    @property
    def has_keys(self) -> bool:
        return bool(self.api_keys) or self.api_key_file is not None

    def without_secrets(self) -> FrontendOptions:
        """What the plan may hold."""
        names = [each.name for each in fields(FrontendOptions)]
        return FrontendOptions(**{name: getattr(self, name) for name in names})


@dataclass(slots=True, kw_only=True)
class HeadOptions:
    address: str | None = None
    """Address of the head for other nodes; null, localhost or its host name: the one it is found
    under."""
    interface: str | None = None
    """Network interface of the head whose address the other nodes use."""


@dataclass(slots=True, kw_only=True)
class PlanOptions:
    format: PlanFormat = PlanFormat.table
    """How `action=plan` prints."""


@dataclass(slots=True, kw_only=True)
class StatusOptions:
    format: StatusFormat = StatusFormat.table
    """How `action=status` prints."""


@dataclass(slots=True, kw_only=True)
class StopOptions:
    force: bool = False
    """Let `action=stop` end a deployment at once, requests in flight too."""


@dataclass(slots=True, kw_only=True)
class SmokeOptions:
    answer_s: float = option(20.0, gt=0, le=3600)
    """Seconds that `action=smoke` gives each answer to be complete."""
    format: SmokeFormat = SmokeFormat.table
    """How `action=smoke` tells its results: table (on stderr), json (on stdout)."""


@dataclass(slots=True, kw_only=True)
class LaunchConfig:
    """Everything a user can say."""

    action: Action = Action.serve
    """serve, plan (show what would run where), smoke (start, check everything, end), bench
    (start, measure under load, end), compare (two of its results, or two sweeps); of the running
    deployment `name`: status, stop."""
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
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    balancer: BalancerOptions = field(default_factory=BalancerOptions)
    cluster: ClusterOptions
    health: HealthOptions = field(default_factory=HealthOptions)
    coordinator: CoordinatorOptions = field(default_factory=CoordinatorOptions)
    restart: RestartOptions = field(default_factory=RestartOptions)
    log: LogOptions = field(default_factory=LogOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    ports: str = "ephemeral"
    """TCP ports that coordinator and front ends listen on for other nodes: `ephemeral`, or a range
    that a firewall lets through, such as 40000-40031."""
    plan: PlanOptions = field(default_factory=PlanOptions)
    status: StatusOptions = field(default_factory=StatusOptions)
    stop: StopOptions = field(default_factory=StopOptions)
    smoke: SmokeOptions = field(default_factory=SmokeOptions)
    bench: BenchOptions = field(default_factory=BenchOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)
    compare: CompareOptions = field(default_factory=CompareOptions)


GROUP_SCHEMAS: dict[str, tuple[type[BackendOptions] | type[ClusterOptions], ...]] = {
    "backend": (MpOptions, RayOptions),
    "cluster": (
        AutoClusterOptions,
        ExistingClusterOptions,
        EmulatedClusterOptions,
        FileClusterOptions,
    ),
}
"""Groups whose choices differ in shape."""


HYDRA_PLUGINS = "hydra_plugins.flotilla"
"""The module that Hydra is told its plugins for `-m` are in; see `launcher.sweep.hydra_plugins`."""


def register() -> None:
    """Makes the schemas known to Hydra, outside the groups: there they would look like choices."""
    store = ConfigStore.instance()
    for kind, plugin in (("launcher", "JobLauncher"), ("sweeper", "JobSweeper")):
        node = {"_target_": f"{HYDRA_PLUGINS}.{plugin}"}
        store.store(group=f"hydra/{kind}", name="flotilla", node=node)
    store.store(name="launch_schema", node=LaunchConfig)
    for group, schemas in GROUP_SCHEMAS.items():
        for schema in schemas:
            store.store(name=f"{group}_{schema.choice}_schema", node=schema)
