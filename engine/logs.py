"""Log lines of one process: to stderr, which the executor leads into one file per process."""

import logging
import re
import sys

from engine.config import LogLevel

FORMAT = "%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s"
_LEVELS = {
    LogLevel.debug: logging.DEBUG,
    LogLevel.info: logging.INFO,
    LogLevel.warning: logging.WARNING,
    LogLevel.error: logging.ERROR,
}


_ROUTINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO) ")


def is_routine(line: str) -> bool:
    """Whether a line of a log tells of no trouble: a warning, an error, or what came with one."""
    return _ROUTINE.match(line) is not None


def configure(process: str, level: LogLevel) -> None:
    """Sends all log lines of this process to stderr, its name in each.

    Args:
        level: Least severe lines that are written; `debug` means ours, not other packages'.
    """
    form = FORMAT.replace("{process}", process)
    others = max(_LEVELS[level], logging.INFO)
    logging.basicConfig(level=others, stream=sys.stderr, format=form, force=True)
    logging.getLogger("engine").setLevel(_LEVELS[level])
    logging.captureWarnings(True)
