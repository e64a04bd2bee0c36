"""How many tokens a second pass through front ends and engine cores, and what each costs.

    python benchmarks/streams.py [--streams 64] [--seconds 10] [--max-tokens 128] [OVERRIDE ...]

Starts a deployment with `model=dummy` and the overrides (`dp=2 frontend.count=2`), holds so many
streams of /v1/completions open from this process, one request after the other on each connection,
and ends it. With `--requests N` it ends after so many requests instead. Prints one JSON object:
tokens a second, failed requests, and for each process microseconds of CPU time per output token
(an engine core's by the tokens of all ranks, likewise a front end's).
"""

import argparse
import asyncio
import json
import math
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil
import uvloop

READY_S, ANSWER_S = 60.0, 60.0
WARM_UP_S = 2.0


@dataclass
class Tally:
    """What all streams together have had."""

    num_requests: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    num_writes: int = 0
    first_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Stream(asyncio.Protocol):
    """One connection, one request after the other until told to stop.

    Args:
        host: For the header.
        first: Tokens of the first request: streams that differ in it do not end all at once.
    """

    def __init__(self, host: str, first: int, max_tokens: int, tally: Tally) -> None:
        self.host, self.max_tokens, self.tally = host, max_tokens, tally
        self.wanted = first
        self.is_stopping = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self._ask()

    def data_received(self, data: bytes) -> None:
        self.tally.num_writes += 1
        if self.head == b"":
            self.tally.first_s.append(time.perf_counter() - self.start_s)
            self.head = data[:12]
        self.tail = self.tail[-400:] + data
        if self.tail.endswith(b"\r\n0\r\n\r\n"):
            self._note_end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self._fail(f"connection lost: {exc}")
            self.ended.set_result(None)

    def _ask(self) -> None:
        self.head, self.tail, self.start_s = b"", b"", time.perf_counter()
        self.transport.write(_request(self.host, self.wanted))

    def _note_end(self) -> None:
        found = re.search(rb'"completion_tokens":(\d+)', self.tail)
        num_tokens = int(found[1]) if found else 0
        self.tally.num_requests += 1
        self.tally.num_tokens += num_tokens
        is_whole = num_tokens == self.wanted and b"data: [DONE]" in self.tail
        if self.head != b"HTTP/1.1 200" or not is_whole:
            self._fail(repr(self.head + b"..." + self.tail))
        if self.is_stopping:
            self.ended.set_result(None)
            self.transport.close()
        else:
            self.wanted = self.max_tokens
            self._ask()

    def _fail(self, problem: str) -> None:
        self.tally.num_failed += 1
        self.tally.problems.append(problem)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    command = [sys.executable, "-m", "launcher", "model=dummy", "frontend.port=0"]
    command += ["name=streams", *args.overrides]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = _wait_until_ready(launcher)
        figures = uvloop.run(_measure(url, args))
    finally:
        launcher.terminate()
        launcher.communicate(timeout=READY_S)
    figures = {"overrides": args.overrides, "streams": args.streams} | figures
    print(json.dumps(figures))  # noqa: T201


def _wait_until_ready(launcher: "subprocess.Popen[str]") -> str:
    assert launcher.stderr is not None
    for line in launcher.stderr:
        if found := re.search(r"ready after .* (http://\S+)/v1", line):
            return found[1]
    raise RuntimeError(f"the deployment did not start: exit code {launcher.wait()}")


async def _measure(url: str, args: argparse.Namespace) -> dict[str, object]:
    processes = await asyncio.to_thread(_processes, url)
    tally = Tally()
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    streams = []
    for number in range(1, args.streams + 1):
        first = math.ceil(args.max_tokens * number / args.streams)
        stream = Stream(address.netloc, first, args.max_tokens, tally)
        await loop.create_connection(lambda each=stream: each, address.hostname, address.port)
        streams.append(stream)
    await asyncio.sleep(WARM_UP_S)
    start, start_s, cpu = Tally(**vars(tally)), time.perf_counter(), _cpu_s(processes)
    tally.first_s = []
    while _is_short(args, tally, start_s):  # noqa: ASYNC110  an event each time would cost more
        await asyncio.sleep(0.01)
    seconds, after = time.perf_counter() - start_s, _cpu_s(processes)
    num_tokens = tally.num_tokens - start.num_tokens
    num_writes, first_s = tally.num_writes - start.num_writes, tally.first_s
    for stream in streams:
        stream.is_stopping = True
    await asyncio.wait_for(asyncio.gather(*(stream.ended for stream in streams)), ANSWER_S)
    return {
        "tok_s": round(num_tokens / seconds),
        "seconds": round(seconds, 1),
        "requests": tally.num_requests,
        "failed": tally.num_failed,
        "problems": tally.problems[:3],
        "tokens_per_read": round(num_tokens / num_writes, 2),
        "first_ms_median": round(statistics.median(first_s) * 1e3, 1),
        "cpu_us_per_token": {
            name: round((after[name] - cpu[name]) / num_tokens * 1e6, 1) for name in cpu
        },
    }


def _is_short(args: argparse.Namespace, tally: Tally, start_s: float) -> bool:
    if args.requests:
        return tally.num_requests < args.requests
    return time.perf_counter() - start_s < args.seconds


def _processes(url: str) -> dict[str, psutil.Process]:
    with urllib.request.urlopen(f"{url}/plan", timeout=ANSWER_S) as response:
        actual = json.load(response)["actual"]
    found = {each["name"]: psutil.Process(each["pid"]) for each in actual}
    return {"client": psutil.Process()} | {name: found[name] for name in sorted(found)}


def _cpu_s(processes: dict[str, psutil.Process]) -> dict[str, float]:
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: each.user + each.system for name, each in times.items()}


def _request(host: str, max_tokens: int) -> bytes:
    body = {
        "model": "dummy",
        "prompt": "Once upon a time",
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


if __name__ == "__main__":
    main()
