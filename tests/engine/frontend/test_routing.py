"""Which rank gets a request, and what happens when none can take it."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import zmq

from engine import transport
from engine.config import BalancerPolicy, HealthOptions, Role
from engine.frontend.client import EngineClient
from engine.frontend.errors import Overloaded
from engine.frontend.generation import Generation
from engine.metrics import Metrics
from engine.protocol import (
    TO_ENGINE,
    AbortRequests,
    AddRequest,
    EngineOutputs,
    FinishReason,
    ProcessState,
    RankLoad,
    engine_identity,
)
from engine.sampling import SamplingParams
from tests.engine.frontend.conftest import RunningFrontEnd, Start
from tests.engine.frontend.fake_deployment import DEADLINE_S
from tests.engine.frontend.in_flight_table import member

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "test", "messages": [{"role": "user", "content": "Hi"}]},
    TEXT: {"model": "test", "prompt": "Hi"},
}
HEADER = "X-Data-Parallel-Rank"


@pytest.fixture
def front_end(start: Start) -> RunningFrontEnd:
    """Two ranks that say "Hello world"."""
    front_end = start(dp=2)
    front_end.wait_until_ready()
    return front_end


def ranks_of(front_end: RunningFrontEnd) -> list[int]:
    """The ranks that got the requests so far."""
    return front_end.deployment.wait(lambda seen: [[rank for rank, _ in seen.added]])[0]


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


# --- pinned ---


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_goes_to_the_rank_that_it_names(front_end: RunningFrontEnd, path, stream):
    for rank in (1, 1, 0, 1):
        body = BODIES[path] | {"stream": stream}
        response = front_end.http.post(path, json=body, headers={HEADER: str(rank)})
        assert response.status_code == 200
    assert ranks_of(front_end) == [1, 1, 0, 1]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("value", ["2", "-1", "one", "", "1.0", "0x1", "9" * 5000, "0" * 10])
def test_a_rank_that_there_is_not_is_refused(front_end: RunningFrontEnd, path, value):
    response = front_end.http.post(path, json=BODIES[path], headers={HEADER: value})
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "invalid_rank"
    assert error["param"] == HEADER
    assert "0 to 1" in error["message"]
    assert ranks_of(front_end) == []


@pytest.mark.parametrize("path", BODIES)
def test_a_named_rank_that_is_not_ready_is_not_replaced(front_end: RunningFrontEnd, path):
    front_end.deployment.set_rank(1, ProcessState.suspect, "silent for 1.2 s")
    front_end.wait_for_readiness(lambda body: body["suspect"])
    response = front_end.http.post(path, json=BODIES[path], headers={HEADER: "1"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert error_of(response)["code"] == "rank_not_ready"
    assert error_of(response)["message"] == "Rank 1 is suspect: silent for 1.2 s."
    assert front_end.http.post(path, json=BODIES[path], headers={HEADER: "0"}).status_code == 200


# --- by load ---


def load(rank: int, waiting_tokens: int) -> RankLoad:
    return RankLoad(rank, 0, 0, 0, waiting_tokens, 0, 0.0, 0.0)


def test_what_other_front_ends_sent_is_seen_in_the_reports(front_end: RunningFrontEnd):
    deployment = front_end.deployment
    deployment.publish_loads(load(0, 5000), load(1, 0))
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_balanced_by_reports(front_end):
        assert time.monotonic() < deadline_s
    before = len(ranks_of(front_end))
    for _ in range(4):
        front_end.http.post(CHAT, json=BODIES[CHAT])
    assert ranks_of(front_end)[before:] == [1] * 4


def is_balanced_by_reports(front_end: RunningFrontEnd) -> bool:
    """Two requests in a row went to rank 1: not in turn."""
    for _ in range(2):
        front_end.http.post(CHAT, json=BODIES[CHAT])
    return ranks_of(front_end)[-2:] == [1, 1]


def test_when_the_coordinator_is_silent_the_own_requests_alone_count(start: Start):
    front_end = start(dp=2, silence_s=0.2)
    front_end.wait_until_ready()
    front_end.deployment.publish_loads(load(0, 5000), load(1, 0))
    deadline_s = time.monotonic() + DEADLINE_S
    while True:  # nothing is published any more: after a while both ranks get requests
        for _ in range(10):
            front_end.http.post(CHAT, json=BODIES[CHAT])
        counts = Counter(ranks_of(front_end)[-10:])
        if counts == {0: 5, 1: 5}:
            break
        assert time.monotonic() < deadline_s


def test_round_robin_ignores_the_load(start: Start):
    front_end = start(dp=3, policy=BalancerPolicy.round_robin)
    front_end.wait_until_ready()
    front_end.deployment.publish_loads(load(0, 5000), load(1, 0), load(2, 0))
    for _ in range(6):
        front_end.http.post(CHAT, json=BODIES[CHAT])
    assert ranks_of(front_end) == [0, 1, 2, 0, 1, 2]


# --- limits ---


def test_more_requests_than_allowed_are_refused_at_once(start: Start):
    front_end = start(max_requests=2)
    deployment = front_end.deployment
    deployment.answer = None
    front_end.wait_until_ready()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(front_end.http.post, CHAT, json=BODIES[CHAT]) for _ in range(2)]
        requests = [deployment.wait_for_request(number) for number in range(2)]
        refused = front_end.http.post(TEXT, json=BODIES[TEXT])
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert error_of(refused)["code"] == "overloaded"
        assert front_end.http.get("/ready").status_code == 200
        for rank, request in requests:
            deployment.output(rank, request.request_id, b"x", FinishReason.stop)
        assert [answer.result(DEADLINE_S).status_code for answer in answers] == [200, 200]
    deployment.answer = b"ok"
    assert front_end.http.post(TEXT, json=BODIES[TEXT]).status_code == 200


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list["zmq.Socket[bytes]"]]:
    """A front end's two sockets and an engine's, with queues of a few messages."""
    monkeypatch.setattr(transport, "MAX_QUEUED_MESSAGES", 2)
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        requests, endpoint = transport.bind(context, zmq.ROUTER, f"ipc://{tmp_path}/requests")
        outputs, outputs_endpoint = transport.bind(context, zmq.PULL, f"ipc://{tmp_path}/outputs")
        engine = transport.connect(context, zmq.DEALER, endpoint, engine_identity(0, 0))
        engine_outputs = transport.connect(context, zmq.PUSH, outputs_endpoint)
        made = [requests, outputs, engine, engine_outputs]
        for each in made:
            stack.callback(each.close)
        yield made


async def test_an_engine_whose_queue_is_full_is_named_and_misses_nothing(sockets):
    requests, outputs, engine, engine_outputs = sockets
    client = EngineClient(
        *(requests, outputs, BalancerPolicy.least_loaded),
        *(HealthOptions(silence_s=DEADLINE_S), Metrics(Role.frontend)),
    )
    reached = asyncio.Event()
    client.start(reached.set)
    try:
        client.apply([member(0)])
        async with asyncio.timeout(DEADLINE_S):
            assert await asyncio.to_thread(engine.poll, round(1000 * DEADLINE_S))
            greeting = TO_ENGINE.decode(engine.recv())
            assert not client.connected_ranks
            transport.send(engine_outputs, EngineOutputs(0, 0, 0, greeting.sequence, []))
            await reached.wait()
        sent: list[Generation] = []
        prompt, sampling = [1] * 100_000, SamplingParams(max_tokens=1)
        with contextlib.suppress(Overloaded):
            while len(sent) < 10_000:  # the engine does not read
                sent.append(client.submit(prompt, sampling))
        with pytest.raises(Overloaded, match="queues of all ranks are full"):
            client.submit(prompt, sampling)
        with pytest.raises(Overloaded, match="queue of rank 0 is full"):
            client.submit(prompt, sampling, pinned=0)
        for generation in sent:
            generation.close()  # cannot be told now
        assert client.connected_ranks == {0}
        aborted: list[int] = []
        added, numbers = [], []
        async with asyncio.timeout(DEADLINE_S):
            while len(aborted) < len(sent):
                while engine.poll(0):
                    message = TO_ENGINE.decode(engine.recv())
                    numbers.append(message.sequence)
                    match message:
                        case AddRequest(_, request_id):
                            added.append(request_id)
                        case AbortRequests(_, request_ids):
                            aborted += request_ids
                await asyncio.sleep(0.001)
        assert numbers == list(range(1, len(numbers) + 1))
        assert aborted == added == [generation.request_id for generation in sent]
        client.submit([1], sampling).close()
    finally:
        client.close()
