"""What a sweep has measured: the values of `sweep.json`.

The form has a version; fields are added, with defaults, and never change their meaning.
"""

from enum import Enum
from typing import Any

import msgspec

from launcher.bench.results import Environment, Results

SWEEP_VERSION = 1
SWEEP_NAME = "sweep.json"
"""In the directory of the sweep."""


class Outcome(Enum):
    """What became of a job."""

    valid = "valid"
    """It has valid results."""
    invalid = "invalid"
    """It has results that are worth nothing, and say why."""
    refused = "refused"
    """Its config was refused before anything was started."""
    crashed = "crashed"
    """Its process ended without results."""
    timed_out = "timed_out"
    """It was ended because it took too long."""
    not_run = "not_run"
    """The sweep was interrupted before it ended."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One job: a variant, measured once."""

    overrides: list[str]
    """Of the config, as typed for this job alone: what every job has in common included, sweeps
    resolved to one choice each. They are the variant: repetitions have the same."""
    swept: dict[str, str]
    """The keys whose values differ between the jobs, and this job's values; in the order typed."""
    repetition: int
    """Which of the variant's `bench.repeat`, from 0."""
    outcome: Outcome
    exit_code: int | None
    """Negative: the signal that ended it; None: it was not run."""
    seconds: float
    """Of the whole job, start and end included."""
    said: str
    """In one line why it is not valid, and what it has left behind; empty: neither."""
    directory: str
    """With its log and results; relative to the sweep's."""
    results: Results | None
    """None: there are none."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """All jobs of a sweep, in the order of the variants as typed, their repetitions together."""

    version: int = SWEEP_VERSION
    created: str
    """When it first began: date and time with zone, ISO 8601."""
    overrides: list[str]
    """As typed, with the sweeps."""
    environment: Environment
    slo: dict[str, Any]
    """`bench.slo`: limits in milliseconds, None where there is none."""
    rows: list[Row]


def encode(sweep: Sweep) -> bytes:
    return msgspec.json.format(msgspec.json.encode(sweep), indent=2) + b"\n"


def decode(data: bytes) -> Sweep:
    """The sweep in a file.

    Raises:
        msgspec.DecodeError: There is none.
    """
    return msgspec.json.decode(data, type=Sweep)
