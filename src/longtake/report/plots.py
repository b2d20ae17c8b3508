"""Charts as inline SVG by matplotlib, in the colours of the page: one drawing serves the light and the dark theme and paper.

Every colour given to matplotlib is a stand-in that is replaced by a CSS variable in the SVG. Text stays text. No pyplot, no global state.
Colours and markers follow Okabe and Ito's colour-blind safe palette; series differ by marker or line style too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from longtake.report.markup import Html, clean, el

STAND_INS = {
    name: f"#{index:02x}fe0{index:x}"
    for index, name in enumerate(
        ("ink", "quiet", "grid", "surface", "blue", "sky", "vermillion", "orange", "green", "purple", "grey", "yellow")
    )
}
"""Colour name (also the CSS variable `--<name>`) -> the hex value that stands in for it while matplotlib draws."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "longtake",
    "text.parse_math": False,  # names from data may hold a dollar sign
    "font.size": 11,
    "axes.formatter.limits": (-3, 4),
    "axes.edgecolor": STAND_INS["quiet"],
    "axes.labelcolor": STAND_INS["quiet"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": STAND_INS["quiet"],
    "ytick.color": STAND_INS["quiet"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": STAND_INS["ink"],
    "grid.color": STAND_INS["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}
MAX_LABEL_CHARS = 28
Marker = Literal["o", "s", "D", "^", "v", "P"]


@dataclass(frozen=True)
class Series:
    """One line: values over steps or frames, with whiskers where low and high are given."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    marker: Marker | None = None
    dashed: bool = False
    smooth: bool = False
    """Draw the values faintly and their running mean over them."""


@dataclass(frozen=True)
class Bar:
    """One share with its interval."""

    label: str
    value: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True)
class Band:
    """A shaded range, e.g. where guessing stays."""

    low: float
    high: float
    label: str


def line_chart(series: Sequence[Series], *, x_label: str, percent: bool = False, log2: bool = False, width: int = 330, title: str) -> Html:
    """Lines over steps (or frames, `log2`), with a legend when there are several."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(width, 215 if width < 400 else 245)
        for line in series:
            _draw_line(axes, line)
        if log2:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for line in series for x in line.xs})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylim(*_reach([value for line in series for value in (*line.ys, *(line.high or ()))]))
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x_label)
        if percent:
            _percent(axes, "y")
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2, borderaxespad=0.2)
        return _svg(figure, title)


