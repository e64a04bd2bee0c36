"""Traces of requests in Mooncake's format.

Source: github.com/kvcache-ai/Mooncake, README, "Open Source Trace": one JSON object in each line
with `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`, one for each block
of 512 tokens of the prompt; equal ids mean equal content up to there.
"""

import itertools
from collections.abc import Iterable

import msgspec

from launcher.errors import Refused


class Entry(msgspec.Struct, frozen=True):
    """One request of a trace."""

    timestamp: float
    """Milliseconds."""
    input_length: int
    """Tokens."""
    output_length: int
    """Tokens."""
    hash_ids: list[int] = []


def read_trace(path: str, limit: int | None = None) -> list[Entry]:
    """The first requests of a trace file, in the order of their time.

    Args:
        limit: How many; None: all.

    Raises:
        Refused: It cannot be read, or a line is not what it should be; the message names it.
    """
    try:
        with open(path, encoding="utf-8") as lines:
            return parse_trace(lines, path, limit)
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is not text"
        message = f"bench.trace.path cannot be read: {path} ({why})"
        raise Refused(message, "bench.trace.path=FILE") from problem


def parse_trace(lines: Iterable[str], path: str, limit: int | None = None) -> list[Entry]:
    """The requests in the lines of a file; empty lines are left out.

    Raises:
        Refused: A line is wrong, or there is none.
    """
    entries: list[Entry] = []
    decoder = msgspec.json.Decoder(Entry)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = decoder.decode(line)
            _check(entry)
        except (msgspec.DecodeError, ValueError) as problem:
            raise Refused(
                f"{path} line {number} is no request of a trace: {problem}",
                'a line is {"timestamp": 0, "input_length": 128, "output_length": 64, "hash_ids":'
                " [0]}",
            ) from problem
        entries.append(entry)
        if limit is not None and len(entries) == limit:
            break
    if not entries:
        raise Refused(f"{path} holds no request", "bench.trace.path=FILE with one in each line")
    if any(later.timestamp < entry.timestamp for entry, later in itertools.pairwise(entries)):
        entries.sort(key=lambda entry: entry.timestamp)
    return entries


def _check(entry: Entry) -> None:
    if entry.timestamp < 0:
        raise ValueError(f"timestamp must be at least 0: {entry.timestamp:g}")
    for name in ("input_length", "output_length"):
        if getattr(entry, name) < 1:
            raise ValueError(f"{name} must be at least 1: {getattr(entry, name)}")
