"""The control socket of a running deployment: what its launcher can be asked, and its answers.

A unix socket in the run directory, so that it works whatever front ends and coordinator do. A
connection carries one question; each message is msgpack behind its length (4 bytes, big endian):

    GetState  ->  State
    Stop      ->  Stopping, Progress ..., Ended; the launcher ends right after
"""

import struct
from enum import Enum

import msgspec

from engine.protocol import ENCODER, Membership, Message, RankLoad
from launcher.plan import DeploymentPlan

SOCKET_NAME = "control"
"""In the run directory."""
HEADER = struct.Struct(">I")
MAX_QUESTION_BYTES = 4096
MAX_ANSWER_BYTES = 64 << 20
"""Ten times the state of 4096 ranks."""
PROGRESS_S = 1.0
"""Longest silence while the deployment ends: who waits sees that the launcher lives."""


class Stage(Enum):
    """What the launcher does with its deployment."""

    starting = "starting"
    serving = "serving"
    draining = "draining"
    ending = "ending"
    """Its processes are told to end."""


class GetState(Message, frozen=True):
    """What was planned, and what is there."""


class Stop(Message, frozen=True):
    """What the first Ctrl-C does; nothing if the deployment ends already."""

    force: bool = False
    """What the second one does: do not wait for requests in flight."""


Question = GetState | Stop


class State(Message, frozen=True):
    """The answer to `GetState`."""

    version: str
    """Of Flotilla."""
    pid: int
    """Of the launcher."""
    stage: Stage
    uptime_s: float
    """Seconds since the launcher began to start it."""
    addresses: list[str]
    """`http://` addresses of the front ends."""
    plan: DeploymentPlan
    membership: Membership | None
    """The coordinator's last word; None: it has not said anything yet."""
    membership_age_s: float
    """Seconds since the coordinator said it."""
    incarnations: dict[str, int]
    """How many times the launcher has started each process."""
    loads: list[RankLoad] = []
    """Of the ranks, as last told."""


class Stopping(Message, frozen=True):
    """The first answer to `Stop`."""

    pid: int
    """Of the launcher."""
    stage: Stage
    """What the launcher was doing when it was asked."""
    drain_s: float
    """Seconds that requests in flight get at most."""
    stop_s: float
    """Seconds that processes get to end at most, before they are killed."""


class Progress(Message, frozen=True):
    """Told when it changes, and every `PROGRESS_S`."""

    stage: Stage
    num_requests: int
    """In flight at the front ends, as of their last heartbeats."""


class Ended(Message, frozen=True):
    """No process of the deployment is left; the launcher ends with this exit code."""

    exit_code: int
    reason: str = ""
    """Why it is not 0."""
    num_cut_off: int = 0
    """Requests that did not finish."""


class Rejected(Message, frozen=True):
    """What was asked is no question, or there are too many who ask."""

    reason: str


Answer = State | Stopping | Progress | Ended | Rejected

QUESTION: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
ANSWER: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def framed(message: Message) -> bytes:
    """The message as it goes over the socket."""
    data = ENCODER.encode(message)
    return HEADER.pack(len(data)) + data
