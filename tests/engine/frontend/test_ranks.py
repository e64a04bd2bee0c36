"""What happens to requests when ranks come and go."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from engine.frontend import in_flight
from engine.protocol import AbortRequests, AddRequest, FinishReason, Phase, ProcessState
from tests.engine.frontend.chat_request import BODY, CHAT, STREAM, end_of, error_of
from tests.engine.frontend.conftest import Post, RunningFrontEnd, Start
from tests.engine.frontend.fake_deployment import DEADLINE_S, FakeDeployment
from tests.engine.frontend.test_life import open_request

LOST = ProcessState.lost


def test_requests_go_to_the_rank_with_the_least_work(post: Post, deployment: FakeDeployment):
    answers = []
    for number in range(4):
        answers.append(post(BODY))
        deployment.wait_for_request(number)
    assert [deployment.wait_for_request(number)[0] for number in range(4)] == [0, 1, 0, 1]
    for number in (1, 3):
        _, request = deployment.wait_for_request(number)
        deployment.output(1, request.request_id, b"x", FinishReason.stop)
        assert answers[number].result(DEADLINE_S).status_code == 200
    for number in (4, 5):
        answers.append(post(BODY))
        assert deployment.wait_for_request(number)[0] == 1  # not in turn: it has less
    for number in (0, 2, 4, 5):
        rank, request = deployment.wait_for_request(number)
        deployment.output(rank, request.request_id, b"x", FinishReason.stop)
        assert answers[number].result(DEADLINE_S).status_code == 200


def test_the_requests_of_a_lost_rank_fail_at_once(post: Post, deployment: FakeDeployment):
    whole, stream = post(BODY), post(STREAM)
    deployment.wait_for_request(1)
    for rank in range(2):
        deployment.set_rank(rank, LOST, "killed by signal 9")
    response = whole.result(DEADLINE_S)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "killed by signal 9" in error_of(response)["message"]
    assert error_of(response)["code"] == "rank_failed"
    assert stream.result(DEADLINE_S).status_code == 200
    assert "killed by signal 9" in end_of(stream.result())["message"]


def test_other_ranks_go_on_when_one_is_lost(front_end: RunningFrontEnd, post: Post):
    front_end.deployment.answer = b"still here"
    front_end.deployment.set_rank(0, LOST, "killed by signal 9")
    front_end.wait_for_readiness(lambda body: body["lost"])
    for _ in range(3):
        response = post(BODY).result(DEADLINE_S)
        assert response.json()["choices"][0]["message"]["content"] == "still here"
    ready = front_end.http.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["ready_ranks"] == [1]
    assert [each["reason"] for each in ready.json()["lost"]] == ["killed by signal 9"]


def test_no_rank_left(front_end: RunningFrontEnd):
    for rank in range(2):
        front_end.deployment.set_rank(rank, LOST)
    front_end.wait_for_readiness(lambda body: len(body["lost"]) == 2)
    response = front_end.http.post(CHAT, json=BODY)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert error_of(response)["code"] == "no_rank_ready"
    assert front_end.http.get("/ready").status_code == 503
    assert front_end.http.get("/health").status_code == 200


def test_a_suspect_rank_gets_no_new_work(front_end: RunningFrontEnd, post: Post):
    deployment = front_end.deployment
    old = post(BODY)
    rank, request = deployment.wait_for_request()
    deployment.set_rank(rank, ProcessState.suspect, "silent for 1.2 s")
    front_end.wait_for_readiness(lambda body: body["suspect"])
    answers = [post(BODY), post(BODY)]
    for number in (1, 2):
        other, later = deployment.wait_for_request(number)
        assert other != rank
        deployment.output(other, later.request_id, b"x", FinishReason.stop)
    deployment.output(rank, request.request_id, b"x", FinishReason.stop)
    for answer in (old, *answers):
        assert answer.result(DEADLINE_S).status_code == 200


def test_a_rank_that_was_started_anew(front_end: RunningFrontEnd, post: Post):
    deployment = front_end.deployment
    old = post(BODY)
    rank, request = deployment.wait_for_request()
    deployment.replace(rank)
    assert "started anew" in error_of(old.result(DEADLINE_S))["message"]
    front_end.wait_for_readiness(lambda body: body["ready_ranks"] == [0, 1])
    answers = [post(BODY), post(BODY)]
    sent = [deployment.wait_for_request(number) for number in (1, 2)]
    assert {number for number, _ in sent} == {0, 1}
    deployment.send_as(rank, 0, request.request_id, b"late words")
    for number, later in sent:
        deployment.output(number, later.request_id, b"new", FinishReason.stop)
    for answer in answers:
        text = answer.result(DEADLINE_S).json()["choices"][0]["message"]["content"]
        assert text == "new"


def test_a_gap_in_the_outputs_fails_the_ranks_requests_and_aborts_them(
    post: Post, deployment: FakeDeployment
):
    stream = post(STREAM)
    rank, request = deployment.wait_for_request()
    deployment.output(rank, request.request_id, b"a")
    deployment.lose_outputs(rank)
    deployment.output(rank, request.request_id, b"c")
    assert "outputs 2 to 2 were lost" in end_of(stream.result(DEADLINE_S))["message"]
    assert deployment.wait(lambda seen: seen.aborted) == [(rank, request.request_id)]


def test_a_request_that_never_arrived_fails(post: Post, deployment: FakeDeployment):
    answers = [post(BODY), post(BODY)]
    (rank, lost), (other, kept) = (deployment.wait_for_request(number) for number in range(2))
    deployment.tell_lost(rank, lost.sequence, lost.sequence)
    deployment.output(other, kept.request_id, b"x", FinishReason.stop)
    results = sorted(answer.result(DEADLINE_S).status_code for answer in answers)
    assert results == [200, 503]


@pytest.fixture
def watchful(start: Start) -> RunningFrontEnd:
    """A front end with one rank, which it soon asks when it is silent."""
    front_end = start(silence_s=0.05)
    front_end.deployment.answer = None
    front_end.wait_until_ready()
    return front_end


def test_a_lost_request_is_found_although_nothing_follows_it(watchful: RunningFrontEnd):
    watchful.deployment.lose(0, AddRequest)
    answer = watchful.http.post(CHAT, json=BODY)
    assert "never arrived" in error_of(answer)["message"]


def test_lost_outputs_are_found_although_nothing_follows_them(watchful: RunningFrontEnd):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(watchful.http.post, CHAT, json=BODY)
        rank, request = watchful.deployment.wait_for_request()
        watchful.deployment.lose_outputs(rank)
        assert "were lost" in error_of(answer.result(DEADLINE_S))["message"]
        aborted = watchful.deployment.wait(lambda seen: seen.aborted)
        assert aborted == [(rank, request.request_id)]


def test_a_lost_abort_is_sent_again(watchful: RunningFrontEnd):
    deployment = watchful.deployment
    with watchful.http.stream("POST", CHAT, json=STREAM):
        rank, request = deployment.wait_for_request()
        deployment.lose(rank, AbortRequests)
    assert deployment.wait(lambda seen: seen.aborted) == [(rank, request.request_id)]


@pytest.mark.parametrize("body", [BODY, STREAM])
def test_a_rank_that_stays_suspect_fails_its_requests(start: Start, body):
    front_end = start(suspect_s=0.3)
    deployment = front_end.deployment
    deployment.answer = None
    front_end.wait_until_ready()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(front_end.http.post, CHAT, json=body)
        rank, request = deployment.wait_for_request()
        deployment.set_rank(rank, ProcessState.suspect, "silent for 1.2 s")
        response = answer.result(DEADLINE_S)
    error = error_of(response) if body is BODY else end_of(response)
    assert error["message"] == (
        "Rank 0 failed: silent for 1.2 s; given up after health.suspect_s (0.3 s)"
    )
    assert error["code"] == "rank_failed"
    assert deployment.wait(lambda seen: seen.aborted) == [(rank, request.request_id)]
    deployment.set_rank(rank, ProcessState.ready)
    front_end.wait_for_readiness(lambda ready: ready["ready"])
    deployment.answer = b"back again"
    assert front_end.http.post(CHAT, json=BODY).status_code == 200


def test_a_rank_that_is_never_heard_is_not_connected(start: Start):
    def mute(deployment: FakeDeployment) -> None:
        deployment.engines[1].is_heard = False

    front_end = start(dp=2, prepare=mute, silence_s=0.1)
    front_end.wait_for_readiness(lambda body: body["ready_ranks"] == [0])
    (missing,) = front_end.http.get("/ready").json()["missing"]
    assert (missing["name"], missing["state"]) == ("engine-1", "unconnected")
    for _ in range(3):
        assert front_end.http.post(CHAT, json=BODY).status_code == 200
    assert {rank for rank, _ in front_end.deployment.wait(lambda seen: seen.added)} == {0}
    front_end.deployment.engines[1].is_heard = True  # it is asked again and again
    front_end.wait_until_ready()


def test_a_rank_that_is_no_longer_heard_fails_its_requests_and_gets_no_others(start: Start):
    def repeat(deployment: FakeDeployment) -> None:
        deployment.repeat_ms = 20

    front_end = start(prepare=repeat, silence_s=0.5, suspect_s=0.5)
    front_end.wait_until_ready()
    front_end.deployment.engines[0].is_heard = False
    error = error_of(front_end.http.post(CHAT, json=BODY))
    assert error["message"] == (
        "Rank 0 failed: does not answer this front end; given up after health.suspect_s (0.5 s)"
    )
    assert error_of(front_end.http.post(CHAT, json=BODY))["code"] == "no_rank_ready"
    front_end.deployment.engines[0].is_heard = True
    front_end.wait_for_readiness(lambda body: body["ready"])
    assert front_end.http.post(CHAT, json=BODY).status_code == 200


def test_outputs_that_cannot_be_taken_hide_no_others(
    front_end: RunningFrontEnd, post: Post, monkeypatch: pytest.MonkeyPatch
):
    deployment = front_end.deployment
    broken, sound = post(BODY), post(BODY)
    requests = [deployment.wait_for_request(number) for number in range(2)]
    deliver = in_flight._deliver

    def fail_once(*of: Any) -> None:
        monkeypatch.setattr(in_flight, "_deliver", deliver)
        raise ZeroDivisionError

    monkeypatch.setattr(in_flight, "_deliver", fail_once)
    for rank, request in requests:
        deployment.output(rank, request.request_id, b"x", FinishReason.stop)
    results = sorted(answer.result(DEADLINE_S).status_code for answer in (broken, sound))
    assert results == [200, 503]


def test_an_error_of_the_engine_is_told(post: Post, deployment: FakeDeployment):
    answer = post(BODY)
    rank, request = deployment.wait_for_request()
    deployment.output(rank, request.request_id, b"", FinishReason.error, error="no blocks left")
    response = answer.result(DEADLINE_S)
    assert response.status_code == 500
    assert error_of(response)["message"] == "no blocks left"


def test_at_the_start_every_rank_is_waited_for(start: Start):
    def slow(deployment: FakeDeployment) -> None:
        deployment.engines[1].state = ProcessState.starting
        deployment.engines[1].phase = Phase.loading_weights

    front_end = start(dp=2, prepare=slow)
    deployment = front_end.deployment
    front_end.wait_for_readiness(lambda body: body["ready_ranks"] == [0])
    response = front_end.http.get("/ready")
    assert response.status_code == 503
    assert response.json()["reason"] == "1 of 2 ranks ready"
    (missing,) = response.json()["missing"]
    assert (missing["name"], missing["phase"]) == ("engine-1", "loading weights")
    deployment.set_rank(1, ProcessState.ready)
    front_end.wait_until_ready()


def hold_back(deployment: FakeDeployment) -> None:
    deployment.engines[0].is_connecting = False


def test_requests_wait_for_a_front_end_that_has_not_reached_the_ranks(start: Start):
    front_end = start(prepare=hold_back)
    deployment = front_end.deployment
    with closing(open_request(front_end, BODY)) as waiting:
        deployment.engines[0].is_connecting = True
        deployment.publish()
        assert waiting.recv(100).startswith(b"HTTP/1.1 200")
    assert deployment.wait(lambda seen: Phase.ready in seen.phases)


def test_requests_wait_no_longer_than_a_rank_may_be_silent(start: Start):
    front_end = start(prepare=hold_back, silence_s=0.1)
    front_end.wait_for_readiness(lambda body: body["missing"][0]["state"] == "unconnected")
    response = front_end.http.post(CHAT, json=BODY)
    assert (response.status_code, error_of(response)["code"]) == (503, "no_rank_ready")
    front_end.deployment.engines[0].is_connecting = True
    front_end.deployment.publish()
    front_end.wait_until_ready()
    assert front_end.http.post(CHAT, json=BODY).status_code == 200


def test_requests_do_not_wait_where_no_rank_is_ready(start: Start):
    def suspend(deployment: FakeDeployment) -> None:
        deployment.engines[0].state = ProcessState.suspect
        deployment.engines[0].is_connecting = False

    front_end = start(prepare=suspend)
    response = front_end.http.post(CHAT, json=BODY)
    assert (response.status_code, error_of(response)["code"]) == (503, "no_rank_ready")


def test_a_front_end_that_ends_waits_for_no_rank(start: Start):
    front_end = start(prepare=hold_back)
    front_end.lifeline.end()
    front_end.join()
    assert front_end.problem is None
    assert front_end.deployment.wait(lambda seen: [seen.phases]) == [
        [Phase.loading_tokenizer, Phase.connecting]
    ]


def test_a_front_end_that_is_started_again_is_ready_without_a_suspect_rank(start: Start):
    def suspend(deployment: FakeDeployment) -> None:
        deployment.engines[1].state = ProcessState.suspect
        deployment.engines[1].is_connecting = False

    front_end = start(dp=2, prepare=suspend)
    front_end.wait_until_ready()
    body = front_end.http.get("/ready").json()
    assert body["ready_ranks"] == [0]
    assert [each["name"] for each in body["suspect"]] == ["engine-1"]
    assert front_end.http.post(CHAT, json=BODY).status_code == 200
