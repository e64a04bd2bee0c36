"""Lines for a terminal whose reader is slow, or gone."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from launcher.terminal import Terminal
from tests.running import END_S, ROOT, stream


def test_lines_come_in_their_order(capfd: pytest.CaptureFixture[str]):
    terminal = Terminal()
    for number in range(100):
        terminal.say(f"line {number} [not markup]")
    terminal.close()
    assert capfd.readouterr().err.splitlines() == [
        f"line {number} [not markup]" for number in range(100)
    ]


@pytest.mark.parametrize("reads", [False, None], ids=["stopped", "gone"])
def test_who_says_something_waits_for_no_reader(reads: bool | None):
    # More than a pipe holds, and than waits for its reader.
    script = (
        "from launcher.terminal import Terminal\n"
        "terminal = Terminal()\n"
        "for _ in range(2000): terminal.say('x' * 1000)\n"
        "terminal.close()\n"
        "print('goes on', flush=True)\n"
    )
    theirs, ours = os.pipe()
    if reads is None:
        os.close(theirs)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=ours, text=True
    )
    os.close(ours)
    try:
        said, _ = process.communicate(timeout=END_S)
    finally:
        process.kill()
        if reads is not None:
            os.close(theirs)
    assert said == "goes on\n"
    assert process.returncode == 0


def test_a_launcher_whose_reader_has_gone_still_drains(runtime: Path):
    theirs, ours = os.pipe()
    command = [sys.executable, "-m", "launcher", "model=dummy", "model.step_s=0.05", "name=quiet"]
    launcher = subprocess.Popen(
        [*command, "frontend.port=0"],
        cwd=ROOT,
        env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
        stderr=ours,
    )
    os.close(ours)
    try:
        with open(theirs) as reader:
            ready = next(line for line in reader if "ready after" in line)
        url = re.search(r"http://[^/]+", ready)
        assert url is not None
        with (
            httpx.Client(base_url=url[0], timeout=END_S) as client,
            stream(client, 40, ignore_eos=True) as response,
        ):
            events = response.iter_lines()
            assert next(events)
            launcher.send_signal(signal.SIGINT)
            assert "data: [DONE]" in list(events)
        assert launcher.wait(END_S) == 0
    finally:
        launcher.kill()
        launcher.wait()
