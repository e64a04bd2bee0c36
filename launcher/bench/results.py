"""What a benchmark has measured: the values of `results.json`.

The form has a version; fields are added, with defaults, and never change their meaning.
"""

from typing import Any

import msgspec

RESULTS_VERSION = 1
RESULTS_NAME = "results.json"
"""In the directory of the results."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of many values."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class RankTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank computed in a stage."""

    rank: int
    num_prompt_tokens: int
    num_output_tokens: int


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one process took in a stage."""

    name: str
    """`frontend-0`, `engine-0`; with `bench.pid` the program's name."""
    pid: int
    cpu_s: float
    cpu_share: float
    """Of one CPU."""
    pss_bytes: int
    """Most that was seen: memory of its own, and its part of what it shares; 0: it is not known."""


class ClientUse(msgspec.Struct, frozen=True, kw_only=True):
    """What the measuring itself took in a stage."""

    num_processes: int
    cpu_share: float
    """Of one CPU, of the client process with most."""
    lag_ms: Summary | None
    """How late the client processes were when they had something to do."""
    is_bottleneck: bool
    """The figures are those of the client rather than of the server."""


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """One stage. Times are in milliseconds unless their name says otherwise; rates count requests
    that did not fail, and run from the first request's start to the last one's end."""

    name: str
    """`concurrency 4`, `rate 2/s`, `trace`."""
    concurrency: int | None = None
    rate: float | None = None
    duration_s: float
    num_requests: int
    num_failed: int
    num_not_sent: int
    """Given up after too many failures, or after a failed turn of their session."""
    failures: dict[str, int]
    """How many failed for each cause."""
    examples: dict[str, str]
    """What was seen first of each cause."""
    num_prompt_tokens: int
    num_output_tokens: int
    tokens_counted_by: str
    """`usage` (the server), `parts` (the client: each part of an answer as one token)."""
    output_tok_s: float
    total_tok_s: float
    """Prompt and output."""
    req_s: float
    goodput_req_s: float | None
    """Requests a second within all of `bench.slo`; None: it sets no limit."""
    mean_in_flight: float | None = None
    """Requests at the same time, on average over the duration: while a stage ends they are fewer
    than its concurrency, and where a server does not keep up with a rate they are many."""
    ttft_ms: Summary | None
    """From before the connection is made to the first part of the answer."""
    tpot_ms: Summary | None
    """Of a request: from first part to last, divided by its tokens less one; not of answers that
    came in one piece."""
    itl_ms: Summary | None
    """Between two parts of an answer; a part can hold several tokens."""
    e2e_ms: Summary | None
    prefix_hit_rate: float | None = None
    """Part of the prompt tokens found in the prefix cache; None: the server does not tell."""
    ranks: list[RankTokens] = []
    """Empty: the server does not tell."""
    rank_skew: float | None = None
    """Output tokens of the rank with most, as a multiple of the mean of all; 1 is even."""
    processes: list[ProcessUse] = []
    """Empty: they are on other machines, or not known."""
    client: ClientUse


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    versions: dict[str, str]
    """Of Flotilla, Python, the packages that compute, and the kernel."""
    cpu: str
    num_cpus: int
    memory_bytes: int
    gpus: list[str]
    git_commit: str | None
    """Of the checkout that ran, with `-dirty` if files differed; None: it is none."""
    code_digest: str | None = None
    """SHA-256 of Flotilla's own files: the same in every checkout with the same code."""


class StartUp(msgspec.Struct, frozen=True, kw_only=True):
    ready_s: float
    """From when the command began to the deployment's readiness."""
    phases_s: dict[str, dict[str, float]]
    """How long each process (`rank 0`, `frontend-0`) took for each phase."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A whole benchmark."""

    version: int = RESULTS_VERSION
    name: str
    created: str
    """When it began: date and time with zone, ISO 8601."""
    is_valid: bool
    """No request failed, tokens came, and the deployment lived to its end."""
    problems: list[str]
    """Why it is not."""
    warnings: list[str]
    """What limits the worth of its figures."""
    url: str
    model: str
    overrides: list[str]
    """As typed."""
    config: dict[str, Any]
    """All of it, resolved; with `bench.url` the section `bench` alone."""
    plan_digest: str | None
    """None: the server is not ours."""
    environment: Environment
    start_up: StartUp | None
    """None: the server ran already."""
    stages: list[StageResult]


def encode(results: Results) -> bytes:
    return msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"


def decode(data: bytes) -> Results:
    """The results in a file.

    Raises:
        msgspec.DecodeError: They are none.
    """
    return msgspec.json.decode(data, type=Results)
