"""Signals to a deployment that serves: the first drains, a second one forces."""

import os
import signal

import httpx2 as httpx
import psutil
import pytest

from tests.running import assert_nothing_left, complete, launched, stream

pytestmark = pytest.mark.timeout(120)


def test_ctrl_c_lets_requests_in_flight_finish_and_refuses_new_ones(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = psutil.Process(launcher.process.pid).children()
        with httpx.Client(base_url=url, timeout=30) as client:
            with stream(client, 1900, model="tiny", ignore_eos=True) as response:
                events = response.iter_lines()
                next(events)
                launcher.signal(signal.SIGINT)
                launcher.wait_for("draining")
                refused = until_refused(url)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
                rest = [line for line in events if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
        assert launcher.end() == 0
        assert_nothing_left(launcher, family)


def until_refused(url: str) -> httpx.Response:
    """The first answer that is no success: the drain takes a moment to reach the front end."""
    while True:
        with httpx.Client(base_url=url) as client:
            answer = complete(client, 1, model="tiny")
        if answer.status_code != 200:
            return answer


def test_a_second_signal_forces_the_end(runtime):
    with launched("model=tiny", "drain_s=60", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = psutil.Process(launcher.process.pid).children()
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as response,
        ):
            events = response.iter_lines()
            next(events)
            os.kill(launcher.children()["engine-0"].pid, signal.SIGSTOP)  # it never ends
            launcher.signal(signal.SIGTERM)
            launcher.wait_for("draining")
            launcher.signal(signal.SIGTERM)
            assert launcher.end(10) == 143
        assert_nothing_left(launcher, family)


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
            launcher.wait_for(r"drain limit passed \(drain_s=0.5\): 1 requests cut off")
        assert launcher.end() == 0
