"""Every message between the processes: one union and one typed decoder per direction.

Commands are imperative, facts are nouns or past tense. Messages are msgpack arrays, so fields are
only ever appended, with defaults. Who talks to whom:

    front end  --ToEngine-->       engine core    (ROUTER bound by the front end, DEALER)
    engine core --EngineOutputs--> front end      (PUSH, PULL bound by the front end)
    everybody  --ToCoordinator-->  coordinator    (DEALER, ROUTER bound by the coordinator)
    coordinator --FromCoordinator--> one process  (the same sockets, answers)
    coordinator --Published-->     everybody      (XPUB bound by the coordinator, SUB; a topic each)
"""

from enum import Enum
from typing import Any

import msgspec

from engine.config import ProcessSpec, Role
from engine.metrics import MetricValue
from engine.sampling import SamplingParams, TokenLogprobs

OUTPUT_HORIZON = 256
"""Output tokens of one request that count as work. `max_tokens` is a limit that few requests reach
and that clients often leave at the whole context: without a cap one such request would outweigh a
hundred others that will run as long.
"""
LAUNCHER = "launcher"
"""Name in the launcher's heartbeats, which only ask whether the coordinator has the plan."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages."""


class FinishReason(Enum):
    """Why a request ended; the first two are OpenAI's."""

    stop = "stop"
    length = "length"
    abort = "abort"
    error = "error"


class ProcessState(Enum):
    """What the coordinator knows of a process."""

    starting = "starting"
    ready = "ready"
    suspect = "suspect"
    """Silent, or makes no progress: gets no new work."""
    drained = "drained"
    """A front end that takes no requests and has none in flight."""
    lost = "lost"
    """Gone or fenced: this incarnation never comes back."""


class Phase(Enum):
    """What a process does while it starts."""

    importing = "importing"
    loading_tokenizer = "loading tokenizer"
    connecting = "connecting to engines"
    preparing_kernels = "preparing kernels"
    """Builds those that are not in the cache, which takes seconds."""
    loading_weights = "loading weights"
    allocating_cache = "allocating cache"
    warming_up = "warming up"
    ready = "ready"


class DeploymentState(Enum):
    serving = "serving"
    draining = "draining"


# --- front end to engine core ---


class AddRequest(Message, frozen=True):
    sequence: int
    """Number of this message from this front end to this incarnation: 0, 1, 2, ..."""
    request_id: int
    """Unique for one incarnation of one front end."""
    prompt_token_ids: list[int]
    sampling: SamplingParams
    external_id: str = ""
    """`X-Request-Id`, for log lines."""


class AbortRequests(Message, frozen=True):
    """Nobody wants these any more. Without any it is a probe: it is answered with empty outputs,
    whose numbers show what was lost in either direction.
    """

    sequence: int
    request_ids: list[int]
    stopped: list[int] = []
    """Those of `request_ids` whose answer is complete: the front end found a stop string."""


ToEngine = AddRequest | AbortRequests

# --- engine core to front end ---


class RequestOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New tokens of one request from one step."""

    request_id: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    error: str = ""
    """With `FinishReason.error`: what went wrong."""
    logprobs: list[TokenLogprobs] = []
    """One for each of `token_ids`, if asked for."""
    prompt_logprobs: list[TokenLogprobs] = []
    """With the first token, if asked for: one for each prompt token from the second on."""
    stop_token_id: int | None = None
    """With `FinishReason.stop`: the one of the request's `stop_token_ids` that ended it; None: an
    end token of the model's did."""


class EngineOutputs(Message, frozen=True):
    """All outputs of one step for one front end."""

    rank: int
    incarnation: int
    sequence: int
    """Number of this message from this incarnation to this front end: 0, 1, 2, ..."""
    acknowledged: int
    """Sequence number of the last message received from this front end; -1: none yet."""
    outputs: list[RequestOutput]
    lost: tuple[int, int] | None = None
    """First and last sequence number of messages from this front end that never arrived."""


# --- everybody to the coordinator ---


class Register(Message, frozen=True):
    name: str
    incarnation: int
    role: Role
    rank: int | None
    node: str
    pid: int
    devices: list[int]
    endpoints: dict[str, str]
    """What it binds: a front end's `requests` and `outputs`."""
    versions: dict[str, str]
    phase: Phase = Phase.importing
    """What it does: told again to a restarted coordinator."""
    remark: str = ""


class PhaseEntered(Message, frozen=True):
    name: str
    incarnation: int
    phase: Phase
    remark: str = ""
    """What the user should know about it, such as what had to be done without."""


class Heartbeat(Message, frozen=True):
    name: str
    incarnation: int
    progress: int = 0
    """Grows whenever something has been computed, a layer of a step or a step, and whenever an
    engine core that has nothing to compute has looked for work."""
    num_requests: int = 0
    """Requests waiting or running: work."""
    load_age_s: float | None = None
    """How long ago the load that was reported last was found unchanged; None: there is none."""
    patience_s: float = 0.0
    """How long it may make no progress, if that is more than `health.silence_s`."""


