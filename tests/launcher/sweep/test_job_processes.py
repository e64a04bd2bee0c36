"""The process of a job, and the signals that go on to it."""

import os
import signal

import pytest

from launcher.sweep.job_processes import JobProcesses

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def hang_up():
    """Sets how hang-ups are handled, until the test ends."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def version(processes: JobProcesses) -> int:
    """The exit code of a job that ends by itself, unless it gets a signal."""
    with open(os.devnull, "wb") as nowhere:
        ended = processes.run(["--version"], timeout_s=50, end_s=5, stdout=nowhere)
    assert (ended.timed_out, ended.num_killed) == (False, 0)
    return ended.exit_code


def test_a_hang_up_goes_on_to_the_job(hang_up):
    hang_up(signal.SIG_DFL)
    with JobProcesses(os.environ) as processes:
        os.kill(os.getpid(), signal.SIGHUP)
        assert version(processes) == -signal.SIGHUP
    assert processes.signal == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_with_nohup_a_hang_up_ends_no_job(hang_up):
    hang_up(signal.SIG_IGN)
    with JobProcesses(os.environ) as processes:
        os.kill(os.getpid(), signal.SIGHUP)
        assert version(processes) == 0
    assert processes.signal is None
