"""`action=stop`: it drains as Ctrl-C does, waits for the end and says how it was."""

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.running import Launcher, ask, assert_nothing_left, launched, stream

pytestmark = pytest.mark.timeout(120)


def stopping(launcher: Launcher, *overrides: str, runtime: Path):
    """A context in which `action=stop` runs."""
    overrides = ("action=stop", *overrides)
    return launched(*overrides, runtime_directory=runtime, name=launcher.name)


@contextmanager
def in_flight(launcher: Launcher) -> Iterator[tuple[psutil.Process, Iterator[str]]]:
    """A streamed request that does not go on before its engine, which is stopped, is resumed."""
    url = launcher.ready()
    engine = launcher.children()["engine-0"]
    with (
        httpx.Client(base_url=url, timeout=60) as client,
        stream(client, 1900, model="tiny", ignore_eos=True) as response,
    ):
        events = response.iter_lines()
        next(events)
        engine.suspend()
        try:
            yield engine, events
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.resume()  # stopped it could not even see that its launcher is gone


def test_what_is_in_flight_finishes_and_whoever_stops_as_well_waits_with_it(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher:
        with in_flight(launcher) as (engine, events):
            family = launcher.family()
            with (
                stopping(launcher, runtime=runtime) as first,
                stopping(launcher, runtime=runtime) as second,
            ):
                launcher.wait_for(r"draining, at most 100 s \(Ctrl-C forces\)")
                for stop in (first, second):
                    stop.wait_for("draining: 1 request in flight")
                engine.resume()
                rest = [line for line in events if line]
                assert '"finish_reason":"length"' in rest[-2]
                assert [first.end(), second.end()] == [0, 0]
        words = f"stopping {launcher.name} (launcher pid {launcher.process.pid}): "
        said = {f"{words}draining, at most 100 s\n", f"{words}it is draining already\n"}
        assert said >= {line for line in first.lines + second.lines if line.startswith(words)}
        assert first.lines[-1] == f"{launcher.name}: drained, and ended\n"
        assert launcher.end() == 0
        assert_nothing_left(launcher, family)


def test_force_ends_at_once_what_drains(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher:
        with in_flight(launcher), stopping(launcher, runtime=runtime) as waiting:
            family = launcher.family()
            waiting.wait_for("draining: 1 request in flight")
            overrides = ("action=stop", "stop.force=true", f"name={launcher.name}")
            forced = ask(*overrides, runtime_directory=runtime)
            assert forced.returncode == 1
            assert forced.stderr.endswith(f"{launcher.name}: ended, 1 request cut off\n")
            assert waiting.end() == 1
        assert launcher.end() == 130
        assert_nothing_left(launcher, family)


def test_force_needs_no_stop_before(runtime):
    with launched("model=dummy", "drain_s=100", runtime_directory=runtime) as launcher:
        launcher.ready()
        overrides = ("action=stop", "stop.force=true", f"name={launcher.name}")
        forced = ask(*overrides, runtime_directory=runtime)
        assert forced.returncode == 0
        assert forced.stderr.endswith(f"{launcher.name}: ended\n")
        assert launcher.end() == 130


def test_what_the_drain_limit_cuts_off_is_a_failure(runtime):
    with launched("model=tiny", "drain_s=0.5", runtime_directory=runtime) as launcher:
        with in_flight(launcher):
            stop = ask("action=stop", f"name={launcher.name}", runtime_directory=runtime)
        assert stop.returncode == 1
        assert stop.stderr.endswith(f"{launcher.name}: ended, 1 request cut off\n")
        assert launcher.end() == 0


def test_a_process_that_dies_meanwhile_is_a_failure(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher:
        with in_flight(launcher) as (engine, _), stopping(launcher, runtime=runtime) as stop:
            stop.wait_for("draining: 1 request in flight")
            engine.kill()
            assert stop.end() == 1
        said = f"{launcher.name}: ended with a failure: engine-0 ended: killed by SIGKILL\n"
        assert said in stop.lines
        assert launcher.end() == 1


def test_what_starts_is_ended(runtime):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        launcher.wait_for("frontend-0 +importing")
        launcher.children()["frontend-0"].suspend()  # it is not ready before it is stopped
        family = launcher.family()
        stop = ask("action=stop", f"name={launcher.name}", runtime_directory=runtime)
        assert stop.returncode == 0, stop.stderr
        assert "while it starts\n" in stop.stderr
        assert stop.stderr.endswith(f"{launcher.name}: ended while it started\n")
        assert launcher.end() == 130
        assert_nothing_left(launcher, family)


def test_ctrl_c_on_whoever_stops_does_not_end_the_drain(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher:
        with in_flight(launcher) as (engine, events):
            with stopping(launcher, runtime=runtime) as stop:
                stop.wait_for("draining: 1 request in flight")
                stop.signal(signal.SIGINT)
                assert stop.end() == 130
                assert stop.lines[-1] == "interrupted\n"
            engine.resume()
            assert '"finish_reason":"length"' in [line for line in events if line][-2]
        assert launcher.end() == 0


def test_a_launcher_that_is_killed_while_it_drains_is_a_failure(runtime):
    with (
        launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher,
        in_flight(launcher),
        stopping(launcher, runtime=runtime) as stop,
    ):
        stop.wait_for("draining: 1 request in flight")
        family = launcher.family()
        launcher.process.kill()
        assert stop.end() == 1
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert stop.lines[-1].startswith(f"{launcher.name}: ended without a word: ")


def test_a_launcher_that_falls_silent_while_it_drains_is_named(runtime):
    with (
        launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher,
        in_flight(launcher),
        stopping(launcher, runtime=runtime) as stop,
    ):
        stop.wait_for("draining: 1 request in flight")
        launcher.signal(signal.SIGSTOP)
        assert stop.end() == 1
    assert f"launcher pid {launcher.process.pid} does not answer for 5 s" in stop.output
