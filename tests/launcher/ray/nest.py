"""Runs commands, and ends whatever they have left behind when its standard input closes.

Each line of the input is a command, a JSON list; the answer is a line too, `[exit code, output]`.
What the commands leave running becomes a child of this process (PR_SET_CHILD_SUBREAPER, prctl(2)).
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys

import psutil

_PR_SET_CHILD_SUBREAPER = 36
"""Source: linux/prctl.h."""
_COMMAND_S = 60.0
_REAP_S = 0.05
"""A raylet that was killed keeps its workers alive until somebody has waited for it."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever runs the tests
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        for line in iter(_next_line, b""):
            done = subprocess.run(
                json.loads(line),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_COMMAND_S,
                check=False,
            )
            sys.stdout.write(json.dumps([done.returncode, done.stdout]) + "\n")
            sys.stdout.flush()
    finally:
        while children := psutil.Process().children(recursive=True):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=1)


def _next_line() -> bytes:
    """The next command; until it comes, orphans that have ended are waited for."""
    while not select.select([sys.stdin], [], [], _REAP_S)[0]:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return sys.stdin.buffer.readline()


if __name__ == "__main__":
    main()