class RankLoad(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one rank has to do."""

    rank: int
    incarnation: int
    num_waiting: int
    num_running: int
    waiting_tokens: int
    """Prompt tokens that are still to be prefilled, of waiting and running requests."""
    output_tokens: int
    """Tokens still to be produced, of each request at most `OUTPUT_HORIZON`."""
    kv_usage: float
    """Part of the cache's blocks in use by requests, 0 to 1."""
    step_s: float
    """How long a step takes: moving average."""
    age_s: float = 0.0
    """Seconds since the rank was heard to have this load; the coordinator fills it in."""


class LoadReport(Message, frozen=True):
    """A rank's load has changed; sent at most every `coordinator.interval_s`."""

    name: str
    load: RankLoad


class MetricsReport(Message, frozen=True):
    """All metrics of one process; each report replaces the one before."""

    name: str
    incarnation: int
    role: Role
    rank: int | None
    values: list[MetricValue]
    age_s: float = 0.0
    """Seconds since the process reported this; the coordinator fills it in."""


class Drained(Message, frozen=True):
    """A front end has no request in flight any more, and takes none."""

    name: str
    incarnation: int


class ApplyPlan(Message, frozen=True):
    """The launcher tells what was planned; the coordinator compares registrations with it."""

    processes: list[ProcessSpec]
    plan: msgspec.Raw
    """The DeploymentPlan, msgpack; kept for `GET /plan`, never read."""
    state: DeploymentState = DeploymentState.serving
    """Draining: no new requests are wanted."""
    incarnations: dict[str, int] = {}
    """Of every process that is there, for a coordinator that is started again."""


class ProcessExited(Message, frozen=True):
    """The launcher saw a process end."""

    name: str
    incarnation: int
    reason: str


class GetPlan(Message, frozen=True):
    call_id: int


ToCoordinator = (
    Register
    | PhaseEntered
    | Heartbeat
    | LoadReport
    | MetricsReport
    | Drained
    | ApplyPlan
    | ProcessExited
    | GetPlan
)

# --- coordinator to everybody ---


class Registered(Message, frozen=True):
    publish_endpoint: str
    """Where membership is published."""


class RegisterAgain(Message, frozen=True):
    """The coordinator does not know the sender: it has been restarted."""


class PlanAnswer(Message, frozen=True):
    call_id: int
    plan: Any
    """The DeploymentPlan as decoded msgpack; None before the launcher told it."""
    actual: list["Member"]
    drift: list[str]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One process as it is."""

    name: str
    role: Role
    rank: int | None
    incarnation: int
    node: str
    pid: int
    devices: list[int]
    state: ProcessState
    phase: Phase
    since_s: float
    """Seconds in this state."""
    reason: str = ""
    """Why it is suspect or lost."""
    endpoints: dict[str, str] = {}
    versions: dict[str, str] = {}
    num_requests: int = 0
    """Requests it has in flight, as of its last heartbeat."""
    remark: str = ""
    """What the user should know about it."""


class Membership(Message, frozen=True):
    """The whole truth about who is there; every message replaces the one before."""

    epoch: int
    """Grows whenever a process joins, leaves or changes its state."""
    state: DeploymentState
    members: list[Member]
    missing: list[str]
    """Planned processes that have not registered."""
    drift: list[str]
    """Differences between plan and registrations, one sentence each."""


class Loads(Message, frozen=True):
    """The load of every rank that has reported one, whole."""

    epoch: int
    """Membership epoch that it belongs to."""
    ranks: list[RankLoad]


class MetricsSnapshot(Message, frozen=True):
    """The last report of every process, the coordinator's own among them."""

    processes: list[MetricsReport]


Published = Membership | Loads | MetricsSnapshot
"""What the coordinator publishes, each under its topic."""
MEMBERSHIP_TOPIC, LOADS_TOPIC, METRICS_TOPIC = b"membership", b"loads", b"metrics"
FRONTENDS_TOPIC = b"frontends"
"""For engine cores: the membership less the other engine cores, unless they are lost. With a
thousand ranks, telling each of all others would be most of what the coordinator does.
"""

FromCoordinator = Registered | RegisterAgain | PlanAnswer

ENCODER = msgspec.msgpack.Encoder()
TO_ENGINE = msgspec.msgpack.Decoder(ToEngine)
ENGINE_OUTPUTS = msgspec.msgpack.Decoder(EngineOutputs)
TO_COORDINATOR = msgspec.msgpack.Decoder(ToCoordinator)
FROM_COORDINATOR = msgspec.msgpack.Decoder(FromCoordinator)
PUBLISHED = msgspec.msgpack.Decoder(Published)


def first_epoch(incarnation: int) -> int:
    """Membership epoch of a coordinator that has just started, above all of those before it."""
    return incarnation << 32


def coordinator_of(epoch: int) -> int:
    """Incarnation of the coordinator that a membership epoch is from."""
    return epoch >> 32


def engine_identity(rank: int, incarnation: int) -> bytes:
    """ROUTER identity of one engine process: `engine-<rank>.<incarnation>`."""
    return b"engine-%d.%d" % (rank, incarnation)
