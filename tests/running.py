"""Deployments as a user starts them, `python -m launcher` in a process of its own, and requests."""

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

from engine.checkpoints.tiny import TINY_FACTS, write_random_checkpoint

ROOT = Path(__file__).parent.parent
READY_S = 60.0
END_S = 30.0
MAKE_OWN = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")


class Launcher:
    """A launcher process, its output line by line, and what it has started.

    Args:
        by_make: Lets `make serve` start it, in a process group of its own; `process` is make's.
    """

    def __init__(
        self, *overrides: str, runtime_directory: Path, name: str = "", by_make: bool = False
    ) -> None:
        self.name = name or f"t{uuid.uuid4().hex[:8]}"
        self.directory = runtime_directory / "flotilla" / self.name
        self.lines: list[str] = []
        self._unread: queue.Queue[str | None] = queue.Queue()
        # One thread: several processes that compute at once would wait for each other's threads.
        overrides = (f"name={self.name}", "frontend.port=0", "engine.threads=1", *overrides)
        command = [sys.executable, "-m", "launcher", *overrides]
        self.process = subprocess.Popen(
            _make_serve(overrides) if by_make else command,
            cwd=ROOT,
            env=_environment(XDG_RUNTIME_DIR=str(runtime_directory)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=by_make,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, pattern: str, within_s: float = READY_S) -> re.Match[str]:
        """The next line in which the pattern is found; fails when the output ends before."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                line = self._unread.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {within_s} s:\n{self.output}") from None
            assert line is not None, f"ended without {pattern!r}:\n{self.output}"
            if found := re.search(pattern, line):
                return found

    def ready(self) -> str:
        """Waits until it serves; the address, without `/v1`."""
        return self.wait_for(r"ready after .* (http://\S+)/v1")[1]

    def family(self) -> list[psutil.Process]:
        """All that has come of it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def children(self) -> dict[str, psutil.Process]:
        """The plan's processes by name: `coordinator`, `frontend-0`, ..."""
        found = {}
        for child in self.family():
            title = child.cmdline()
            if title and title[0].startswith("flotilla "):
                found[title[0].split()[2]] = child
        found.pop("fork-server", None)
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, within_s: float = END_S) -> int:
        """Waits until it has ended; its exit code."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {within_s} s:\n{self.output}") from None

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.append(line)
                self._unread.put(line)
        self._unread.put(None)


def _make_serve(overrides: Sequence[str]) -> list[str]:
    """`make serve` with the environment that runs the tests, whether make has made it or not."""
    venv = Path(sys.prefix)
    assignments = (f"VENV={venv}", f"ARGS={shlex.join(overrides)}")
    return ["make", f"--old-file={venv}/.flotilla", *assignments, "serve"]


def _environment(**more: str) -> dict[str, str]:
    """Without what `make test` tells a make inside it."""
    return {name: value for name, value in os.environ.items() if name not in MAKE_OWN} | more


def ask(*overrides: str, runtime_directory: Path) -> subprocess.CompletedProcess[str]:
    """What `python -m launcher` says that ends by itself, stdout and stderr apart."""
    return subprocess.run(
        [sys.executable, "-m", "launcher", *overrides],
        cwd=ROOT,
        env=_environment(XDG_RUNTIME_DIR=str(runtime_directory)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )


@contextmanager
def launched(*overrides: str, runtime_directory: Path, **options: Any) -> Iterator[Launcher]:
    """A launcher that is gone afterwards, its processes too, whatever the test did."""
    launcher = Launcher(*overrides, runtime_directory=runtime_directory, **options)
    family = [psutil.Process(launcher.process.pid)]
    try:
        yield launcher
    finally:
        if launcher.process.poll() is None:
            family += family[0].children(recursive=True)
        for process in family:
            if process.is_running():
                process.kill()
        launcher.process.wait(END_S)


@contextmanager
def serving(*overrides: str, runtime_directory: Path) -> Iterator[tuple[Launcher, httpx.Client]]:
    """A deployment that is ready, and a client for it. Ctrl-C ends it, and nothing may be left."""
    with launched(*overrides, runtime_directory=runtime_directory) as launcher:
        url = launcher.ready()
        family = psutil.Process(launcher.process.pid).children(recursive=True)
        with httpx.Client(base_url=url, timeout=30) as client:
            yield launcher, client
        launcher.signal(signal.SIGINT)
        assert launcher.end() == 0, launcher.output
        assert_nothing_left(launcher, family)


def assert_nothing_left(launcher: Launcher, family: list[psutil.Process]) -> None:
    """No process and no file of the deployment is there any more."""
    assert_ended(family)
    assert not launcher.directory.exists(), sorted(launcher.directory.rglob("*"))


def assert_ended(family: list[psutil.Process]) -> None:
    """All have ended; an orphan that has may wait as a zombie until a busy init looks at it."""
    deadline = time.monotonic() + END_S
    while family := [process for process in family if _runs(process)]:
        assert time.monotonic() < deadline, f"left behind: {family}"
        psutil.wait_procs(family, timeout=0.1)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def complete(client: httpx.Client, num_tokens: int = 8, **more) -> httpx.Response:
    body = {"model": "dummy", "prompt": "hi", "max_tokens": num_tokens, "ignore_eos": True, **more}
    return client.post("/v1/completions", json=body)


def stream(client: httpx.Client, num_tokens: int, **more):
    """A context in which a streamed completion runs, `iter_lines` being its events."""
    body = {"model": "dummy", "prompt": "hi", "max_tokens": num_tokens, "stream": True, **more}
    return client.stream("POST", "/v1/completions", json=body)


def until_plan(client: httpx.Client, holds: Callable[[dict[str, int]], bool]) -> None:
    """Asks for the plan until the numbers of requests by process, as told by heartbeats, fit."""
    deadline = time.monotonic() + 20
    while True:
        members = client.get("/plan").json()["actual"]
        counts = {member["name"]: member["num_requests"] for member in members}
        if holds(counts):
            return
        assert time.monotonic() < deadline, counts


def random_model(directory: Path, **changes: Any) -> tuple[str, str, str]:
    """Overrides that serve `random`: the tiny model with other sizes, made in the directory."""
    write_random_checkpoint(directory, replace(TINY_FACTS, **changes))
    return "model=path", f"model.path={directory}", "model.name=random"
