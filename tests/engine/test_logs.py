"""Log lines of one process, which is a real one: its logging is its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import LogLevel

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import logging, warnings
from engine import logs
from engine.config import LogLevel
logs.configure("engine-7", LogLevel.{level})
ours, theirs = logging.getLogger("engine.core.process"), logging.getLogger("asyncio")
for logger in (ours, theirs):
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)("a %s line", level)
warnings.warn("something old")
"""


def lines(level: LogLevel) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(level=level.name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("level", "num_ours", "num_theirs"),
    [
        (LogLevel.debug, 4, 3),
        (LogLevel.info, 3, 3),
        (LogLevel.warning, 2, 2),
        (LogLevel.error, 1, 1),
    ],
)
def test_the_level_says_which_lines_are_written(level, num_ours, num_theirs):
    written = lines(level)
    assert sum(" engine-7 engine.core.process: a " in line for line in written) == num_ours
    assert sum(" engine-7 asyncio: a " in line for line in written) == num_theirs


def test_warnings_of_python_are_log_lines_too():
    assert any(
        "WARNING" in line and "engine-7 py.warnings: " in line for line in lines(LogLevel.info)
    )
