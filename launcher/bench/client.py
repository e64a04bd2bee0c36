"""A client process: drives its share of a load and notes what comes back.

python -m launcher.bench.client     speaks `launcher.bench.messages` over stdin and stdout
"""

import asyncio
import os
import resource
import signal
import ssl
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

import msgspec
import uvloop

from launcher.bench import content
from launcher.bench.messages import (
    JOB,
    OTHER_LENGTH,
    TOO_LATE,
    Job,
    Outcome,
    Progress,
    Record,
    Session,
    Target,
    read,
    write,
)
from launcher.bench.stream import Failure, Stream, http_request

_MOST_FAILURES_IN_A_ROW = 32
"""After so many, and no answer between them, nothing more is sent: the server is gone."""
_PROGRESS_S = 0.5
_LAG_S = 0.05
"""Between two looks at how late the event loop is."""


def main() -> None:
    """Does one job after the other until the launcher closes the pipe, in the middle of one too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's
    # Each request in flight takes a file; 1024 are the default of many systems.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (job := read(source, JOB)) is not None:
        write(sink, uvloop.run(_attached(job, sink)))


async def _attached(job: Job, sink: IO[bytes]) -> Outcome:
    """Does a job; the launcher says nothing meanwhile, so that what can be read is its end."""
    loop = asyncio.get_running_loop()
    source = sys.stdin.fileno()
    loop.add_reader(source, os._exit, 1)
    try:
        return await Driver(job, sink).run()
    finally:
        loop.remove_reader(source)
        os.set_blocking(source, True)  # uvloop has made it otherwise


class Driver:
    """Does one job.

    Args:
        sink: Where progress is told; None: nowhere.
    """

    def __init__(self, job: Job, sink: IO[bytes] | None = None) -> None:
        self._job, self._sink = job, sink
        self._tls = ssl.create_default_context() if job.target.tls else None
        self._records: list[Record] = []
        self._num_failed = self._num_failed_in_a_row = self._num_parts = 0
        self._lags_s: list[float] = []

    async def run(self) -> Outcome:
        await asyncio.sleep(max(0.0, self._job.begin_s - time.monotonic()))
        began_s, cpu_s = time.monotonic(), time.process_time()
        beside = [asyncio.create_task(self._watch_lag()), asyncio.create_task(self._tell())]
        try:
            if self._job.concurrency is None:
                await self._run_by_the_clock(began_s)
            else:
                await self._run_at_a_time(self._job.concurrency)
        finally:
            for task in beside:
                task.cancel()
        elapsed_s = max(time.monotonic() - began_s, 1e-9)
        return Outcome(
            records=self._records,
            num_not_sent=sum(len(each.turns) for each in self._job.sessions) - len(self._records),
            cpu_share=(time.process_time() - cpu_s) / elapsed_s,
            lags_s=self._lags_s,
        )

    @property
    def _has_given_up(self) -> bool:
        return self._num_failed_in_a_row >= _MOST_FAILURES_IN_A_ROW

    async def _run_at_a_time(self, concurrency: int) -> None:
        sessions = iter(self._job.sessions)

        async def work(sessions: Iterator[Session]) -> None:
            for session in sessions:
                if self._has_given_up:
                    return
                await self._run_session(session)

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(concurrency, len(self._job.sessions))):
                workers.create_task(work(sessions))

    async def _run_by_the_clock(self, began_s: float) -> None:
        async with asyncio.TaskGroup() as running:
            for session in self._job.sessions:
                due_s = began_s + session.start_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if self._has_given_up:
                    return
                running.create_task(self._run_session(session, due_s))

    async def _run_session(self, session: Session, due_s: float | None = None) -> None:
        """Asks turn after turn.

        Args:
            due_s: When the first request should be sent; None: when its turn has come.
        """
        target, messages = self._job.target, list[dict[str, str]]()
        for number, turn in enumerate(session.turns):
            if number:
                await asyncio.sleep(self._job.think_s)
            body = _body(target, turn.max_tokens)
            if target.vocab_size is not None:
                body["prompt"] = content.token_ids(turn.pieces, target.vocab_size, target.salt)
            else:
                said = content.text(turn.pieces, target.words_per_token, target.salt)
                messages.append({"role": "user", "content": said})
                if target.is_chat:
                    body["messages"] = messages
                else:
                    body["prompt"] = said
            keeps_text = number + 1 < len(session.turns)
            record, answer = await self._ask(
                body, turn.num_tokens, keeps_text, None if number else due_s
            )
            self._note(record)
            if record.cause:
                return
            messages.append({"role": "assistant", "content": answer})

    async def _ask(
        self, body: dict[str, Any], num_prompt_tokens: int, keeps_text: bool, due_s: float | None
    ) -> tuple[Record, str]:
        """Sends one request; what became of it, and the text of the answer."""
        target = self._job.target
        request = http_request(target, msgspec.json.encode(body))
        stream = Stream(request, keeps_text)
        failure: Failure | None = None
        start_s = time.monotonic()
        if due_s is not None:
            # Users that come by the clock wait for us too, when we are late.
            self._lags_s.append(max(0.0, start_s - due_s))
            start_s = min(start_s, due_s)
        try:
            async with asyncio.timeout(target.answer_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: stream, target.host, target.port, ssl=self._tls
                )
                await stream.ended
        except TimeoutError:
            failure = Failure(TOO_LATE, f"bench.answer_s={target.answer_s:g}")
            stream.close()
        except OSError as problem:
            failure = Failure("no connection", str(problem))
        except Failure as problem:
            failure = problem
        end_s = time.monotonic()
        usage = stream.usage
        num_output = stream.num_parts if usage is None else usage.completion_tokens
        if failure is None and usage is not None and target.ignore_eos:
            wanted = body["max_tokens"]
            if num_output != wanted:
                failure = Failure(OTHER_LENGTH, f"{num_output} of {wanted} tokens")
        record = Record(
            start_s=start_s,
            end_s=stream.done_s or end_s,
            first_s=stream.first_s,
            last_s=stream.last_s,
            gaps=stream.gaps.tobytes(),
            num_prompt_tokens=num_prompt_tokens if usage is None else usage.prompt_tokens,
            num_output_tokens=num_output,
            is_counted=usage is not None,
            cause=failure.cause if failure else "",
            message=failure.seen if failure else "",
        )
        return record, stream.text

    def _note(self, record: Record) -> None:
        self._records.append(record)
        self._num_parts += len(record.gaps) // 4 + (record.first_s is not None)
        if record.cause:
            self._num_failed += 1
            self._num_failed_in_a_row += 1
        else:
            self._num_failed_in_a_row = 0

    async def _watch_lag(self) -> None:
        while True:
            asked_s = time.monotonic()
            await asyncio.sleep(_LAG_S)
            self._lags_s.append(max(0.0, time.monotonic() - asked_s - _LAG_S))

    async def _tell(self) -> None:
        while self._sink is not None:
            write(self._sink, Progress(len(self._records), self._num_failed, self._num_parts))
            await asyncio.sleep(_PROGRESS_S)


def _body(target: Target, max_tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": target.model,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    if target.ignore_eos:
        body["ignore_eos"] = True
    if target.includes_usage:
        body["stream_options"] = {"include_usage": True}
    return body


if __name__ == "__main__":
    main()
