"""What a running deployment survives: ranks that hang, a coordinator or front end that dies."""

import http.client
import json
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from tests.running import Launcher, assert_nothing_left, launched, random_model, serving

pytestmark = pytest.mark.timeout(120)
DEADLINE_S = 30.0
DUMMY = ("model=dummy", "dp=2")


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory of the test's own; short, since socket paths are."""
    with tempfile.TemporaryDirectory(prefix="fl") as path:
        yield Path(path)


class Load:
    """Clients that ask one after the other, each in a connection of its own, until told to stop."""

    def __init__(self, port: int, num_clients: int, num_tokens: int) -> None:
        self._port = port
        self._num_tokens = num_tokens
        self._changed = threading.Condition()
        self._is_over = False
        self.answers: list[tuple[int, str]] = []
        """Status and body; a connection that broke has status 0."""
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_for_more(self, number: int) -> None:
        """Until so many more answers have come."""
        with self._changed:
            wanted = len(self.answers) + number
            assert self._changed.wait_for(lambda: len(self.answers) >= wanted, DEADLINE_S)

    def stop_asking(self) -> None:
        self._is_over = True

    def end(self) -> None:
        self.stop_asking()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a request was never answered"

    @property
    def failed(self) -> list[tuple[int, str]]:
        return [answer for answer in self.answers if answer[0] != 200]

    def _ask(self) -> None:
        question = {"model": "dummy", "prompt": "hi", "max_tokens": self._num_tokens}
        body = json.dumps(question | {"ignore_eos": True}).encode()
        while not self._is_over:
            answer = self._answer(body)
            with self._changed:
                self.answers.append(answer)
                self._changed.notify_all()

    def _answer(self, body: bytes) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
        try:
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", body, kind)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as problem:
            return 0, repr(problem)
        finally:
            connection.close()


@contextmanager
def loaded(url: str, num_clients: int = 6, num_tokens: int = 50) -> Iterator[Load]:
    load = Load(int(url.rpartition(":")[2]), num_clients, num_tokens)
    load.start()
    try:
        yield load
    finally:
        load.end()


def ask(url: str, path: str) -> dict[str, Any]:
    with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
        answer = client.get(path).json()
    assert isinstance(answer, dict)
    return answer


