"""What the executor for this machine does besides starting and ending processes."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
