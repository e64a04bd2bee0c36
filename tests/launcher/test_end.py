"""Signals to a deployment that serves: the first drains, a second one forces."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from launcher.actions.serve import ECHO_S, Signals
from tests.running import Launcher, assert_nothing_left, complete, launched, stream, until_plan

pytestmark = pytest.mark.timeout(120)


def test_ctrl_c_lets_requests_in_flight_finish_and_refuses_new_ones(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = launcher.family()
        with httpx.Client(base_url=url, timeout=30) as client:
            with stream(client, 1900, model="tiny", ignore_eos=True) as response:
                events = response.iter_lines()
                next(events)
                launcher.signal(signal.SIGINT)
                launcher.wait_for(r"draining, at most 100 s \(Ctrl-C again forces\)")
                refused = until_refused(url)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
                rest = [line for line in events if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
        assert launcher.end() == 0
        assert_nothing_left(launcher, family)
        assert "drained\n" in launcher.lines
        assert launcher.lines[-1] == "ended\n"


def test_a_hang_up_that_nohup_ignores_does_not_end_what_serves(runtime):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with launched("model=dummy", runtime_directory=runtime) as launcher:
            launcher.ready()
            status = Path(f"/proc/{launcher.process.pid}/status").read_text()
            ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
            assert ignored >> (signal.SIGHUP - 1) & 1
            launcher.signal(signal.SIGTERM)
            assert launcher.end() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def until_refused(url: str) -> httpx.Response:
    """The first answer that is no success: the drain takes a moment to reach the front end."""
    while True:
        with httpx.Client(base_url=url) as client:
            answer = complete(client, 1, model="tiny")
        if answer.status_code != 200:
            return answer


def test_the_same_signal_again_counts_when_it_can_be_no_echo():
    signals = Signals()
    assert signals.counts(signal.SIGINT, 0.0)
    assert not signals.counts(signal.SIGINT, 0.0)
    assert signals.counts(signal.SIGTERM, 0.5 * ECHO_S)
    assert not signals.counts(signal.SIGINT, 0.9 * ECHO_S)
    assert signals.counts(signal.SIGINT, ECHO_S)  # the last of a row that comes faster counts too


def test_a_second_signal_forces_the_end(runtime):
    with launched("model=tiny", "drain_s=60", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = launcher.family()
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as response,
        ):
            events = response.iter_lines()
            next(events)
            os.kill(launcher.children()["engine-0"].pid, signal.SIGSTOP)  # it never ends
            with httpx.Client(base_url=url, timeout=30) as other:
                until_plan(other, lambda counts: counts["frontend-0"] == 1)
            launcher.signal(signal.SIGTERM)
            launcher.wait_for("draining")
            signal_until_ended(launcher, signal.SIGTERM)
            # Of the signal itself if one came after the end, when nobody took it any more.
            assert launcher.end() in (143, -signal.SIGTERM)
        assert_nothing_left(launcher, family)
        assert "forced: 1 request cut off\nended: interrupted\n" in launcher.output


def signal_until_ended(launcher: Launcher, number: int) -> None:
    """Signals again and again, as an impatient user does: soon after the first they are one."""
    deadline = time.monotonic() + 10
    while launcher.process.poll() is None:
        assert time.monotonic() < deadline, launcher.output
        launcher.signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.process.wait(0.05)


def test_a_signal_to_a_group_counts_once_though_make_passes_it_on(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime, by_make=True) as make:
        url = make.ready()
        family = psutil.Process(make.process.pid).children(recursive=True)
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as response,
        ):
            events = response.iter_lines()
            next(events)
            os.killpg(make.process.pid, signal.SIGTERM)
            rest = [line for line in events if line]
        assert '"finish_reason":"length"' in rest[-2]
        assert make.end() == -signal.SIGTERM  # make's own way to say that it was told to end
        assert "drained" in make.output
        assert_nothing_left(make, family)


def test_the_drain_limit_cuts_off_what_does_not_finish(runtime):
    with launched("model=tiny", "drain_s=0.5", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as response,
        ):
            events = response.iter_lines()
            next(events)
            os.kill(launcher.children()["engine-0"].pid, signal.SIGSTOP)
            launcher.signal(signal.SIGINT)
            launcher.wait_for(r"drain limit passed \(drain_s=0.5\): 1 request cut off")
            launcher.wait_for(r"engine-0 +has not ended: waiting, at most 5 s \(health.stop_s\)")
        assert launcher.end() == 0
        assert launcher.lines[-1] == "ended\n"


def test_a_signal_while_the_last_process_ends_does_not_wait_for_it(runtime):
    patient = ("drain_s=0.5", "health.stop_s=600")
    with launched("model=dummy", *patient, runtime_directory=runtime) as launcher:
        launcher.ready()
        family = launcher.family()
        launcher.children()["engine-0"].suspend()
        launcher.signal(signal.SIGINT)
        launcher.wait_for("engine-0 +has not ended: waiting, at most 600 s")
        launcher.signal(signal.SIGINT)
        assert launcher.end() == 0
        assert_nothing_left(launcher, family)
