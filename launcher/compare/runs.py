"""What is compared: the results of a benchmark, or a sweep, read from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.bench import results as benchmarks
from launcher.bench.results import RESULTS_NAME, RESULTS_VERSION, Environment, Results
from launcher.errors import Refused
from launcher.sweep import rows as sweeps
from launcher.sweep.rows import SWEEP_NAME, SWEEP_VERSION, Outcome, Row, Sweep
from launcher.sweep.variants import Variant, variants_of

_HINT = "compare.runs=[A,B] with the directories of two results, or of two sweeps"


@dataclass(frozen=True, slots=True)
class Run:
    path: Path
    """Of its file."""
    is_sweep: bool
    created: str
    environment: Environment
    variants: Sequence[Variant]
    """Of a benchmark one."""


def read_run(text: str) -> Run:
    """The results or the sweep in a file or directory.

    Raises:
        Refused: There is none, it is of another form, or nothing in it is valid.
    """
    path = Path(text).expanduser()
    try:
        path = _file(path)
        data = path.read_bytes()
        run = _run(path, data, msgspec.json.decode(data))
    except OSError as problem:
        raise Refused(f"compare.runs cannot be read: {path} ({problem.strerror})", _HINT) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        message = f"compare.runs: {path} is no {RESULTS_NAME} or {SWEEP_NAME}"
        raise Refused(f"{message} ({problem})", _HINT) from None
    if not any(variant.results for variant in run.variants):
        rows = (row for variant in run.variants for row in variant.rows)
        why = next((f": {row.outcome.value.replace('_', ' ')}: {row.said}" for row in rows), "")
        raise Refused(f"compare.runs: {path} has no valid results{why}", "run it again")
    return run


def _file(path: Path) -> Path:
    if not path.is_dir():
        if path.exists():
            return path
        raise Refused(f"compare.runs: there is no {path}", _HINT)
    for name in (SWEEP_NAME, RESULTS_NAME):
        if (path / name).exists():
            return path / name
    raise Refused(f"compare.runs: {path} holds no {RESULTS_NAME} and no {SWEEP_NAME}", _HINT)


def _run(path: Path, data: bytes, content: Any) -> Run:
    is_sweep = isinstance(content, dict) and "rows" in content
    newest = SWEEP_VERSION if is_sweep else RESULTS_VERSION
    if isinstance(content, dict) and content.get("version", newest) != newest:
        message = f"compare.runs: {path} has version {content['version']} of its form"
        raise Refused(f"{message}, this launcher knows {newest}", "the launcher that wrote it")
    found: Sweep | Results
    if is_sweep:
        found = sweeps.decode(data)
        variants = variants_of(found.rows)
    else:
        found = benchmarks.decode(data)
        variants = variants_of([_row(found)])
    return Run(path, is_sweep, found.created, found.environment, variants)


def _row(results: Results) -> Row:
    """A benchmark as a sweep of one job."""
    return Row(
        overrides=results.overrides,
        swept={},
        repetition=0,
        outcome=Outcome.valid if results.is_valid else Outcome.invalid,
        exit_code=0 if results.is_valid else 1,
        seconds=0.0,
        said="; ".join(results.problems),
        directory=".",
        results=results,
    )
