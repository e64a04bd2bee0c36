"""`GET /metrics` of a running front end."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import metrics
from engine.config import Role
from engine.frontend.transcript import Transcript
from engine.metrics import METRICS, PREFIX, Metrics
from engine.protocol import FinishReason, MetricsReport, ProcessState
from tests.engine.frontend.chat_request import CHAT, STREAM
from tests.engine.frontend.conftest import RunningFrontEnd, Start
from tests.engine.frontend.fake_deployment import DEADLINE_S
from tests.engine.frontend.test_life import open_request

Key = tuple[str, frozenset[tuple[str, str]]]
BODY: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def front_end(start: Start) -> RunningFrontEnd:
    front_end = start(dp=2)
    front_end.wait_until_ready()
    return front_end


def parse(response: httpx2.Response) -> dict[Key, float]:
    """Values by name without prefix, and labels without the model's name."""
    assert response.status_code == 200
    values = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "test"
            key = (sample.name.removeprefix(PREFIX), frozenset(labels.items()))
            assert key not in values
            values[key] = sample.value
    return values


def of(name: str, **labels: str) -> Key:
    return name, frozenset(labels.items())


def own(name: str, **labels: str) -> Key:
    return of(name, frontend="frontend-0", **labels)


def wait_for_page(
    front_end: RunningFrontEnd, found: Callable[[dict[Key, float]], bool]
) -> dict[Key, float]:
    deadline_s = time.monotonic() + DEADLINE_S
    while not found(page := parse(front_end.http.get("/metrics"))):
        assert time.monotonic() < deadline_s, page
    return page


def test_what_the_front_end_counts(front_end: RunningFrontEnd):
    sent = 0
    for _ in range(3):
        sent += len(front_end.http.post(CHAT, json=BODY).content)
    sent += len(front_end.http.post(CHAT, json=STREAM).content)
    sent += len(front_end.http.post(CHAT, json={}).content)
    front_end.http.get("/unheard/of")
    front_end.http.get("/and/unseen")
    unknown = own("http_requests_total", route="other", status="404")
    page = wait_for_page(front_end, lambda page: page.get(unknown) == 2)
    assert page[own("http_requests_total", route=CHAT, status="200")] == 4
    assert page[own("http_requests_total", route=CHAT, status="400")] == 1
    assert page[own("http_request_seconds_count", route=CHAT)] == 5
    assert page[own("http_time_to_first_token_seconds_count")] == 4
    assert page[own("http_requests_in_flight")] == 0
    assert page[own("http_sent_bytes_total")] > sent
    assert page[own("http_received_bytes_total")] > 4 * 60
    assert page[own("http_disconnects_total")] == 0
    decisions = {key: value for key, value in page.items() if key[0] == "balancer_decisions_total"}
    assert decisions == {
        own("balancer_decisions_total", policy="least_loaded", reason="tie"): 4,
    }
    front_end.http.post(CHAT, json=BODY, headers={"X-Data-Parallel-Rank": "1"})
    pinned = own("balancer_decisions_total", policy="least_loaded", reason="pinned")
    page = wait_for_page(front_end, lambda page: pinned in page)
    assert page[pinned] == 1


def test_what_it_knows_of_the_deployment(front_end: RunningFrontEnd):
    front_end.deployment.set_rank(1, ProcessState.suspect)
    front_end.deployment.replace(0)
    front_end.wait_for_readiness(lambda body: body["suspect"] and body["ready_ranks"] == [0])
    page = wait_for_page(front_end, lambda page: page[own("membership_epoch")] > 1)
    engine = {"process": "engine-1", "rank": "1"}
    assert page[of("process_state", **engine, state="suspect")] == 1
    assert page[of("process_state", **engine, state="ready")] == 0
    assert page[of("process_starts_total", process="engine-0", rank="0")] == 1
    assert page[own("process_starts_total", process="frontend-0")] == 3
    assert 0 <= page[own("coordinator_age_seconds")] < DEADLINE_S
    phases = {dict(key[1])["phase"] for key in page if key[0] == "startup_phase_seconds"}
    assert phases == {"importing", "loading tokenizer", "connecting to engines"}


def test_the_metrics_of_others_come_with_their_age(front_end: RunningFrontEnd):
    reports = []
    for rank in range(2):
        counted = Metrics(Role.engine)
        counted.add(metrics.PROMPT_TOKENS, 100 + rank)
        values = counted.values()
        reports.append(MetricsReport(f"engine-{rank}", 0, Role.engine, rank, values, age_s=3.0))
    stale = Metrics(Role.frontend)
    stale.add(metrics.HTTP_SENT, 1e9)
    for name in ("frontend-0", "frontend-1"):  # the first is an old report of its own
        reports.append(MetricsReport(name, 0, Role.frontend, None, stale.values()))
    front_end.deployment.publish_metrics(*reports)
    page = wait_for_page(front_end, lambda page: of("prompt_tokens_total", rank="1") in page)
    assert page[of("prompt_tokens_total", rank="0")] == 100
    assert page[of("prompt_tokens_total", rank="1")] == 101
    assert page[own("http_sent_bytes_total")] < 1e9
    assert page[of("http_sent_bytes_total", frontend="frontend-1")] == 1e9
    assert page[of("report_age_seconds", process="engine-0", rank="0")] >= 3.0
    assert page[own("report_age_seconds", process="frontend-0")] >= 0


