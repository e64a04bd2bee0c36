"""A comparison as a table, for a terminal or as Markdown."""

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from engine.wording import counted
from launcher.compare.judge import Comparison, Difference, Measured, Verdict

_STYLES = {Verdict.better: "green", Verdict.same: "", Verdict.worse: "bold red"}


def comparison_table(comparison: Comparison, is_markdown: bool) -> Table:
    """A line for each figure."""
    table = Table(
        box=box.MARKDOWN if is_markdown else box.SIMPLE, padding=(0, 1 if is_markdown else 2, 0, 0)
    )
    has_names = any(each.variant for each in comparison.differences)
    for heading in (*(["variant"] if has_names else []), "stage", "figure"):
        table.add_column(heading, no_wrap=True)
    for heading in ("first", "second", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("beyond the spread", "second is"):
        table.add_column(heading, no_wrap=True)
    seen = ("", "")
    for each in comparison.differences:
        place = (each.variant, each.stage)
        name = (*([_cell(each.variant)] if has_names else []), _cell(each.stage))
        table.add_row(
            *(("",) * len(name) if place == seen and not is_markdown else name),
            f"{each.metric} ({each.unit})"
            if each.unit and "_ms" not in each.metric
            else each.metric,
            _measured(each.first),
            _measured(each.second),
            "" if each.ratio is None else f"{each.ratio:.3f}",
            _beyond(each),
            Text(each.verdict.value, _STYLES[each.verdict]),
        )
        seen = place
    return table


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """What was compared, what to know of it, and what came of it."""
    for which, run in (("first", comparison.first), ("second", comparison.second)):
        yield f"{which}: {run.path}, {run.created}"
    yield from (f"note: {line}" for line in comparison.notes)
    yield from (f"no longer valid: {line}" for line in comparison.no_longer_valid)
    num_worse = sum(each.verdict is Verdict.worse for each in comparison.differences)
    of = f"{num_worse} of {counted(len(comparison.differences), 'figure')}"
    by = f"by more than {100 * comparison.tolerance:g}%"
    if num_worse:
        yield f"the second is worse: {of} {by}"
    elif comparison.is_worse:
        yield "the second is worse: it has no valid results of what the first has"
    else:
        yield f"the second is not worse: no figure {by}"


def _measured(measured: Measured) -> str:
    """`12.5 (12.1..12.9)`."""
    median = _shown(measured.median)
    if measured.num_repetitions == 1:
        return median
    return f"{median} ({_shown(measured.low)}..{_shown(measured.high)})"


def _shown(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _beyond(difference: Difference) -> str:
    match difference.exceeds_spread:
        case None:
            return "not known"
        case True:
            return "yes"
        case False:
            return "no"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
