"""Charts as PNGs, for a light page and for a dark one. matplotlib alone is needed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engine.report.curves import Curve, Line, thinned
from engine.report.sections import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 6.0, 3.2, 160  # inches, and pixels of one: twice what a page shows, for screens with fine pixels
LEFT, RIGHT, TOP, BOTTOM, KEY_LINE = 0.68, 0.12, 0.34, 0.52, 0.22  # inches around the axes, and of a key's line below
COLOURS = 64  # of a PNG's palette
MOST_CROSSES = 200
LARGEST = 1e100  # what is larger is drawn as this: an axis can't end beyond the largest float
HEADROOM = 1.05  # an axis from zero reaches that far above its largest value
OUTLYING = 50  # times the median; a chart that reaches further is logarithmic


class Theme(NamedTuple):
    """Colours of a chart. The curves' are Okabe and Ito's, which the colour-blind can tell apart."""

    page: str
    text: str
    grid: str
    curves: tuple[str, ...]


LIGHT = Theme("#ffffff", "#24292f", "#d8dee4", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"))
DARK = Theme("#161b22", "#d1d7e0", "#343b45", ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00"))
DASHES, MARKERS = ("-", ":", "-."), "os^"  # where there are more runs than colours


class Series(NamedTuple):
    """A curve of a chart."""

    name: str
    curve: Curve
    number: int  # of its colour
    is_validation: bool = False


@dataclass
class Chart:
    """What to draw."""

    name: str
    title: str
    about: str  # a sentence for the caption
    series: Sequence[Series]
    x: str = "optimiser step"
    marks: Sequence[int] = ()  # steps with a warning
    from_zero: bool = False
    powers_of_two: bool = False

    @property
    def is_logarithmic(self) -> bool:
        """Where a curve would hide all others, or most of itself."""
        parts = [series.curve.values[series.curve.finite] for series in self.series]
        values = np.concatenate(parts) if parts else np.array([])
        if not len(values) or values.min() <= 0:
            return False
        return self.powers_of_two or bool(values.max() / OUTLYING > np.median(values))


def draw(chart: Chart) -> Picture:
    """The chart for both kinds of pages, with what its curves are for who can't see it."""
    lines = [thinned(series.curve) for series in chart.series]
    return Picture(
        chart.name, _png(chart, lines, LIGHT), _told(chart), _caption(chart, lines), _png(chart, lines, DARK)
    )


def _png(chart: Chart, lines: Sequence[Line], theme: Theme) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    key = KEY_LINE * _key_lines(chart)
    height = HEIGHT + key
    figure = Figure((WIDTH, height), DPI, facecolor=theme.page)
    figure.subplots_adjust(LEFT / WIDTH, (BOTTOM + key) / height, 1 - RIGHT / WIDTH, 1 - TOP / height)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _dress(chart, axes, theme)
    for series, line in zip(chart.series, lines, strict=True):
        _draw_line(axes, series, line, theme)
    if chart.marks:
        at_the_foot = axes.get_xaxis_transform()
        axes.plot(chart.marks, [0.025] * len(chart.marks), "^", color=theme.text, ms=5, transform=at_the_foot)
    if chart.is_logarithmic:
        axes.set_yscale("log", base=2 if chart.powers_of_two else 10)
    elif chart.from_zero:
        axes.set_ylim(0, HEADROOM * axes.get_ylim()[1])
    _add_key(chart, figure, theme)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks; the number before a run's name tells
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _dress(chart: Chart, axes: Axes, theme: Theme) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_facecolor(theme.page)
    axes.set_title(chart.title, loc="left", color=theme.text, fontsize=11, fontweight="bold", parse_math=False)
    axes.set_xlabel(chart.x, color=theme.text, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, place: f"{step:,.0f}"))
    axes.tick_params(colors=theme.text, labelsize=9, length=0)
    axes.yaxis.get_offset_text().set(color=theme.text, fontsize=9)
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)


def _draw_line(axes: Axes, series: Series, line: Line, theme: Theme) -> None:
    style = _style(series, theme)
    lowest, means, highest = (np.clip(values, -LARGEST, LARGEST) for values in (line.lowest, line.means, line.highest))
    alone = len(means) == 1
    axes.plot(line.steps, means, **style | ({"marker": "o"} if alone else {}))
    if line.reports > 1:
        axes.fill_between(line.steps, lowest, highest, color=style["color"], alpha=0.25, linewidth=0)
    lost = series.curve.steps[~series.curve.finite][:MOST_CROSSES]
    at_the_top = axes.get_xaxis_transform()
    axes.plot(lost, [0.975] * len(lost), "x", color=style["color"], ms=6, transform=at_the_top)


def _style(series: Series, theme: Theme) -> dict[str, Any]:
    colour = theme.curves[series.number % len(theme.curves)]
    turn = series.number // len(theme.curves) % len(DASHES)
    if series.is_validation:
        return {"color": colour, "linestyle": "--", "linewidth": 1, "marker": MARKERS[turn], "markersize": 4}
    return {"color": colour, "linestyle": DASHES[turn], "linewidth": 1.5}


def _key_lines(chart: Chart) -> int:
    """A single curve needs no key."""
    return -(-len(chart.series) // 2) if len(chart.series) > 1 else 0


def _add_key(chart: Chart, figure: Any, theme: Theme) -> None:
    """Below the chart, in two columns."""
    from matplotlib.lines import Line2D

    if not _key_lines(chart):
        return
    handles = [Line2D([], [], **_style(series, theme)) for series in chart.series]
    names = [series.name for series in chart.series]
    key = figure.legend(handles, names, loc="lower left", ncols=2, frameon=False, fontsize=9, labelcolor=theme.text)
    for text in key.get_texts():
        text.set_parse_math(False)


def _told(chart: Chart) -> str:
    """What it shows, in words."""
    parts = []
    for series in chart.series:
        values = series.curve.values
        parts.append(f"{series.name} from {values[0]:.4g} to {values[-1]:.4g}")
    return f"{chart.title} by {chart.x}: " + "; ".join(parts)


def _caption(chart: Chart, lines: Sequence[Line]) -> str:
    sentences = [chart.about]
    reports = max(line.reports for line in lines)
    if reports > 1:
        sentences.append(
            f"A point stands for up to {reports:,} reports: the line is their mean, and the band reaches from the "
            "smallest to the largest of them."
        )
    if lost := sum(int((~series.curve.finite).sum()) for series in chart.series):
        crosses = "The cross at the top is a report" if lost == 1 else f"Crosses at the top are {lost:,} reports"
        sentences.append(f"{crosses} that {'is' if lost == 1 else 'are'} not finite.")
    if chart.is_logarithmic:
        sentences.append("The scale is logarithmic.")
    if chart.marks:
        sentences.append("Triangles at the foot are warnings, which are listed below.")
    return " ".join(sentences)
