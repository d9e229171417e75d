"""Scores and calibration as charts, for a light page and for a dark one."""

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from engine.report.drawing import DARK, DPI, LIGHT, Theme
from engine.report.pictures.statistics import Bin, Mean

COLOURED: Sequence[Any] = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
COLOURS = 32  # of a PNG's palette
LONGEST_NAME = 40  # characters


def render(size: tuple[float, float], draw: Callable[[Any, Theme], None]) -> tuple[bytes, bytes]:
    """A chart as PNG, for light and for dark pages, which shine through.

    Args:
        size: width and height in inches.
        draw: puts it on matplotlib's axes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = []
    for theme in (LIGHT, DARK):
        with rc_context({name: theme.text for name in COLOURED} | {"font.size": 9}):
            figure = Figure(size, DPI, layout="constrained")
            axes = figure.add_subplot()
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes, theme)
            canvas = FigureCanvasAgg(figure)
            figure.patch.set_alpha(0)
            axes.patch.set_alpha(0)
            canvas.draw()
            file = io.BytesIO()
            Image.fromarray(np.asarray(canvas.buffer_rgba())).quantize(COLOURS).save(file, "PNG", optimize=True)
            drawn.append(file.getvalue())
    return drawn[0], drawn[1]


def score_chart(rows: Sequence[tuple[str, Mean]]) -> tuple[bytes, bytes]:
    """Means with their intervals, the first at the top."""

    def draw(axes: Any, theme: Theme) -> None:
        places = range(len(rows))
        means = [mean.mean for _, mean in rows]
        errors = [[mean.mean - mean.low for _, mean in rows], [mean.high - mean.mean for _, mean in rows]]
        axes.errorbar(means, places, xerr=errors, fmt="o", capsize=3, color=theme.curves[0])
        names = [textwrap.shorten(name, LONGEST_NAME, placeholder=" ...") for name, _ in rows]
        axes.set_yticks(places, names, parse_math=False)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="score, with its 95% interval")
        axes.grid(axis="x", color=theme.grid, linewidth=0.5)

    return render((5.0, 0.8 + 0.28 * len(rows)), draw)


def calibration_chart(bins: Sequence[Bin]) -> tuple[bytes, bytes]:
    """Mean score over mean probability of each bin, beside the diagonal on which they would be the same."""

    def draw(axes: Any, theme: Theme) -> None:
        scores = [group.score for group in bins]
        errors = [[score.mean - score.low for score in scores], [score.high - score.mean for score in scores]]
        axes.plot([0, 1], [0, 1], "--", color=theme.text, linewidth=1)
        places = [group.probability for group in bins]
        axes.errorbar(places, [score.mean for score in scores], yerr=errors, fmt="o-", capsize=3, color=theme.curves[0])
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="probability that the model gives its answer", ylabel="score of these answers")
        axes.grid(color=theme.grid, linewidth=0.5)

    return render((4.4, 4.4), draw)