def test_its_own_are_shown_as_published_so_that_all_front_ends_answer_alike(
    front_end: RunningFrontEnd,
):
    published = Metrics(Role.frontend)
    published.set(metrics.HTTP_SENT, 1e9)
    published.set(metrics.CPU_SECONDS, 1e9)  # later than anything that was shown before
    report = MetricsReport("frontend-0", 3, Role.frontend, None, published.values(), age_s=0.5)
    front_end.deployment.publish_metrics(report)
    page = wait_for_page(front_end, lambda page: page[own("http_sent_bytes_total")] == 1e9)
    assert page[own("report_age_seconds", process="frontend-0")] >= 0.5


def test_its_own_go_to_the_coordinator_again_and_again(front_end: RunningFrontEnd):
    front_end.http.post(CHAT, json=BODY)

    def told(report: MetricsReport) -> bool:
        assert (report.name, report.incarnation, report.rank) == ("frontend-0", 3, None)
        assert {value.name for value in report.values} <= METRICS.keys()
        return any(
            value.name == "http_requests" and value.labels == (CHAT, "200", "")
            for value in report.values
        )

    assert front_end.deployment.wait(lambda seen: [each for each in seen.metrics if told(each)])


def test_a_client_that_leaves_is_counted(front_end: RunningFrontEnd):
    deployment = front_end.deployment
    deployment.answer = None
    for number, body in enumerate((BODY, STREAM)):
        connection = open_request(front_end, body)
        deployment.wait_for_request(number)
        wait_for_page(front_end, lambda page: page[own("http_requests_in_flight")] == 1)
        connection.close()
        wait_for_page(front_end, lambda page: page[own("http_requests_in_flight")] == 0)
    page = wait_for_page(front_end, lambda page: page[own("http_disconnects_total")] == 2)
    assert page[own("http_requests_total", route=CHAT, status="499")] == 1
    assert page[own("http_requests_total", route=CHAT, status="200")] == 1  # no error of ours


def test_a_stream_that_fails_after_its_status_is_told_from_one_that_does_not(
    front_end: RunningFrontEnd,
):
    deployment = front_end.deployment
    assert front_end.http.post(CHAT, json=STREAM).status_code == 200
    deployment.answer = None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(front_end.http.post, CHAT, json=STREAM)
        rank, request = deployment.wait_for_request(1)
        deployment.output(rank, request.request_id, b"a")
        deployment.set_rank(rank, ProcessState.lost, "killed by signal 9")
        assert answer.result(DEADLINE_S).status_code == 200
    failed = own("http_requests_total", route=CHAT, status="200", error_type="rank_failed")
    page = wait_for_page(front_end, lambda page: failed in page)
    assert page[failed] == 1
    assert page[own("http_requests_total", route=CHAT, status="200")] == 1
    assert page[own("http_disconnects_total")] == 0


def test_a_defect_in_a_stream_is_no_client_that_left(
    front_end: RunningFrontEnd, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(Transcript, "add", fail)
    assert "Internal error" in front_end.http.post(CHAT, json=STREAM).text
    failed = own("http_requests_total", route=CHAT, status="200", error_type="server_error")
    page = wait_for_page(front_end, lambda page: failed in page)
    assert page[own("http_disconnects_total")] == 0


def test_what_the_coordinator_said_is_shown_only_while_it_speaks(start: Start):
    front_end = start(silence_s=0.3)
    front_end.wait_until_ready()
    deployment = front_end.deployment
    engine = of("num_requests_running", rank="0")
    state = of("process_state", process="engine-0", rank="0", state="ready")
    report = MetricsReport("engine-0", 0, Role.engine, 0, Metrics(Role.engine).values())

    def is_shown_after_a_word(page: dict[Key, float]) -> bool:
        deployment.publish()
        deployment.publish_metrics(report)
        return engine in page and state in page

    wait_for_page(front_end, is_shown_after_a_word)
    page = wait_for_page(front_end, lambda page: engine not in page and state not in page)
    assert own("http_requests_in_flight") in page
    wait_for_page(front_end, lambda page: page[own("coordinator_age_seconds")] > 0.5)
    wait_for_page(front_end, is_shown_after_a_word)


def test_messages_that_were_lost_are_counted(front_end: RunningFrontEnd):
    deployment = front_end.deployment
    deployment.lose_outputs(0)
    deployment.output(0, 1234, b"x", FinishReason.stop)
    key = own("lost_messages_total", sender="engine-0")
    page = wait_for_page(front_end, lambda page: key in page)
    assert page[key] == 1


def test_only_get_and_head(front_end: RunningFrontEnd):
    get, head = front_end.http.get("/metrics"), front_end.http.head("/metrics")
    assert get.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert front_end.http.post("/metrics").status_code == 405
