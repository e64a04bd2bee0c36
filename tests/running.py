"""Deployments as a user starts them: `python -m launcher` in a process of its own."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
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


class Launcher:
    """A launcher process, its output line by line, and what it has started."""

    def __init__(self, *overrides: str, runtime_directory: Path, name: str = "") -> None:
        self.name = name or f"t{uuid.uuid4().hex[:8]}"
        self.directory = runtime_directory / "flotilla" / self.name
        self.lines: list[str] = []
        self._unread: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher", f"name={self.name}", "frontend.port=0", *overrides],
            cwd=ROOT,
            env=os.environ | {"XDG_RUNTIME_DIR": str(runtime_directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
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

    def children(self) -> dict[str, psutil.Process]:
        """Its processes by name: `coordinator`, `frontend-0`, ..."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            title = child.cmdline()
            if title and title[0].startswith("flotilla "):
                found[title[0].split()[2]] = child
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


@contextmanager
def launched(*overrides: str, runtime_directory: Path, name: str = "") -> Iterator[Launcher]:
    """A launcher that is gone afterwards, its processes too, whatever the test did."""
    launcher = Launcher(*overrides, runtime_directory=runtime_directory, name=name)
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
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, f"left behind: {alive}"
    assert not launcher.directory.exists(), sorted(launcher.directory.rglob("*"))


def random_model(directory: Path, **changes: Any) -> tuple[str, str, str]:
    """Overrides that serve `random`: the tiny model with other sizes, made in the directory."""
    write_random_checkpoint(directory, replace(TINY_FACTS, **changes))
    return "model=path", f"model.path={directory}", "model.name=random"
