"""What became of a job, of how it ended and what it left. No processes, no files."""

from collections.abc import Sequence

import msgspec

from launcher.bench.results import Results
from launcher.exit_codes import how_it_ended
from launcher.sweep.job_processes import Ended
from launcher.sweep.rows import Outcome, Row

_REFUSED = 2


def row_of(
    row: Row,
    ended: Ended,
    results: Results | None,
    log: Sequence[str],
    timeout_s: float,
    is_interrupted: bool,
) -> Row:
    """The row of a job that has ended.

    Args:
        row: As it was before it was run.
        results: That the job has written.
        log: Its last lines.
        is_interrupted: Whether a signal came while it ran.
    """
    outcome, said = _outcome(ended, results, log, timeout_s, is_interrupted)
    if ended.num_killed:
        said = "; ".join(
            filter(None, (said, f"left behind and killed: {ended.num_killed} of its processes"))
        )
    is_done = outcome is not Outcome.not_run
    return msgspec.structs.replace(
        row,
        outcome=outcome,
        exit_code=ended.exit_code if is_done else None,
        seconds=round(ended.seconds, 3) if is_done else 0.0,
        said=said,
        results=results if outcome in (Outcome.valid, Outcome.invalid) else None,
    )


def _outcome(
    ended: Ended,
    results: Results | None,
    log: Sequence[str],
    timeout_s: float,
    is_interrupted: bool,
) -> tuple[Outcome, str]:
    if results is not None and results.is_valid and ended.exit_code == 0 and not ended.timed_out:
        return Outcome.valid, ""
    if is_interrupted:
        return Outcome.not_run, "interrupted"
    if ended.timed_out:
        return Outcome.timed_out, f"not done after {timeout_s:g} s (sweep.timeout_s)"
    if results is not None:
        problems = "; ".join(results.problems)
        then = how_it_ended(ended.exit_code)
        return Outcome.invalid, problems or f"valid results, but then {then}"
    said = next((line for line in reversed(log) if not line.startswith("hint: ")), "")
    if ended.exit_code == _REFUSED:
        return Outcome.refused, said
    return Outcome.crashed, ": ".join(filter(None, (how_it_ended(ended.exit_code), said)))
