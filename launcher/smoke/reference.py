"""The reference of a smoke test: greedy decoding in a child process with no deployment around."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import msgspec

from engine.config import Device
from engine.core.reference import Reference, Task
from engine.lifeline import frame
from launcher.plan import DeploymentPlan
from launcher.smoke.results import CheckFailed

_NUM_THREADS = 1
"""Threads that wait for each other are slow beside a deployment that has every CPU."""


class ReferenceProcess:
    """The child; `end` may be called from another thread, at any time."""

    def __init__(self, plan: DeploymentPlan, prompt: str, max_tokens: int) -> None:
        head = next(node for node in plan.nodes if node.id == plan.head)
        has_device = plan.settings.device is Device.cuda and head.gpus > 0
        settings = plan.settings
        if settings.device is Device.cuda and not has_device:  # the ranks have theirs elsewhere
            settings = replace(settings, device=Device.cpu)
        self._task = Task(
            settings=settings,
            prompt=prompt,
            max_tokens=max_tokens,
            device=0 if has_device else None,
            num_threads=_NUM_THREADS,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, deadline_s: float) -> Reference:
        """Computes it.

        Args:
            deadline_s: Seconds until it must have answered, loading included.

        Raises:
            CheckFailed: It could not be computed in time; the message says why.
        """
        theirs, ours = os.pipe()
        try:
            self._process = self._start(theirs)
            with self._process as process:
                try:
                    with suppress(BrokenPipeError):  # it died already, and has said why
                        os.write(ours, frame(msgspec.msgpack.encode(self._task)))
                    answer, words = process.communicate(timeout=deadline_s)
                finally:
                    self.end()
        except subprocess.TimeoutExpired:
            raise CheckFailed(
                f"expected a single process's answer within {deadline_s:g} s "
                "(backend.start_deadline_s), seen none"
            ) from None
        finally:
            os.close(ours)
            os.close(theirs)
        if process.returncode != 0:
            said = words.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise CheckFailed(f"expected a single process's answer, it said: {said[-1]}")
        return msgspec.msgpack.decode(answer, type=Reference)

    def _start(self, lifeline: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "engine.core.reference", str(lifeline)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(_NUM_THREADS)},
            pass_fds=(lifeline,),
        )

    def end(self) -> None:
        """Ends it at once."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
