"""A comparison as a table, for a terminal or as Markdown."""

from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from engine.wording import counted
from launcher.compare.judge import Comparison, Difference, Measured, Verdict

_STYLES = {
    Verdict.better: "green",
    Verdict.same: "",
    Verdict.unclear: "yellow",
    Verdict.worse: "bold red",
}


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
    verdicts = Counter(each.verdict for each in comparison.differences)
    num_worse, num_unclear = verdicts[Verdict.worse], verdicts[Verdict.unclear]
    figures = counted(len(comparison.differences), "figure")
    of, by = f"{num_worse} of {figures}", f"by more than {100 * comparison.tolerance:g}%"
    if num_unclear:
        differ = "differs" if num_unclear == 1 else "differ"
        differ = f"{num_unclear} of {figures} {differ} {by}, but within the spread"
        yield f"unclear: {differ}: bench.repeat=... with more tells more"
    if num_worse:
        yield f"the second is worse: {of} {by}"
    elif comparison.is_worse:
        yield "the second is worse: it has no valid results of what the first has"
    else:
        beyond = " and beyond the spread" if num_unclear else ""
        yield f"the second is not worse: no figure {by}{beyond}"


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
