"""Processes that die while the deployment serves."""

import re

import httpx2 as httpx
import pytest

from tests.running import assert_ended, launched, stream

pytestmark = pytest.mark.timeout(120)


def test_every_process_ends_by_itself_when_the_launcher_is_killed(runtime):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        launcher.ready()
        family = list(launcher.children().values())
        assert len(family) == 4
        launcher.process.kill()
        assert_ended(family)
        assert not launcher.directory.exists()


def test_an_engine_that_is_killed_fails_its_requests_at_once_and_ends_the_deployment(runtime):
    with launched("model=tiny", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = launcher.family()
        engine = launcher.children()["engine-0"]
        with httpx.Client(base_url=url, timeout=30) as client:
            with stream(client, 1900, model="tiny", ignore_eos=True) as response:
                events = response.iter_lines()
                next(events)
                engine.suspend()
                engine.kill()
                rest = [line for line in events if line]
            assert '"error"' in rest[-2]
            assert rest[-1] == "data: [DONE]"
        assert launcher.end() == 1
        told = "engine-0 ended: killed by SIGKILL\n    (no warning and no error in its log; killed"
        assert told in launcher.output
        assert "draining, at most 30 s (Ctrl-C forces)" in launcher.output
        assert "ended: failed\n" in launcher.output
        assert not re.search("engine-0 +lost", launcher.output)
        assert_ended(family)
        assert (launcher.directory / "logs" / "engine-0.log").exists()


def test_requests_on_other_ranks_finish_when_one_rank_dies(runtime):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as first,
            stream(client, 1900, model="tiny", ignore_eos=True) as second,
        ):
            lines = [first.iter_lines(), second.iter_lines()]
            for each in lines:
                next(each)
            launcher.children()["engine-0"].kill()
            ends = [[line for line in each if line] for each in lines]
        failed = [end for end in ends if '"error"' in end[-2]]
        finished = [end for end in ends if '"finish_reason":"length"' in end[-2]]
        assert len(failed) == 1
        assert len(finished) == 1
        assert launcher.end() == 1


def test_a_coordinator_that_is_killed_and_not_to_be_restarted_ends_the_deployment(runtime):
    never = ("drain_s=60", "restart.limit=0")
    with launched("model=dummy", *never, runtime_directory=runtime) as launcher:
        launcher.ready()
        family = launcher.family()
        launcher.children()["coordinator"].kill()
        assert launcher.end(20) == 1
        assert_ended(family)
    assert "requests cut off: there is no coordinator" in launcher.output


def test_a_front_end_that_is_killed_and_not_to_be_restarted_ends_the_deployment(runtime):
    never = ("drain_s=60", "restart.limit=0")
    with launched("model=dummy", *never, runtime_directory=runtime) as launcher:
        launcher.ready()
        family = launcher.family()
        launcher.children()["frontend-0"].kill()
        assert launcher.end(20) == 1
        assert_ended(family)
    assert "frontend-0 ended: killed by SIGKILL" in launcher.output
