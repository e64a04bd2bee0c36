"""Two front ends on one port before two ranks: a deployment as a user starts it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.running import Launcher, serving

DEADLINE_S = 20.0
TEXT = "/v1/completions"
Deployment = tuple[Launcher, httpx2.Client]


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    overrides = ("dp=2", "frontend.count=2", "model=dummy", "coordinator.metrics_interval_s=0.1")
    with (
        TemporaryDirectory(prefix="flotilla-") as directory,
        serving(*overrides, runtime_directory=Path(directory)) as running,
    ):
        yield running


def body(max_tokens: int) -> dict[str, object]:
    return {"model": "dummy", "prompt": "Hi", "max_tokens": max_tokens}


def post(url: httpx2.URL, max_tokens: int) -> int:
    """The status of one request over a connection of its own: the kernel picks the front end."""
    return httpx2.post(url.join(TEXT), json=body(max_tokens), timeout=DEADLINE_S).status_code


def scrape(http: httpx2.Client, name: str, by: str) -> dict[str, float]:
    """A metric's values, summed by one of its labels."""
    text = http.get("/metrics").raise_for_status().text
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"flotilla:{name}" and by in sample.labels:
                key = sample.labels[by]
                values[key] = values.get(key, 0.0) + sample.value
    return values


def wait_for(
    http: httpx2.Client, name: str, by: str, found: Callable[[dict[str, float]], bool]
) -> dict[str, float]:
    deadline_s = time.monotonic() + DEADLINE_S
    while not found(values := scrape(http, name, by)):
        assert time.monotonic() < deadline_s, values
    return values


def test_one_scrape_covers_every_process(deployment: Deployment):
    _, http = deployment
    statuses = [post(http.base_url, 3) for _ in range(40)]
    assert statuses == [200] * 40
    tokens = wait_for(
        http, "generation_tokens_total", "rank", lambda values: sum(values.values()) >= 120
    )
    assert tokens.keys() == {"0", "1"}
    requests = wait_for(
        http, "balancer_decisions_total", "frontend", lambda values: sum(values.values()) >= 40
    )
    assert requests.keys() == {"frontend-0", "frontend-1"}
    processes = {"coordinator", "frontend-0", "frontend-1", "engine-0", "engine-1"}
    assert scrape(http, "report_age_seconds", "process").keys() == processes
    assert scrape(http, "process_starts_total", "process") == dict.fromkeys(processes, 1)
    states = scrape(http, "process_state", "state")
    assert states["ready"] == sum(states.values()) == 5


def test_requests_of_both_are_spread_evenly(deployment: Deployment):
    _, http = deployment
    before = scrape(http, "request_success_total", "rank")
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: post(http.base_url, 50), range(160)))
    assert statuses == [200] * 160
    wanted = sum(before.values()) + 160
    after = wait_for(
        http, "request_success_total", "rank", lambda values: sum(values.values()) >= wanted
    )
    counts = [after[rank] - before.get(rank, 0) for rank in ("0", "1")]
    assert max(counts) <= 96, counts  # of 160


@pytest.mark.parametrize("rank", ["0", "1"])
def test_either_front_end_reaches_the_rank_that_a_request_names(deployment: Deployment, rank: str):
    _, http = deployment
    before = scrape(http, "request_success_total", "rank")
    for _ in range(10):
        with httpx2.Client(base_url=http.base_url, timeout=DEADLINE_S) as fresh:
            headers = {"X-Data-Parallel-Rank": rank}
            assert fresh.post(TEXT, json=body(1), headers=headers).status_code == 200
    wanted = sum(before.values()) + 10
    after = wait_for(
        http, "request_success_total", "rank", lambda values: sum(values.values()) >= wanted
    )
    assert after[rank] - before.get(rank, 0) == 10
