"""The control socket: who may ask, and what a client that does not behave can do: nothing."""

import contextlib
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.control import HEADER, MAX_QUESTION_BYTES, GetState, Stop, Stopping, framed
from launcher.control_client import ControlClient, NoAnswer, get_state
from launcher.control_server import MAX_CONNECTIONS
from launcher.run_directory import RunDirectory
from tests.running import ask, assert_nothing_left, launched

DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def ours(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients in this process look where the test's launchers are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        yield client


def all_answered(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.timeout(120)
def test_clients_that_do_not_behave_are_dropped_and_hold_nothing_up(runtime):
    with launched("model=dummy", runtime_directory=runtime) as launcher:
        launcher.ready()
        path = launcher.directory / "control"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        for garbage, reason in (
            (b"GET / HTTP/1.1\r\n\r\n", b"no question"),
            (HEADER.pack(MAX_QUESTION_BYTES + 1), b"at most 4096"),
            (HEADER.pack(3) + b"\xc1\xc1\xc1", b"no question"),
            (HEADER.pack(8) + b"\x91\xa6Tumble", b"no question"),
            (HEADER.pack(0), b"no question"),
        ):
            with connected(path) as client:
                client.sendall(garbage)
                assert reason in all_answered(client)
        with connected(path) as client:  # half a question
            client.sendall(framed(GetState())[:-1])
            client.shutdown(socket.SHUT_WR)
            assert all_answered(client) == b""
        with connected(path) as client:
            assert all_answered(client) == b""  # silent until the deadline passes

        with contextlib.ExitStack() as stack:
            for _ in range(MAX_CONNECTIONS - 1):
                stack.enter_context(connected(path))
            assert get_state(launcher.name).pid == launcher.process.pid
            stack.enter_context(connected(path))
            with pytest.raises(NoAnswer, match="too many ask at the same time"):
                get_state(launcher.name)

        family = launcher.family()
        with ControlClient(launcher.name) as deaf, connected(path):
            answers = deaf.ask(Stop())
            assert isinstance(next(answers), Stopping)
            assert launcher.end() == 0  # although one reads no further, and one says nothing
        assert_nothing_left(launcher, family)


def test_a_stop_is_no_signal_twice(runtime):
    with launched("model=dummy", runtime_directory=runtime) as launcher:
        launcher.ready()
        path = launcher.directory / "control"
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(path)) for _ in range(8)]
            for client in clients:
                client.sendall(framed(Stop()))
            assert all(b"Ended" in all_answered(client) for client in clients)
        assert launcher.end() == 0, launcher.output


@pytest.fixture
def held() -> Iterator[RunDirectory]:
    directory = RunDirectory("one")
    directory.acquire()
    yield directory
    directory.remove(keep_logs=False)


def test_a_launcher_of_another_version_is_said_to_be_one(held: RunDirectory):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(held.path / "control"))
        listening.listen()

        def answer() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(100)
                client.sendall(HEADER.pack(7) + b"\x91\xa5Hello")

        server = threading.Thread(target=answer)
        server.start()
        with pytest.raises(NoAnswer, match="one: launcher pid .* is of another version"):
            get_state("one")
        server.join()


def test_a_launcher_without_the_socket_is_named(held: RunDirectory, runtime: Path):
    asked = ask("action=status", "name=one", runtime_directory=runtime)
    assert asked.returncode == 1
    assert "one: launcher pid " in asked.stderr
    assert "does not answer: No such file or directory" in asked.stderr
