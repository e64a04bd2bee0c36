"""What happens to requests when clients leave, and to a front end in a deployment that ends."""

import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError
from engine.protocol import FinishReason, Phase, ProcessState
from tests.engine.frontend.chat_request import BODY, CHAT, STREAM, end_of, error_of
from tests.engine.frontend.conftest import Post, RunningFrontEnd, started
from tests.engine.frontend.fake_deployment import DEADLINE_S

# --- clients ---


def open_request(front_end: RunningFrontEnd, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request."""
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", front_end.port), DEADLINE_S)
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_the_request_of_a_client_that_leaves_is_aborted(front_end: RunningFrontEnd, body):
    deployment = front_end.deployment
    with closing(open_request(front_end, body)) as connection:
        rank, request = deployment.wait_for_request()
        deployment.output(rank, request.request_id, b"a")
        if body is STREAM:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert deployment.wait(lambda seen: seen.aborted) == [(rank, request.request_id)]
    deployment.output(rank, request.request_id, b"b")  # on its way already: harmless
    assert front_end.http.get("/health").status_code == 200


def test_many_clients_that_leave_at_once(front_end: RunningFrontEnd):
    deployment = front_end.deployment
    connections = [open_request(front_end, STREAM) for _ in range(50)]
    deployment.wait_for_request(49)
    for connection in connections:
        connection.close()
    deployment.wait(lambda seen: len(seen.aborted) == 50)
    deployment.answer = b"ok"
    assert front_end.http.post(CHAT, json=BODY).status_code == 200


# --- the deployment ---


def test_draining_finishes_what_is_in_flight(front_end: RunningFrontEnd, post: Post):
    deployment = front_end.deployment
    stream = post(STREAM)
    rank, request = deployment.wait_for_request()
    deployment.drain()
    front_end.wait_for_readiness(lambda body: "draining" in body["reason"])
    refused = front_end.http.post(CHAT, json=BODY)
    assert refused.status_code == 503
    assert error_of(refused)["code"] == "draining"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"
    assert deployment.wait(lambda seen: [seen.drained]) == [[]]
    deployment.output(rank, request.request_id, b"done", FinishReason.stop)
    assert '"content":"done"' in stream.result(DEADLINE_S).text
    (drained,) = deployment.wait(lambda seen: seen.drained)
    assert (drained.name, drained.incarnation) == ("frontend-0", 3)
    assert front_end.http.get("/ready").status_code == 503
    assert front_end.http.get("/health").status_code == 200


def test_draining_with_nothing_in_flight_is_done_at_once(front_end: RunningFrontEnd):
    front_end.deployment.drain()
    assert len(front_end.deployment.wait(lambda seen: seen.drained)) == 1


def test_its_end_ends_streams_with_an_error(front_end: RunningFrontEnd, post: Post):
    deployment = front_end.deployment
    whole, stream = post(BODY), post(STREAM)
    deployment.wait_for_request(1)
    front_end.lifeline.end()
    for answer in (whole, stream):
        answer.result(DEADLINE_S)
    assert whole.result().status_code == 503
    for error in (error_of(whole.result()), end_of(stream.result())):
        assert error["code"] == "draining"
        assert error["message"].startswith("This server ends before the answer was complete: told")
    front_end.join()
    assert front_end.problem is None
    assert len(deployment.wait(lambda seen: seen.aborted)) == 2
    assert not list(front_end.unix_socket.parent.glob("frontend-0.*"))  # no ipc file left


def test_a_front_end_that_the_coordinator_has_given_up_ends(front_end: RunningFrontEnd):
    front_end.deployment.frontend_state = ProcessState.lost
    front_end.deployment.publish()
    front_end.join()
    assert isinstance(front_end.problem, EngineError)
    assert "given up this front end" in str(front_end.problem)


def test_heartbeats_say_that_the_loop_turns_though_there_is_nothing_to_do(
    front_end: RunningFrontEnd,
):
    beats = front_end.deployment.wait(lambda seen: seen.heartbeats[4:] and seen.heartbeats)
    progress = [beat.progress for beat in beats]
    assert progress == sorted(progress)
    assert progress[-1] > progress[0]


def test_a_silent_coordinator_is_named(model_directory: Path):
    with started(model_directory, silence_s=0.05) as front_end:
        front_end.deployment.is_silent = True
        response = front_end.http.get("/plan")
        assert response.status_code == 503
        assert "health.silence_s (0.05 s)" in error_of(response)["message"]


def test_phases_are_told_in_order(shared: RunningFrontEnd):
    phases = shared.deployment.wait(lambda seen: seen.phases)
    assert phases == [Phase.loading_tokenizer, Phase.connecting, Phase.ready]
    hello = shared.deployment.wait(lambda seen: seen.frontend)
    assert hello is not None
    assert hello.endpoints.keys() == {"requests", "outputs"}
    assert hello.versions.keys() >= {"flotilla", "python", "pyzmq"}
