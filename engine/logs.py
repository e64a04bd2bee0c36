"""Log lines of one process: to stderr, which the executor leads into one file per process."""

import logging
import sys

FORMAT = "%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s"


def configure(process: str, level: int = logging.INFO) -> None:
    """Sends all log lines of this process to stderr, its name in each."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format=FORMAT.replace("{process}", process), force=True
    )
    logging.captureWarnings(True)