def running_mean(values: Sequence[float], half_window: int) -> list[float]:
    """Mean of each value and its neighbours on both sides: centred, so that a trend is not shown too late."""
    windows = [values[max(0, index - half_window) : index + half_window + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _reach(values: Sequence[float]) -> tuple[float, float]:
    """Limits that include 0 and leave some air; 0 to 1 when there is nothing but zeros."""
    low, high = min(0.0, *values), max(0.0, *values)
    air = 0.06 * (high - low)
    return (low - air if low < 0 else 0.0, high + air if high > low else 1.0)


def _draw_line(axes: Axes, line: Series) -> None:
    colour, style = STAND_INS[line.colour], "--" if line.dashed else "-"
    values = line.ys
    if line.smooth and len(line.xs) >= 20:
        axes.plot(line.xs, line.ys, color=colour, alpha=0.25, linewidth=1)
        values = running_mean(line.ys, max(2, len(line.ys) // 25))
    marker = line.marker or ("o" if len(line.xs) < 20 else None)
    axes.plot(line.xs, values, color=colour, linestyle=style, linewidth=2, marker=marker, markersize=4.5, label=shown(line.label))
    if line.low is not None and line.high is not None:
        axes.fill_between(line.xs, line.low, line.high, color=colour, alpha=0.14, linewidth=0)


def interval_chart(bars: Sequence[Bar], *, band: Band | None, title: str) -> Html:
    """Horizontal bars of accuracy with whiskers, the value beside each; first bar on top."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(410, 40 * len(bars) + 56)
        places = range(len(bars))
        axes.barh(places, [bar.value for bar in bars], height=0.56, color=[STAND_INS[bar.colour] for bar in bars], zorder=2)
        _whiskers(axes, [(place, bar) for place, bar in enumerate(bars)], horizontal=True)
        for place, bar in enumerate(bars):
            axes.text(min(bar.high, 1.0) + 0.012, place, f"{100 * bar.value:.1f}\u00a0%", va="center", fontsize=11.5, fontweight="bold")
        if band is not None:
            axes.axvspan(band.low, band.high, color=STAND_INS["quiet"], alpha=0.16, linewidth=0, zorder=1)
            axes.text((band.low + band.high) / 2, -0.52, band.label, ha="center", va="bottom", fontsize=10, color=STAND_INS["quiet"])
        axes.set_yticks(list(places), [shown(bar.label) for bar in bars], color=STAND_INS["ink"])
        axes.set_ylim(len(bars) - 0.5, -0.8 if band else -0.5)
        axes.set_xlim(0, max(1.0, *(bar.high + 0.1 for bar in bars)) if bars else 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.grid(axis="x")
        _percent(axes, "x")
        return _svg(figure, title)


def grouped_chart(groups: Sequence[str], series: Sequence[tuple[str, str, Sequence[Bar | None]]], *, title: str) -> Html:
    """Vertical bars by group and series (label, colour, one bar per group), with whiskers."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(410, 245)
        width = 0.8 / max(1, len(series))
        for index, (label, colour, bars) in enumerate(series):
            places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
            values = [bar.value if bar is not None else 0.0 for bar in bars]
            axes.bar(places, values, width=0.88 * width, color=STAND_INS[colour], label=shown(label))
            _whiskers(axes, [(place, bar) for place, bar in zip(places, bars, strict=True) if bar is not None], horizontal=False)
        axes.set_xticks(range(len(groups)), [shown(group) for group in groups], color=STAND_INS["ink"])
        axes.set_ylim(0, min(1.0, 1.08 * max((bar.high for _, _, bars in series for bar in bars if bar is not None), default=1.0)))
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _percent(axes, "y")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.2, borderaxespad=0.2)
        return _svg(figure, title)


def stacked_chart(rows: Sequence[tuple[str, dict[str, float]]], colours: dict[str, str], *, unit: str, title: str) -> Html:
    """Horizontal stacked bars: one row per run, one colour per phase."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(410, 38 * len(rows) + 105)
        starts = [0.0] * len(rows)
        for phase, colour in colours.items():
            values = [phases.get(phase, 0.0) for _, phases in rows]
            axes.barh(range(len(rows)), values, left=starts, height=0.6, color=STAND_INS[colour], label=shown(phase), alpha=0.9,
                      edgecolor=STAND_INS["surface"], linewidth=0.8)  # fmt: skip
            starts = [start + value for start, value in zip(starts, values, strict=True)]
        axes.set_yticks(range(len(rows)), [shown(label) for label, _ in rows], color=STAND_INS["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_xlabel(unit)
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.0, columnspacing=1.2, borderaxespad=0.2)
        return _svg(figure, title)


def shown(label: str) -> str:
    """A name from data as a label: short and printable."""
    label = " ".join(clean(label).split())
    return label if len(label) <= MAX_LABEL_CHARS else label[: MAX_LABEL_CHARS - 3] + "..."


def _axes(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure whose SVG units are CSS pixels."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _whiskers(axes: Axes, bars: Iterable[tuple[float, Bar]], *, horizontal: bool) -> None:
    for place, bar in bars:
        ends, places = [bar.low, bar.high], [place, place]
        axes.plot(
            *((ends, places) if horizontal else (places, ends)), color=STAND_INS["ink"], linewidth=1.6, solid_capstyle="round", zorder=3
        )


def _percent(axes: Axes, which: Literal["x", "y"]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}\u00a0%"))


def _svg(figure: Figure, title: str) -> Html:
    """The figure as an `svg` element that scales with its column; ids made unique by a hash of the drawing."""
    buffer = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)  # its methods carry no types
    with warnings.catch_warnings():
        # The browser has the glyphs that the font matplotlib measures with has not.
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| font-family: [^;]*;", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|[A-Za-z]+Collection)_\d+"', "", drawing)
    for name, stand_in in STAND_INS.items():
        drawing = drawing.replace(stand_in, f"var(--{name})")
    view_box = re.search(r'viewBox="([^"]+)"', drawing)
    body = drawing[drawing.index(">") + 1 : drawing.rindex("</svg>")]
    box = view_box.group(1) if view_box else "0 0 100 100"
    return el(
        "svg",
        Html(body),
        viewBox=box,
        class_="chart",
        role="img",
        aria_label=title,
        style=f"max-width:{1.2 * float(box.split()[2]):.0f}px",
    )
