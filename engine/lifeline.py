"""The pipe from the launcher: it tells a process what to be, and by its end to go."""

import os
import struct
import threading
from collections.abc import Callable
from typing import Protocol

_LENGTH = struct.Struct("!Q")
FAREWELL = b"\n"
"""What a launcher that lives writes before it closes its end."""
GRACE = 0.8
"""Part of `health.stop_s` after which a process that is told to end ends itself."""


class Ending(Protocol):
    """Where a process learns that it is to end."""

    def watch(self, on_end: Callable[[], None], grace_s: float) -> None:
        """Calls `on_end` then; a process that is still there `grace_s` later is ended."""
        ...


class Lifeline:
    """The child's end of the pipe: a payload, then a farewell, unless the launcher dies.

    Attributes:
        was_told: The launcher has told the process to end; if it ends without, the launcher is dead
            or dying.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.was_told = False

    def payload(self) -> bytes:
        """What the launcher wrote first.

        Raises:
            EOFError: The launcher ended before it had written everything.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return self._read(length)

    def watch(self, on_end: Callable[[], None], grace_s: float) -> None:
        """Calls `on_end` in a thread when the pipe closes; ends the process `grace_s` later."""

        def wait() -> None:
            while os.read(self._fd, 4096):
                self.was_told = True
            on_end()
            threading.Event().wait(grace_s)
            os._exit(1)

        threading.Thread(target=wait, name="lifeline", daemon=True).start()

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            chunk = os.read(self._fd, length - len(data))
            if not chunk:
                raise EOFError("the launcher ended before it had told what to do")
            data += chunk
        return bytes(data)


def frame(payload: bytes) -> bytes:
    """The bytes that the launcher writes for `Lifeline.payload` to read."""
    return _LENGTH.pack(len(payload)) + payload
