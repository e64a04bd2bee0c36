"""Client processes, as the launcher starts and ends them."""

import queue
import threading
import time

import psutil
import pytest

from launcher.bench.clients import ClientFailed, Clients
from launcher.bench.messages import Job, Piece, Session, Target, Turn
from launcher.bench.server import Server
from tests.launcher.bench import fake_server as fakes
from tests.launcher.bench.fake_server import fake_server

SESSIONS = [Session([Turn([Piece(str(index), 5)], 3)]) for index in range(6)]


def job_for(url: str) -> Job:
    server = Server.at(url)
    target = Target(
        host=server.host,
        port=server.port,
        path="/v1/completions",
        model="m",
        vocab_size=1000,
        answer_s=60.0,
    )
    return Job(target=target, sessions=SESSIONS, begin_s=time.monotonic(), concurrency=2)


@pytest.fixture
def clients():
    both = Clients(2)
    yield both
    both.end()


def test_they_do_one_job_after_the_other_and_end(clients: Clients):
    seen: list[int] = []
    with fake_server(fakes.whole) as server:
        for _ in range(2):
            jobs = [job_for(server.url)] * 2
            outcomes = clients.run(jobs, lambda progress: seen.append(progress.num_done))
            assert [len(outcome.records) for outcome in outcomes] == [6, 6]
            assert all(outcome.cpu_share > 0 for outcome in outcomes)
    assert len(server.bodies) == 24
    assert seen
    processes = [psutil.Process(pid) for pid in clients.pids]
    clients.end()
    assert not any(process.is_running() for process in processes)


def test_they_end_in_the_middle_of_a_job_when_told_to(clients: Clients):
    asked: queue.Queue[None] = queue.Queue()
    leave = threading.Event()

    def hangs(handler, body):
        asked.put(None)
        leave.wait(60)

    with fake_server(hangs) as server:
        jobs = [job_for(server.url)] * 2
        failures: queue.Queue[Exception] = queue.Queue()

        def run() -> None:
            try:
                clients.run(jobs, lambda _: None)
            except ClientFailed as problem:
                failures.put(problem)

        thread = threading.Thread(target=run)
        thread.start()
        asked.get(timeout=30)
        clients.end()
        assert "it was told to" in str(failures.get(timeout=30))
        thread.join(30)
        leave.set()


def test_one_that_is_killed_is_told(clients: Clients):
    psutil.Process(clients.pids[1]).kill()
    with (
        fake_server(fakes.whole) as server,
        pytest.raises(ClientFailed, match="a client process ended: exit code -9"),
    ):
        clients.run([job_for(server.url)] * 2, lambda _: None)
