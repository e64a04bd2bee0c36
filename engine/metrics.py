"""Metrics of one process: what they are called, how they are counted, how they travel.

Pure: no sockets, no clock. A process counts into `Metrics`, its link sends `values()` to the
coordinator, front ends render what the coordinator publishes (engine/frontend/exposition.py).

Names are vLLM's where the meaning is the same, without its prefix: `flotilla:` is added when they
are rendered, and `_total` to counters.
"""

from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum

import msgspec

from engine.config import Role

PREFIX = "flotilla:"


class MetricValue(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One metric with one set of label values."""

    name: str
    labels: tuple[str, ...]
    """Values of the metric's own labels, in its order; rank, front end and model come by sender."""
    value: float
    """Of a counter or gauge; of a histogram the sum of what was observed."""
    counts: tuple[int, ...] = ()
    """Of a histogram: observations in each bucket, the last being those above all bounds."""


class Kind(Enum):
    counter = "counter"
    gauge = "gauge"
    histogram = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """What is measured; one object for each, compared by identity."""

    name: str
    kind: Kind
    role: Role | None
    """Which processes have it; None: all."""
    help: str
    labels: tuple[str, ...] = ()
    """Its own labels; `model_name`, `rank`, `frontend` are the sender's."""
    bounds: tuple[float, ...] = ()
    """Of a histogram: the highest value of each bucket but the last."""


class Metrics:
    """What one process has counted. For one thread.

    Metrics of the process's role that have no labels of their own are there from the start, as 0.
    """

    __slots__ = ("_histograms", "_numbers")

    def __init__(self, role: Role) -> None:
        self._numbers: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], _Histogram]] = {}
        for metric in METRICS.values():
            if metric.role is not role and metric.role is not None:
                continue
            if metric.kind is Kind.histogram:
                self._histograms[metric] = {}
                if not metric.labels:
                    self._histograms[metric][()] = _Histogram(metric)
            else:
                self._numbers[metric] = {} if metric.labels else {(): 0.0}

    def add(self, metric: Metric, value: float = 1, labels: tuple[str, ...] = ()) -> None:
        """Adds to a counter or gauge."""
        numbers = self._numbers[metric]
        numbers[labels] = numbers.get(labels, 0.0) + value

    def set(self, metric: Metric, value: float, labels: tuple[str, ...] = ()) -> None:
        """Sets a gauge, or a counter whose total is counted elsewhere."""
        self._numbers[metric][labels] = value

    def observe(
        self, metric: Metric, value: float, count: int = 1, labels: tuple[str, ...] = ()
    ) -> None:
        """Adds `count` equal values to a histogram."""
        histograms = self._histograms[metric]
        histogram = histograms.get(labels)
        if histogram is None:
            histogram = histograms[labels] = _Histogram(metric)
        histogram.counts[bisect_left(histogram.bounds, value)] += count
        histogram.sum += value * count

    def values(self) -> list[MetricValue]:
        """Everything counted so far."""
        values = [
            MetricValue(metric.name, labels, value)
            for metric, numbers in self._numbers.items()
            for labels, value in numbers.items()
        ]
        values += [
            MetricValue(metric.name, labels, histogram.sum, tuple(histogram.counts))
            for metric, histograms in self._histograms.items()
            for labels, histogram in histograms.items()
        ]
        return values


class _Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, metric: Metric) -> None:
        self.bounds = metric.bounds
        self.counts = [0] * (len(metric.bounds) + 1)
        self.sum = 0.0


METRICS: dict[str, Metric] = {}
"""All metrics by name."""


def _counter(role: Role | None, name: str, help: str, *labels: str) -> Metric:
    return _add(Metric(name=name, kind=Kind.counter, role=role, help=help, labels=labels))


def _gauge(role: Role | None, name: str, help: str, *labels: str) -> Metric:
    return _add(Metric(name=name, kind=Kind.gauge, role=role, help=help, labels=labels))


def _histogram(role: Role, name: str, help: str, bounds: tuple[float, ...], *labels: str) -> Metric:
    metric = Metric(
        name=name, kind=Kind.histogram, role=role, help=help, labels=labels, bounds=bounds
    )
    return _add(metric)


def _add(metric: Metric) -> Metric:
    assert metric.name not in METRICS
    METRICS[metric.name] = metric
    return metric


# Bounds in seconds: vLLM's, with finer ones below for models that take less than a millisecond.
_LATENCY_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_STEP_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_REQUEST_TOKENS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000),
)

# --- engine cores: labelled with the rank ---

