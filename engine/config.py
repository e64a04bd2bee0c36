"""What every process of a deployment is told: plain values, no Hydra, no torch, no I/O.

The `*Options` classes are also the schemas of the config groups of the same name: they own the
options' names, types, defaults, units and limits. `Settings` is what the planner makes of them:
every `auto` is decided there.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from engine.model.facts import ModelFacts


def option(
    default: Any, *, ge: float | None = None, gt: float | None = None, le: float | None = None
) -> Any:
    """A field with limits that the launcher checks: at least `ge`, above `gt`, at most `le`."""
    limits = {"ge": ge, "gt": gt, "le": le}
    return field(
        default=default, metadata={key: value for key, value in limits.items() if value is not None}
    )


class ModelKind(Enum):
    """Where a model's files come from."""

    smollm2_135m = "smollm2_135m"
    tiny = "tiny"
    dummy = "dummy"
    path = "path"
    hub = "hub"


class DType(Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Device(Enum):
    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


class Kernels(Enum):
    """What computes on a CPU."""

    auto = "auto"
    native = "native"
    torch = "torch"


class Quantization(Enum):
    """What weights are rounded to."""

    none = "none"
    int8 = "int8"


def may_be_native(kernels: Kernels, device: Device, dtype: DType) -> bool:
    """Whether C kernels compute the model, if they can be built. Everything is decided but that."""
    return kernels is not Kernels.torch and device is Device.cpu and dtype is not DType.float16


class BalancerPolicy(Enum):
    """How a front end picks the rank of a request."""

    least_loaded = "least_loaded"
    """Fewest tokens to compute."""
    round_robin = "round_robin"
    """One after the other."""
    power_of_two = "power_of_two"
    """Of two ranks at random the one with fewer tokens to compute."""


class LogLevel(Enum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class Role(Enum):
    coordinator = "coordinator"
    frontend = "frontend"
    engine = "engine"


@dataclass(slots=True, kw_only=True)
class ModelOptions:
    kind: ModelKind = ModelKind.smollm2_135m
    """Where the files come from; each choice of the group `model` sets it."""
    name: str | None = None
    """Name that clients send as `model`; null: the choice's own."""
    path: str | None = None
    """Hugging Face directory (`model=path`)."""
    repo: str | None = None
    """Repository on the Hugging Face hub, `owner/name` (`model=hub`)."""
    revision: str | None = None
    """Branch, tag or commit of `model.repo`; null: its main branch."""
    seed: int = option(0, ge=0)
    """Seed of the random weights (`model=tiny`)."""
    step_s: float = option(0.0, ge=0, le=60)
    """Seconds that a step takes at least (`model=dummy`)."""


@dataclass(slots=True, kw_only=True)
class EngineOptions:
    dtype: DType = DType.auto
    """Of weights, activations, KV cache; auto: the checkpoint's (float16 on a CPU: float32)."""
    device: Device = Device.auto
    """auto: GPUs if the nodes that the topology can use have any."""
    kernels: Kernels = Kernels.auto
    """Operators on a CPU. native: C kernels, built with the machine's C compiler at first use;
    torch: torch's own, slower; auto: native if they can be built."""
    quantization: Quantization = Quantization.none
    """int8: weights of the linear layers are rounded to 8 bits, with a scale for each output; by
    the C kernels alone."""
    threads: int | None = option(None, ge=1, le=1024)
    """CPU threads per worker; null: an even share of the node's CPUs."""
    seed: int | None = option(None, ge=0)
    """From which each front end draws seeds of its own for the requests that bring none; null: at
    random."""


@dataclass(slots=True, kw_only=True)
class ProfileOptions:
    max_model_len: int | None = option(None, ge=1)
    """Most tokens of one request, prompt and output; null: the model's limit, or the cache's."""
    max_num_seqs: int = option(128, ge=1, le=65536)
    """Most requests that one rank runs in one step."""
    max_num_batched_tokens: int = option(2048, ge=1)
    """Most tokens that one step computes."""
    max_step_s: float = option(0.15, gt=0, le=600)
    """Seconds that a step should take: prompts are computed in parts that fit beside the running
    requests, which wait no longer for their next tokens. A part has at least 128 tokens, and two
    for each running request."""
    block_size: int = option(16, ge=1, le=1024)
    """Tokens in one block of the KV cache."""
    kv_cache_bytes: str = "auto"
    """KV cache of one rank: `auto`, or a size such as 1073741824, 512MiB, 2GiB."""
    prefix_caching: bool = True
    """Share the blocks of equal prompt prefixes between requests."""


@dataclass(slots=True, kw_only=True)
class FrontendOptions:
    count: int = option(1, ge=1, le=256)
    """API-server processes."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = option(8000, ge=0, le=65535)
    """TCP port to listen on; 0: any free one (printed when ready)."""
    keep_alive_s: int = option(5, ge=1)
    """Seconds an idle HTTP connection is kept open."""
    max_requests: int = option(4096, ge=1)
    """Most requests that one front end answers at the same time; more are refused with 429."""
    max_queued_requests: int | None = option(None, ge=1)
    """Most requests of one front end that wait for their first token; more are refused with 429;
    null: as many as `max_requests` lets in."""
    max_body_bytes: int | None = option(None, ge=1024)
    """Longest body of a request; null: 1 MiB and 64 bytes for each token of the context."""
    request_timeout_s: float = option(3600.0, gt=0, le=604800)
    """Seconds from a request to the end of its answer, after which it is ended with an error."""
    receive_timeout_s: float = option(30.0, gt=0, le=86400)
    """Seconds that a client gets to send the head of a request, and as many for its body."""
    cors_origins: list[str] = field(default_factory=list)
    """Web pages that may use the API from a browser: `[https://chat.example.org]`, or `["*"]`."""


@dataclass(slots=True, kw_only=True)
class BalancerOptions:
    policy: BalancerPolicy = BalancerPolicy.least_loaded
    """How a front end picks the rank of a request."""


@dataclass(slots=True, kw_only=True)
class HealthOptions:
    heartbeat_s: float = option(0.2, gt=0, le=60)
    """Seconds between two heartbeats of a process."""
    silence_s: float = option(1.0, gt=0, le=600)
    """A process without a heartbeat for so long is suspect, and so is a rank that has work and
    computes not even a layer of it (one that has needed longer before: in twice that), or has none
    and does not look for any; a suspect rank gets no new work until it moves again."""
    suspect_s: float = option(60.0, gt=0, le=86400)
    """Seconds that a rank may be suspect, out of reach or asked in vain, and silent, before the
    requests that it has fail; they are aborted when it comes back. Longer than any step takes."""
    hang_s: float = option(10.0, ge=1, le=86400)
    """A front end that stays suspect, or a coordinator that stays silent, for so long after
    `silence_s` hangs: it is killed and started again."""
    min_ranks: int = option(1, ge=1, le=4096)
    """Ranks that must be able to work for `/ready` to say so, once all have been."""
    stop_s: float = option(5.0, gt=0, le=600)
    """Seconds that processes get to end when the deployment stops, before they are killed."""


@dataclass(slots=True, kw_only=True)
class CoordinatorOptions:
    interval_s: float = option(0.05, ge=0.001, le=10)
    """Shortest time between two reports of a rank's load, and between two snapshots of all loads;
    a silent rank is noticed so much later."""
    metrics_interval_s: float = option(1.0, ge=0.05, le=60)
    """Shortest time between two reports of a process's metrics, and two snapshots of all."""


@dataclass(slots=True, kw_only=True)
class RestartOptions:
    limit: int = option(3, ge=0, le=1000)
    """Times that the coordinator or one front end is started again within `window_s`; one death
    more ends the deployment."""
    window_s: float = option(60.0, gt=0, le=86400)
    """Seconds after which a restart is forgotten."""


@dataclass(slots=True, kw_only=True)
class LogOptions:
    level: LogLevel = LogLevel.info
    """Least severe lines that processes write into their log files."""


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor-parallel shard of a rank, and where it runs."""

    index: int
    node: str
    group: str
    """Name of its placement group in the plan."""
    bundle: int
    """Index of its bundle in the group."""
    devices: tuple[int, ...]
    """GPU ids on its node; empty on CPUs, and on Ray, which gives them only when it starts."""
    num_gpus: int = 0
    num_threads: int


class Found(NamedTuple):
    """Where a process is, if others than the launcher have placed it."""

    node: str
    devices: list[int]
    """GPU ids on its node."""


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a deployment, as planned."""

    name: str
    """`coordinator`, `frontend-0`, `engine-0`."""
    role: Role
    node: str
    rank: int | None = None
    local_rank: int | None = None
    num_local_ranks: int | None = None
    """Ranks on its node."""
    workers: tuple[WorkerSpec, ...] = ()

    @property
    def index(self) -> int:
        """Number of a front end or a rank among those of its role: the end of its name."""
        return int(self.name.rpartition("-")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """The KV cache of one rank."""

    block_size: int
    num_blocks: int
    prefix_caching: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every process of one deployment gets: the same value everywhere, part of the plan."""

    name: str
    """Of the deployment."""
    dp: int
    tp: int
    model: ModelOptions
    model_name: str
    """Name that clients send as `model`."""
    facts: ModelFacts
    dtype: DType
    device: Device
    kernels: Kernels
    quantization: Quantization
    seed: int | None
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_s: float
    cache: CacheSettings
    frontend: FrontendOptions
    balancer: BalancerOptions
    health: HealthOptions
    coordinator: CoordinatorOptions
    restart: RestartOptions
    log: LogOptions
    drain_s: float
    """Seconds that in-flight requests get to finish when the deployment ends."""
