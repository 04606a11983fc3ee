"""Style of the figures, and functions that save them for the page and for papers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from adadf_dist.files.outputs import atomic_file

WIDTH = 7.16
"""Figure width in inches: two columns of a journal page."""
DPI = 300
INK, SOFT, LINE, ACCENT, FIRST = "#1d2430", "#5b6675", "#dfe3e9", "#0072b2", "#0173b2"
THEME_COLORS = {INK: "--ink", SOFT: "--soft", LINE: "--line", ACCENT: "--accent", FIRST: "--first"}
"""Color -> CSS variable that replaces it on the page, for light and dark themes. No other color may be the same."""

COLORS = (FIRST, "#de8f05", "#029e73", "#cc78bc", "#d55e00", "#56b4e9", "#949449", "#8a8a8a")
"""Color-blind-safe colors for classes and runs, on light and dark backgrounds."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Liberation Sans", "Helvetica", "DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "mathtext.default": "it",
    "svg.fonttype": "path",  # same glyphs on every machine
    "svg.hashsalt": "adadf_dist",
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Apply the style to figures created and saved in this context."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Create a figure; sizes are in inches. Avoids pyplot, whose global state would remain in a training process."""
    return Figure(figsize=(width, height), layout="constrained")


def color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def marker(number: int) -> str:
    return MARKERS[(number + number // len(COLORS)) % len(MARKERS)]


def dash_pattern(number: int) -> Any:
    """Return the dash pattern of a line, which keeps lines distinguishable without color."""
    return DASHES[number % len(DASHES)]


def plot_classes(axes: Any, epochs: NDArray[Any], values: NDArray[Any], classes: Sequence[str]) -> None:
    """Plot `values` [E, C] over the E epochs, one line per class."""
    every = max(1, len(epochs) // 12)
    for number, name in enumerate(classes):
        style = {"color": color(number), "marker": marker(number), "markevery": every, "linewidth": 1.2}
        axes.plot(epochs, values[:, number], label=name, **style)


def add_class_legend(figure: Any, axes: Any) -> None:
    """Add a legend of the classes in `axes` below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), columnspacing=1.2)


def format_epoch_axis(axes: Any, epochs: NDArray[Any]) -> None:
    """Format the x-axis to show epochs as integers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    room = 0.03 * (epochs[-1] - epochs[0]) or 0.5
    axes.set_xlim(max(epochs[0] - room, 0.5), epochs[-1] + room)
    axes.grid(axis="y")
    axes.set_xlabel("epoch")


def inline(figure: Figure, name: str, alt: str) -> str:
    """Return the figure as an inline SVG element with unique ids and the theme colors of the page."""
    out = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text)
    fraction = figure.get_figwidth() / WIDTH
    head = rf'<svg class="drawing" style="--share: {fraction:.3f}" \1 role="img" aria-label="{escape(alt)}">'
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, text)
    text = text.replace("xlink:href", "href")
    for value, variable in THEME_COLORS.items():
        text = text.replace(value, f"var({variable})")
    return text


def save(figure: Figure, folder: Path, name: str) -> None:
    """Save NAME.png (300 dpi) and NAME.svg on a white background."""
    for kind, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
        path = folder / f"{name}.{kind}"
        canvas(figure)
        metadata = {"Date": None} if kind == "svg" else {}
        with atomic_file(path) as partial:
            figure.savefig(partial, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
