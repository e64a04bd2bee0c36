"""Until `main` takes over, Ctrl-C ends the command in one line: what it imports takes a while.

Imported first, for what it does then. Where no command runs it does nothing.
"""

import os
import signal
import sys
from types import FrameType


def end(number: int, _frame: FrameType | None) -> None:
    """Nothing has been started: there is nothing to end but this process."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def take_over() -> None:
    """From here on somebody catches a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_spec = getattr(sys.modules["__main__"], "__spec__", None)
_is_command = _spec is not None and _spec.name == "launcher.__main__"
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
