"""What the executor for this machine does besides starting and ending processes."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import StartFailed
from launcher.executors import mp
from launcher.executors.mp import MpExecutor
from tests.launcher.samples import config_of, plan_for

LOG = "a long line\n" * 10


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[MpExecutor]:
    with tempfile.TemporaryDirectory(prefix="fl") as runtime:  # short, since socket paths are
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setattr(mp, "_MAX_LOG_BYTES", 100)
        reserved = MpExecutor(plan_for(config_of(frontend__port=0)))
        reserved.reserve()
        yield reserved
        reserved.release(keep_logs=False)


def test_a_log_that_cannot_be_trimmed_does_not_keep_others_from_it(executor: MpExecutor):
    logs = [Path(executor.log_path(name)) for name in ("a", "b", "c", "d")]
    for log in logs[::2]:
        log.symlink_to("nowhere")
    for log in logs[1::2]:
        log.write_text(LOG)
    asyncio.run(executor._trim_logs())
    for log in logs[1::2]:
        assert log.read_text() == ""
        assert log.with_suffix(".log.1").read_text() == LOG


def test_a_process_that_could_not_be_started_again_can_be_later(executor: MpExecutor):
    async def test() -> None:
        await executor.start()
        try:
            await executor.kill("coordinator")
            assert (await executor.next_exit()).name == "coordinator"
            logs = Path(executor.log_path("coordinator")).parent
            shutil.rmtree(logs)
            num_before = num_pipes()
            for _ in range(2):
                with pytest.raises(StartFailed, match="coordinator could not be started: .*log"):
                    await executor.restart("coordinator")
            assert num_pipes() == num_before - 1  # the lifeline of the one that has ended
            logs.mkdir()
            assert await executor.restart("coordinator") == 2
        finally:
            await executor.stop(grace_s=0)

    asyncio.run(asyncio.wait_for(test(), 30))


def num_pipes() -> int:
    """Ends of pipes that are open here."""
    targets = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    return sum("/pipe:" in target for target in targets)
