"""How plots look: on paper and a light page as in the PNG, on a dark page by other colours.

Colours keep apart for the colour-blind (Okabe and Ito's, darker on white so that lines keep a
contrast of 3:1), and markers tell the same as colours. Source: jfly.uni-koeln.de/color.
"""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#1c2126", "#626b75", "#dfe3e8", "#fffffe"
COLOURS = ("#0072b2", "#c44e00", "#007a5a", "#a03c78", "#7a6400", "#4b4fb0")
MARKERS = ("o", "s", "^", "D", "v", "P")
BEST = "#b30000"
_DARK = {
    INK: "#e8ebee",
    FAINT: "#a3acb5",
    GRID: "#3a424b",
    PAPER: "#181c20",
    COLOURS[0]: "#56b4e9",
    COLOURS[1]: "#ff9a57",
    COLOURS[2]: "#2fcf9f",
    COLOURS[3]: "#e79cc6",
    COLOURS[4]: "#e0cf4a",
    COLOURS[5]: "#a9aeff",
    BEST: "#ff8080",
}
"""What each colour becomes on a dark page."""
_DPI = 130
_PARAMETERS: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "figure.facecolor": PAPER,
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "svg.fonttype": "path",  # the same on every machine
    "svg.hashsalt": "flotilla",  # the same plots give the same bytes
    "text.color": INK,
    "text.parse_math": False,  # values of keys are shown as typed
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


@contextmanager
def style() -> Iterator[None]:
    """In which figures are drawn and written, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks is no one's concern
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_PARAMETERS)
        yield


def as_png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=_DPI)
    return written.getvalue()


def as_svg(figure: Figure) -> str:
    """A drawing of its own, whose colours follow those of the page that shows it."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    drawing = written.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for number, colour in enumerate(_DARK):
        drawing = drawing.replace(colour, f"var(--c{number})")
    head = drawing.index(">") + 1
    return f"{drawing[:head]}<style>{_variables()}</style>{drawing[head:]}"


def data_url(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _variables() -> str:
    light = ";".join(f"--c{number}:{colour}" for number, colour in enumerate(_DARK))
    dark = ";".join(f"--c{number}:{colour}" for number, colour in enumerate(_DARK.values()))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
