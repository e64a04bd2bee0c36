"""`action=compare`: says whether the second of two benchmarks, or of two sweeps, is worse."""

import msgspec

from launcher.compare.judge import Comparison, compare_runs
from launcher.compare.options import CompareFormat, CompareOptions
from launcher.compare.runs import read_run
from launcher.compare.table import comparison_lines, comparison_table
from launcher.errors import Refused
from launcher.show import rendered, show

METRICS = ("output_tok_s", "ttft_ms.p50", "tpot_ms.p50", "e2e_ms.p50")
"""Those that are compared where none are named."""
WORSE = 3
"""Exit code: the second is worse."""


def compare(options: CompareOptions) -> int:
    """Shows both side by side.

    Returns:
        0: the second is not worse. 3: it is.

    Raises:
        Refused: There is nothing to compare, or one of them is worth nothing.
    """
    first, second = map(read_run, options.runs)
    if first.is_sweep is not second.is_sweep:
        sweep, other = (first, second) if first.is_sweep else (second, first)
        raise Refused(
            f"compare.runs must be of one kind: {sweep.path} is a sweep, {other.path} the results"
            " of one benchmark",
            "compare.runs=[A,B] with two sweeps; the directories in a sweep hold its results",
        )
    comparison = compare_runs(first, second, options.metrics or METRICS, options.tolerance)
    if not comparison.differences and not comparison.no_longer_valid:
        why = "".join(f"\n    {note}" for note in comparison.notes)
        other_runs = (
            "compare.runs=[A,B] with two that have variants and stages in common, or with the"
            " directories of a job of each"
        )
        raise Refused(
            f"compare.runs: {first.path} and {second.path} have no figure in common{why}",
            f"compare.metrics=[], or {other_runs}" if options.metrics else other_runs,
        )
    show(_text(comparison, options.format))
    return WORSE if comparison.is_worse else 0


def _text(comparison: Comparison, format: CompareFormat) -> str:
    if format is CompareFormat.json:
        return msgspec.json.format(msgspec.json.encode(comparison), indent=2).decode() + "\n"
    is_markdown = format is CompareFormat.markdown
    table = rendered(comparison_table(comparison, is_markdown)) if comparison.differences else ""
    lines = list(comparison_lines(comparison))
    if is_markdown:
        items = "".join(f"- {line}\n" for line in lines)
        return f"{table.strip()}\n\n{items}".lstrip()
    return table + "".join(f"{line}\n" for line in lines)
