"""The reference of a smoke test: greedy decoding in a child process with no deployment around."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import msgspec

from engine.config import Device, Role
from engine.core.reference import Reference, Task
from engine.lifeline import frame
from launcher.plan import DeploymentPlan
from launcher.smoke.results import CheckFailed


class ReferenceProcess:
    """The child; `end` may be called from another thread, at any time."""

    def __init__(self, plan: DeploymentPlan, prompt: str, max_tokens: int) -> None:
        engine = next(process for process in plan.processes if process.role is Role.engine)
        head = next(node for node in plan.nodes if node.id == plan.head)
        has_device = plan.settings.device is Device.cuda and head.gpus > 0
        self._num_threads = engine.workers[0].num_threads
        settings = plan.settings
        if settings.device is Device.cuda and not has_device:  # the ranks have theirs elsewhere
            settings = replace(settings, device=Device.cpu)
        self._task = Task(
            settings=settings,
            prompt=prompt,
            max_tokens=max_tokens,
            device=0 if has_device else None,
            num_threads=self._num_threads,
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
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine.core.reference", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": str(self._num_threads)},
                pass_fds=(theirs,),
            )
        finally:
            os.close(theirs)
        try:
            with suppress(BrokenPipeError):  # it died already, and has said why
                os.write(ours, frame(msgspec.msgpack.encode(self._task)))
            answer, words = self._process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise CheckFailed(
                f"expected a single process's answer within {deadline_s:g} s "
                "(backend.start_deadline_s), seen none"
            ) from None
        finally:
            os.close(ours)  # which ends it
            self.end()
        if self._process.returncode != 0:
            said = words.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise CheckFailed(f"expected a single process's answer, it said: {said[-1]}")
        return msgspec.msgpack.decode(answer, type=Reference)

    def end(self) -> None:
        """Ends it at once."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