_E = Role.engine
NUM_REQUESTS_RUNNING = _gauge(_E, "num_requests_running", "Requests in the batch.")
NUM_REQUESTS_WAITING = _gauge(_E, "num_requests_waiting", "Requests waiting to be run.")
WAITING_TOKENS = _gauge(_E, "waiting_tokens", "Prompt tokens still to be prefilled.")
KV_CACHE_USAGE = _gauge(_E, "kv_cache_usage_perc", "Part of the KV cache in use; 1 is all of it.")
PREFIX_CACHE_QUERIES = _counter(
    _E, "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
)
PREFIX_CACHE_HITS = _counter(_E, "prefix_cache_hits", "Prompt tokens found in the prefix cache.")
PROMPT_TOKENS = _counter(
    _E, "prompt_tokens", "Prompt tokens prefilled, or taken from the prefix cache."
)
GENERATION_TOKENS = _counter(_E, "generation_tokens", "Tokens generated.")
NUM_PREEMPTIONS = _counter(
    _E, "num_preemptions", "Times that a running request had to give its cache blocks back."
)
REQUEST_SUCCESS = _counter(
    _E, "request_success", "Requests that have ended, by reason.", "finished_reason"
)
REFUSED_REQUESTS = _counter(_E, "refused_requests", "Requests refused, by reason.", "reason")
TIME_TO_FIRST_TOKEN = _histogram(
    _E,
    "time_to_first_token_seconds",
    "From a request's arrival in the engine core to its first token.",
    _LATENCY_S,
)
INTER_TOKEN_LATENCY = _histogram(
    _E, "inter_token_latency_seconds", "Between two tokens of a request.", _STEP_S
)
REQUEST_QUEUE_TIME = _histogram(
    _E,
    "request_queue_time_seconds",
    "From a request's arrival in the engine core to its first step.",
    _REQUEST_S,
)
E2E_REQUEST_LATENCY = _histogram(
    _E,
    "e2e_request_latency_seconds",
    "From a request's arrival in the engine core to its last token.",
    _REQUEST_S,
)
REQUEST_PROMPT_TOKENS = _histogram(
    _E, "request_prompt_tokens", "Prompt tokens of the requests that have ended.", _REQUEST_TOKENS
)
REQUEST_GENERATION_TOKENS = _histogram(
    _E,
    "request_generation_tokens",
    "Generated tokens of the requests that have ended.",
    _REQUEST_TOKENS,
)
ITERATION_TOKENS = _histogram(
    _E, "iteration_tokens_total", "Tokens computed in one step.", _STEP_TOKENS
)
STEP_TIME = _histogram(_E, "step_seconds", "Duration of a step.", _STEP_S)

# --- front ends: labelled with the front end's name ---

_F = Role.frontend
HTTP_REQUESTS = _counter(
    _F,
    "http_requests",
    "HTTP requests answered, by route, status, and error of a stream that failed after its status.",
    *("route", "status", "error_type"),
)
HTTP_IN_FLIGHT = _gauge(_F, "http_requests_in_flight", "POST requests being answered.")
HTTP_DISCONNECTS = _counter(
    _F, "http_disconnects", "Clients that left before their answer was complete."
)
HTTP_RECEIVED = _counter(_F, "http_received_bytes", "Bytes of request bodies.")
HTTP_SENT = _counter(_F, "http_sent_bytes", "Bytes of response bodies.")
HTTP_REQUEST_TIME = _histogram(
    _F,
    "http_request_seconds",
    "From a request's header to the end of its answer, by route.",
    _REQUEST_S,
    "route",
)
HTTP_TIME_TO_FIRST_TOKEN = _histogram(
    _F,
    "http_time_to_first_token_seconds",
    "From a generating request's submission to its first tokens in the front end.",
    _LATENCY_S,
)
BALANCER_DECISIONS = _counter(
    _F, "balancer_decisions", "Ranks chosen, by policy and reason.", "policy", "reason"
)
COORDINATOR_AGE = _gauge(
    _F, "coordinator_age_seconds", "Since the last message from the coordinator."
)
MEMBERSHIP_EPOCH = _gauge(_F, "membership_epoch", "Version of the membership a front end knows.")

# --- the coordinator ---

_C = Role.coordinator
COORDINATOR_MESSAGES = _counter(_C, "coordinator_messages", "Messages received, by type.", "type")
COORDINATOR_PUBLISHED = _counter(
    _C, "coordinator_published", "Messages published, by topic.", "topic"
)

# --- all processes ---

LOST_MESSAGES = _counter(
    None, "lost_messages", "Messages that sequence numbers showed to be lost, by sender.", "sender"
)
STARTING = "starting"
"""The phase from when a process was asked for until its own code runs."""
STARTUP_PHASE = _gauge(
    None, "startup_phase_seconds", "How long each phase of the start took.", "phase"
)
CPU_SECONDS = _counter(None, "process_cpu_seconds", "Processor time used.")

# --- rendered by a front end from what it knows of the others; nobody sends them ---

PROCESS_STATE = Metric(
    name="process_state",
    kind=Kind.gauge,
    role=None,
    help="1 for the state that a process is in, 0 for the others.",
    labels=("process", "state"),
)
PROCESS_STARTS = Metric(
    name="process_starts",
    kind=Kind.counter,
    role=None,
    help="Times that a process has been started.",
    labels=("process",),
)
REPORT_AGE = Metric(
    name="report_age_seconds",
    kind=Kind.gauge,
    role=None,
    help="Since a process reported the metrics shown.",
    labels=("process",),
)
DERIVED = (PROCESS_STATE, PROCESS_STARTS, REPORT_AGE)
