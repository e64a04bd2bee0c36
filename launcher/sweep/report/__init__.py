"""The report of a sweep: `sweep.csv`, `report.html`, its plots as PNG, and the terminal's lines."""

from pathlib import Path

from launcher.sweep.rows import Sweep

CSV_NAME = "sweep.csv"
PAGE_NAME = "report.html"


def write_report(sweep: Sweep, directory: Path) -> list[str]:
    """Writes the report of what was measured so far; returns lines for the terminal.

    Raises:
        OSError: A file cannot be written.
    """
    # The launcher starts faster without what draws and writes.
    from launcher.sweep.best import best_point
    from launcher.sweep.report.page import as_page
    from launcher.sweep.report.plots import plots_of
    from launcher.sweep.report.style import as_png, as_svg, data_url, style
    from launcher.sweep.report.tables import as_csv, terminal_lines
    from launcher.sweep.variants import variants_of

    variants = variants_of(sweep.rows)
    points = [point for variant in variants for point in variant.points()]
    best = best_point(points)
    _write(directory / CSV_NAME, as_csv(variants))
    plots = []
    with style():
        for plot in plots_of(points, best):
            _write(directory / f"{plot.name}.png", as_png(plot.figure))
            plots.append((plot, data_url(as_svg(plot.figure))))
    page = directory / PAGE_NAME
    _write(page, as_page(sweep, variants, best, plots))
    return terminal_lines(variants, best, page)


def _write(path: Path, content: str | bytes) -> None:
    """All or nothing: who reads it while a sweep goes on sees the last whole one."""
    partial = path.with_name(f"{path.name}.partial")
    if isinstance(content, str):
        content = content.encode(errors="replace")  # names of files can hold bytes that are no text
    partial.write_bytes(content)
    partial.replace(path)
