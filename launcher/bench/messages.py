"""What launcher and client processes say to each other: msgpack behind its length, over pipes.

Job  ->  Progress ..., Outcome        and again, until the launcher closes the pipe
"""

import struct
from typing import IO, TypeVar

import msgspec

OTHER_LENGTH = "answer of another length"
TOO_LATE = "no whole answer in time"
"""Causes of failures, in records."""
_HEADER = struct.Struct(">I")

T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a prompt as a recipe: the same key gives the same content, wherever it is made."""

    key: str
    num_tokens: int


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """One request: what it adds to the session so far, and how long an answer it wants."""

    pieces: list[Piece]
    max_tokens: int

    @property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.pieces)


class Session(msgspec.Struct, frozen=True, array_like=True):
    """Requests one after the other."""

    turns: list[Turn]
    start_s: float = 0.0
    """Seconds after the stage began, if sessions arrive by the clock."""


class Target(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Where requests go, and what is the same in all of them."""

    host: str
    port: int
    tls: bool = False
    path: str
    """`/v1/completions`"""
    model: str
    is_chat: bool = False
    vocab_size: int | None = None
    """None: prompts are text."""
    words_per_token: float = 1.0
    salt: str = ""
    """What other prompts than those of the same recipes in another benchmark are made with."""
    ignore_eos: bool = True
    includes_usage: bool = True
    api_key: str | None = None
    answer_s: float


class Job(Message, frozen=True, kw_only=True):
    """A client process's share of one stage."""

    target: Target
    sessions: list[Session]
    begin_s: float
    """When it begins, on the machine's monotonic clock: at the same time in all clients."""
    concurrency: int | None = None
    """Sessions at the same time; None: each starts at its `start_s`."""
    think_s: float = 0.0


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One request. Times are seconds on the machine's monotonic clock."""

    start_s: float
    """Before it connects; by the clock when it should have been sent, if that was earlier."""
    end_s: float
    first_s: float | None = None
    """When the first part of the answer came."""
    last_s: float | None = None
    """When the last part came."""
    gaps: bytes = b""
    """Seconds between two parts of the answer, as floats of 4 bytes."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    is_counted: bool = True
    """By the server (`usage`); else each part of the answer counts as a token."""
    cause: str = ""
    """Why it failed, the same for all that failed so; empty: it did not."""
    message: str = ""
    """What was seen of the failure."""


class Progress(Message, frozen=True):
    """Of the job so far."""

    num_done: int
    """Requests, failed ones too."""
    num_failed: int
    num_parts: int
    """Of answers: about as many as tokens."""


class Outcome(Message, frozen=True, kw_only=True):
    """The job is done."""

    records: list[Record]
    num_not_sent: int
    """Given up: too many failed in a row, or a turn before them failed."""
    cpu_share: float
    """Of one CPU, that this client process took."""
    lags_s: list[float]
    """How much later than asked its event loop came back, now and then, and requests that have a
    time were sent."""


FromClient = Progress | Outcome

JOB: msgspec.msgpack.Decoder[Job] = msgspec.msgpack.Decoder(Job)
FROM_CLIENT: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_ENCODER = msgspec.msgpack.Encoder()


def write(stream: IO[bytes], message: Message) -> None:
    data = _ENCODER.encode(message)
    stream.write(_HEADER.pack(len(data)) + data)
    stream.flush()


def read(stream: IO[bytes], decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    """The next message; None: the other side is gone."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    (length,) = _HEADER.unpack(header)
    data = stream.read(length)
    return decoder.decode(data) if len(data) == length else None