def until(holds: Callable[[], object], within_s: float = DEADLINE_S) -> None:
    """Asks until it holds; each time something that takes a moment, such as an HTTP request."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never held"


def states(url: str) -> dict[str, tuple[int, str]]:
    """Incarnation and state of every process; empty while the coordinator does not answer."""
    answer = ask(url, "/plan")
    return {m["name"]: (m["incarnation"], m["state"]) for m in answer.get("actual", ())}


def elapsed_s(launcher: Launcher, line: str) -> float:
    """When the launcher said that, by its clock."""
    found = [text for text in launcher.lines if re.search(line, text)]
    assert len(found) == 1, launcher.output
    return float(found[0].split()[0])


def test_a_stopped_rank_gets_no_work_and_comes_back_and_no_request_is_lost(runtime):
    with serving(*DUMMY, runtime_directory=runtime) as (launcher, client):
        url = str(client.base_url)
        with loaded(url) as load:
            load.wait_for_more(20)
            launcher.children()["engine-1"].suspend()
            began = time.monotonic()
            launcher.wait_for("engine-1 +suspect: silent for ", within_s=5)
            took_s = time.monotonic() - began
            until(lambda: ask(url, "/ready")["ready_ranks"] == [0])
            body = ask(url, "/ready")
            assert body["ready"]
            assert body["suspect"][0]["name"] == "engine-1"
            assert "silent" in body["suspect"][0]["reason"]
            load.wait_for_more(20)  # the others go on
            launcher.children()["engine-1"].resume()
            launcher.wait_for("engine-1 +ready again")
            until(lambda: ask(url, "/ready")["ready_ranks"] == [0, 1])
            load.wait_for_more(20)
        log = (launcher.directory / "logs" / "coordinator.log").read_text()
    assert load.failed == []
    assert took_s < 1.5
    assert "engine-1 is suspect: silent for " in log
    assert "engine-1 is ready again" in log


def test_the_requests_of_a_rank_that_stays_stopped_fail_and_are_aborted_when_it_is_back(runtime):
    overrides = (*DUMMY, "model.step_s=0.05", "health.suspect_s=0.5")
    body = {"model": "dummy", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
    with (
        serving(*overrides, runtime_directory=runtime) as (launcher, client),
        ThreadPoolExecutor(1) as pool,
    ):
        url = str(client.base_url)

        def num_requests() -> int:
            members = ask(url, "/plan").get("actual", ())
            return next((m["num_requests"] for m in members if m["name"] == "engine-1"), 0)

        pinned = {"X-Data-Parallel-Rank": "1"}
        answer = pool.submit(client.post, "/v1/chat/completions", json=body, headers=pinned)
        until(num_requests)
        launcher.children()["engine-1"].suspend()
        response = answer.result(DEADLINE_S)
        launcher.children()["engine-1"].resume()
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "rank_failed"
        assert "Rank 1 failed: silent for" in response.json()["error"]["message"]
        launcher.wait_for("engine-1 +ready again")
        until(lambda: not num_requests())


def test_a_rank_whose_step_hangs_is_suspect_until_it_moves_and_finishes_its_request(runtime):
    hanging = ("model=dummy", "model.step_s=6", "health.silence_s=0.6")
    with serving(*hanging, runtime_directory=runtime) as (launcher, client):
        url = str(client.base_url)
        with loaded(url, num_clients=1, num_tokens=1) as load:
            launcher.wait_for("engine-0 +suspect: has work but makes no progress for 0[.]")
            until(lambda: not ask(url, "/ready")["ready"])
            assert "no progress" in ask(url, "/ready")["suspect"][0]["reason"]
            launcher.wait_for("engine-0 +ready again")
            until(lambda: ask(url, "/ready")["ready"])
            load.stop_asking()
        answered = [status for status, _ in load.answers if status == 200]
        assert answered
        refused = [body for status, body in load.failed]
        assert all("no_rank_ready" in body for body in refused), refused


def test_a_coordinator_that_dies_under_load_goes_unnoticed(runtime):
    with serving(*DUMMY, "frontend.count=2", runtime_directory=runtime) as (launcher, client):
        url = str(client.base_url)
        with loaded(url) as load:
            load.wait_for_more(20)
            launcher.children()["coordinator"].kill()
            launcher.wait_for(r"coordinator +ended: killed by SIGKILL; starting it again \(1 of 3")
            launcher.wait_for(r"coordinator +ready \(start 2\)", within_s=10)
            wait_until_both_are_told(launcher)
            everybody = {"coordinator", "frontend-0", "frontend-1", "engine-0", "engine-1"}
            until(lambda: set(states(url)) == everybody)
            load.wait_for_more(20)
        assert {name: now[1] for name, now in states(url).items()} == dict.fromkeys(
            everybody, "ready"
        )
        assert states(url)["coordinator"][0] == 2
        assert ask(url, "/plan")["drift"] == []
    assert load.failed == []


def wait_until_both_are_told(launcher: Launcher) -> None:
    """Until both front ends go by what the second coordinator says."""

    def are_told() -> bool:
        names = ("frontend-0", "frontend-1")
        return all(num_starts(launcher, name, "coordinator") == 2 for name in names)

    until(are_told, within_s=10)


def num_starts(launcher: Launcher, frontend: str, name: str) -> int:
    """How many times a process has been started, as that front end was last told."""
    private = httpx.HTTPTransport(uds=str(launcher.directory / f"{frontend}.http"))
    with httpx.Client(transport=private, base_url="http://frontend", timeout=DEADLINE_S) as client:
        page = client.get("/metrics").text
    found = re.search(rf'^flotilla:process_starts_total{{.*process="{name}".*}} (\d+)', page, re.M)
    return int(found[1]) if found else 0


def test_a_restarted_coordinator_does_not_wait_for_a_rank_that_is_stopped(runtime):
    with serving(*DUMMY, "frontend.count=2", runtime_directory=runtime) as (launcher, client):
        rank = launcher.children()["engine-1"]
        rank.suspend()
        launcher.wait_for("engine-1 +suspect: silent for ")
        launcher.children()["coordinator"].kill()
        launcher.wait_for(r"coordinator +ready \(start 2\)", within_s=10)
        wait_until_both_are_told(launcher)
        ready = ask(str(client.base_url), "/ready")
        assert ready["ready_ranks"] == [0]
        assert [each["name"] for each in ready["suspect"]] == ["engine-1"]
        rank.resume()
        until(lambda: ask(str(client.base_url), "/ready")["ready_ranks"] == [0, 1])


def test_a_front_end_that_dies_is_started_again_on_the_same_port(runtime):
    with serving(*DUMMY, "frontend.count=2", runtime_directory=runtime) as (launcher, client):
        url = str(client.base_url)
        launcher.children()["frontend-0"].kill()
        launcher.wait_for(r"frontend-0 +ended: killed by SIGKILL; starting it again \(1 of 3")
        with loaded(url) as load:  # what lands at the dead one's socket waits for it
            launcher.wait_for(r"frontend-0 +ready \(start 2\)")
            load.wait_for_more(50)
        assert load.failed == []
        assert states(url)["frontend-0"] == (2, "ready")
        assert states(url)["frontend-1"] == (1, "ready")
        # of all connections to the one port some reach the new one
        until(lambda: asked_of(url, "frontend-0") and asked_of(url, "frontend-1"))
        private = httpx.HTTPTransport(uds=str(launcher.directory / "frontend-0.http"))
        with httpx.Client(transport=private, base_url="http://frontend") as client:
            assert client.get("/health").status_code == 200


HANG = "health.hang_s=3"


def test_a_coordinator_that_hangs_is_killed_and_started_again(runtime):
    with serving(*DUMMY, HANG, runtime_directory=runtime) as (launcher, client):
        url = str(client.base_url)
        with loaded(url) as load:
            load.wait_for_more(20)
            hung = launcher.children()["coordinator"]
            hung.suspend()
            launcher.wait_for(r"coordinator +hangs: silent for 4 s; killing it")
            killed = (
                r"coordinator +ended: killed by the launcher: silent for 4 s; starting it again"
            )
            launcher.wait_for(killed + r" \(1 of 3")
            launcher.wait_for(r"coordinator +ready \(start 2\)")
            assert not hung.is_running()
            until(lambda: len(states(url)) == 4)
            load.wait_for_more(20)
        assert {state for _, state in states(url).values()} == {"ready"}
    assert load.failed == []


def test_a_front_end_that_hangs_is_killed_and_started_again(runtime):
    two = ("frontend.count=2", HANG)
    with serving(*DUMMY, *two, runtime_directory=runtime) as (launcher, client):
        url = str(client.base_url)
        launcher.children()["frontend-0"].suspend()
        launcher.wait_for("frontend-0 +suspect: silent for")
        launcher.wait_for(r"frontend-0 +hangs: suspect for 3 s; killing it")
        launcher.wait_for(
            r"frontend-0 +ended: killed by the launcher: suspect for 3 s; starting it"
        )
        with loaded(url) as load:  # what waits at the hung one's socket is answered too
            launcher.wait_for(r"frontend-0 +ready \(start 2\)")
            load.wait_for_more(50)
        assert load.failed == []
        assert states(url)["frontend-0"] == (2, "ready")
        lost = [line for line in launcher.lines if re.search("frontend-0 +lost", line)]
    assert lost == []  # that it ended has been said


def test_a_front_end_that_hangs_as_it_is_started_again_is_killed_at_the_deadline(runtime):
    deadline = ("backend.start_deadline_s=15", "frontend.count=2")
    with serving(*DUMMY, *deadline, HANG, runtime_directory=runtime) as (launcher, client):
        first = launcher.children()["frontend-0"]
        first.kill()
        launcher.wait_for(r"frontend-0 +importing \(start 2\)")
        launcher.children()["frontend-0"].suspend()
        launcher.wait_for(r"frontend-0 +hangs: not ready after 15 s \(backend.start_deadline_s\)")
        launcher.wait_for(r"frontend-0 +ready \(start 3\)")
        assert client.get("/ready").json()["ready"]


def test_a_front_end_that_dies_is_ready_again_while_a_rank_is_suspect(runtime):
    with serving(*DUMMY, "frontend.count=2", runtime_directory=runtime) as (launcher, client):
        url = str(client.base_url)
        rank = launcher.children()["engine-1"]
        rank.suspend()
        launcher.wait_for("engine-1 +suspect")
        launcher.children()["frontend-0"].kill()
        launcher.wait_for(r"frontend-0 +ended: killed by SIGKILL; starting it again")
        with loaded(url) as load:
            launcher.wait_for(r"frontend-0 +ready \(start 2\)")
            load.wait_for_more(50)
        assert load.failed == []
        private = httpx.HTTPTransport(uds=str(launcher.directory / "frontend-0.http"))
        with httpx.Client(transport=private, base_url="http://frontend") as new:
            ready = new.get("/ready").json()
            assert (ready["ready"], ready["ready_ranks"]) == (True, [0])
            rank.resume()
            until(lambda: new.get("/ready").json()["ready_ranks"] == [0, 1])


def asked_of(url: str, frontend: str) -> bool:
    """Whether the front end has answered anything since its last start, after one more request."""
    with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
        client.post(
            "/v1/completions",
            json={"model": "dummy", "prompt": "hi", "max_tokens": 1},
            headers={"Connection": "close"},
        )
        page = client.get("/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("flotilla:http_requests_total")]
    return any(f'frontend="{frontend}"' in line for line in lines)


def test_requests_of_a_front_end_that_dies_are_dropped_by_the_engines(runtime, tmp_path):
    model = random_model(tmp_path, max_position_embeddings=100_000)
    body = {"model": "random", "prompt": "hi", "max_tokens": 90_000, "stream": True}
    body["ignore_eos"] = True  # minutes of steps, far more than any deadline here
    with serving(*model, "profile.max_model_len=100000", runtime_directory=runtime) as (
        launcher,
        client,
    ):
        url = str(client.base_url)
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            until(lambda: num_requests(url, "engine-0") == 1)
            launcher.children()["frontend-0"].kill()
            with pytest.raises(httpx.HTTPError):
                list(lines)
        launcher.wait_for(r"frontend-0 +ready \(start 2\)")
        until(lambda: num_requests(url, "engine-0") == 0)


def num_requests(url: str, name: str) -> int:
    return next(m["num_requests"] for m in ask(url, "/plan")["actual"] if m["name"] == name)


def test_more_deaths_than_the_limit_end_the_deployment(runtime):
    limits = ("restart.limit=1", "drain_s=5")
    with launched(*DUMMY, *limits, runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = launcher.family()
        launcher.children()["coordinator"].kill()
        launcher.wait_for(r"coordinator +ready \(start 2\)")
        until(lambda: len(states(url)) == 4)
        family.append(launcher.children()["coordinator"])
        launcher.children()["coordinator"].kill()
        assert launcher.end() == 1
        _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert "coordinator ended: killed by SIGKILL, 2 times in 60 s" in launcher.output


def test_a_coordinator_that_dies_while_the_deployment_drains_drains_on(runtime):
    with launched("model=dummy", "drain_s=60", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = launcher.family()
        body = {"model": "dummy", "prompt": "hi", "max_tokens": 50, "ignore_eos": True}
        engine = launcher.children()["engine-0"]
        with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
            kept = client.stream("POST", "/v1/completions", json={**body, "stream": True})
            engine.suspend()  # so that the answer cannot end before the coordinator dies
            with kept as answer:
                launcher.signal(signal.SIGINT)
                launcher.wait_for("draining")
                launcher.children()["coordinator"].kill()
                launcher.wait_for(r"coordinator +ready \(start 2\)")
                engine.resume()
                lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert launcher.end() == 0
        assert_nothing_left(launcher, family)
        assert "drained" in launcher.output
