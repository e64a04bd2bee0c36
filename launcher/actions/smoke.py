"""`action=smoke`: brings the deployment up, checks all that it must do, and ends it again."""

import asyncio
import sys
import time
from collections.abc import Callable

import msgspec

from engine.core.reference import Reference
from engine.wording import counted
from launcher.actions.serve import Serving
from launcher.config import SmokeFormat
from launcher.errors import LauncherError, Refused, report
from launcher.executors.base import Executor, Means
from launcher.plan import DeploymentPlan
from launcher.show import show
from launcher.smoke.client import Client
from launcher.smoke.front_end import FrontEndChecks
from launcher.smoke.leftovers import Leftovers
from launcher.smoke.reference import ReferenceProcess
from launcher.smoke.results import (
    Recorder,
    Report,
    Result,
    failed,
    print_table,
    results_table,
    verdict,
)

PROMPT = "Gravity is"
NUM_TOKENS = 32
_LOG_LINES = 5


class SmokeFailed(LauncherError):
    """The deployment came up, but does not do what it should."""


def smoke(plan: DeploymentPlan, means: Means, answer_s: float, form: SmokeFormat) -> int:
    """Whether the deployment starts, does all it should and ends without a trace.

    Args:
        answer_s: Seconds that each answer may take.
        form: table: on stderr, json: on stdout, both after the end.

    Returns:
        0 if it does, 1 if a check failed, else the exit code of what went wrong.

    Raises:
        Refused: Nothing was started, so that there is nothing to tell but why.
    """
    test = SmokeTest(plan, means, answer_s)
    exit_code = test.run()
    results = test.recorder.results
    match form:
        case SmokeFormat.table:
            print_table(results_table(plan.name, results))
        case SmokeFormat.json:
            show(msgspec.json.encode(Report(name=plan.name, results=results)).decode() + "\n")
    sys.stderr.write(f"{verdict(results)}\n")
    return exit_code


class SmokeTest:
    """One deployment from start to nothing left.

    Attributes:
        recorder: Of all checks.
    """

    def __init__(self, plan: DeploymentPlan, means: Means, answer_s: float) -> None:
        self._plan, self._answer_s = plan, answer_s
        self._start_deadline_s = means.start_deadline_s
        self._serving = Serving(plan, means, self._check_serving)
        self._reference_process = ReferenceProcess(plan, PROMPT, NUM_TOKENS)
        self._reference: Reference | None = None
        self._leftovers = Leftovers()
        self._since_s = time.monotonic()
        self.recorder = Recorder()

    def run(self) -> int:
        """Starts, checks, drains, looks for what is left; the exit code of all that.

        Raises:
            Refused: It was not even started.
        """
        failure: LauncherError | None = None
        try:
            asyncio.run(self._serve())
        except Refused:
            raise
        except SmokeFailed:
            pass  # each failed check has been noted
        except LauncherError as problem:
            failure = problem
            report(problem)
            # First: it is why the checks after it failed.
            self._note("deployment", str(problem).splitlines()[0], passed=False, index=0)
        num_cut_off = self._serving.num_cut_off
        if num_cut_off is not None:
            cut_off = f"{counted(num_cut_off, 'request')} cut off"
            self._note("drained and ended", cut_off, passed=num_cut_off == 0)
        has_logs = failure is not None or bool(failed(self.recorder.results))
        self.recorder.check("nothing left", lambda: self._leftovers.check_gone(has_logs))
        if failure is not None:
            return failure.exit_code
        return 1 if failed(self.recorder.results) else 0

    async def _serve(self) -> None:
        try:
            await self._serving.run()
        finally:
            self._reference_process.end()  # the thread of the checks would wait for it

    def _check_serving(self, executor: Executor, say: Callable[[str], None]) -> None:
        """Makes all checks that need the deployment. Runs in a thread of its own.

        Raises:
            SmokeFailed: At least one has failed.
        """
        self._note("started", f"ready at {executor.addresses[0]}")
        self._leftovers.note(executor)
        self.recorder.check("reference", self._compute_reference)
        for index, path in enumerate(executor.private_addresses):
            name = f"frontend-{index}"
            say(f"checking {name}")
            client = Client(path, self._answer_s)
            FrontEndChecks(
                self.recorder, client, name, self._plan, self._reference, self._answer_s
            ).run()
        self._leftovers.note(executor)
        self._since_s = time.monotonic()
        wrong = failed(self.recorder.results)
        if wrong:
            for rank in sorted({result.rank for result in wrong if result.rank is not None}):
                lines = executor.log_tail(f"engine-{rank}", _LOG_LINES)
                say("\n    ".join((f"last lines of engine-{rank}:", *lines)))
            raise SmokeFailed(
                f"{len(wrong)} of {counted(len(self.recorder.results), 'check')} failed"
            )

    def _compute_reference(self) -> str:
        self._reference = self._reference_process.run(self._start_deadline_s)
        return f"{counted(self._reference.num_tokens, 'greedy token')} of a single process"

    def _note(self, name: str, said: str, passed: bool = True, index: int | None = None) -> None:
        """Notes something that took until now."""
        now_s = time.monotonic()
        result = Result(check=name, passed=passed, said=said, seconds=now_s - self._since_s)
        self._since_s = now_s
        results = self.recorder.results
        results.insert(len(results) if index is None else index, result)
