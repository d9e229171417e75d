"""Which charts a report has: what its runs learned, how they were steered, and how fast they were."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from engine.provenance.results import SCORE
from engine.report.curves import Curve
from engine.report.drawing import Chart, Series, draw
from engine.report.runs import ReportedRun
from engine.report.sections import Part, Section, Table
from engine.report.words import results_among, scorer_of, title_of

TRAIN, VALID = "train", "valid"
LONGEST_NAME = 24  # characters of a run's name in a chart's key
MOST_ROWS = 40  # of a table of validations


class Figure(NamedTuple):
    """An entry of a training's reports, and what its chart says of it."""

    name: str
    title: str
    about: str
    from_zero: bool = False
    powers_of_two: bool = False


STEERING = (
    Figure("lr", "Learning rate of AdamW", "The transformer's rate."),
    Figure("sgd_lr", "Learning rate of SGD", "The backbone's rate."),
    Figure("grad_norm", "Norm of the gradients", "Before they are clipped, at the last step of each report."),
    Figure("loss_scale", "Loss scale", "Of fp16; it is halved when gradients overflow.", powers_of_two=True),
)
SPEED = (
    Figure("samples_per_second", "Samples per second", "Sentences, over all ranks.", from_zero=True),
    Figure("images_per_second", "Images per second", "Images through the backbone, over all ranks.", from_zero=True),
    Figure("seconds_per_step", "Seconds per step", "Of an optimiser step.", from_zero=True),
    Figure("data_wait", "Wait for data", "Share of the time in which a rank waits for its loader.", from_zero=True),
    Figure("peak_memory_gb", "Peak memory", "In GB, of the rank that has taken the most since the start.", True),
)


def chart_sections(runs: Sequence[ReportedRun]) -> list[Section]:
    """Sections of those charts that there are figures for."""
    sections = [
        Section("Learning", [draw(chart) for chart in _learning(runs)]),
        Section("Validations", _validations(runs)),
        Section("Learning rates and gradients", [draw(chart) for chart in _charts(runs, STEERING)]),
        Section("Speed and memory", [draw(chart) for chart in _charts(runs, SPEED)]),
    ]
    if not any(run.curves.reports for run in runs):
        return [Section("Curves", ["No report has been written yet."])]
    return [section for section in sections if section.parts]


def _learning(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Losses and accuracies of the training and of its validations, with the warnings on the loss."""
    names = [name for run in runs for kind in (TRAIN, VALID) for name in run.curves.kinds[kind]]
    charts = []
    for name in results_among(name for name in names if name != SCORE):  # which only validations have: see there
        about = f"Training, and validations where there are any; {scorer_of(name)}."
        series = _series(runs, name, (TRAIN, VALID))
        marks = [warning["step"] for run in runs for warning in run.curves.warnings] if name == "loss" else []
        charts.append(Chart(_file(name), title_of(name), about, series, marks=marks))
    return charts


def _charts(runs: Sequence[ReportedRun], figures: Iterable[Figure]) -> list[Chart]:
    charts = []
    for figure in figures:
        if _is_told(runs, figure.name):
            series = _series(runs, figure.name, (TRAIN,))
            charts.append(
                Chart(
                    figure.name,
                    figure.title,
                    figure.about,
                    series,
                    from_zero=figure.from_zero,
                    powers_of_two=figure.powers_of_two,
                )
            )
    return charts


def _is_told(runs: Sequence[ReportedRun], name: str) -> bool:
    """Whether a chart of it would say anything: not of fp32's loss scale, nor of what another chart shows."""
    curves = [run.curves.kinds[TRAIN] for run in runs if name in run.curves.kinds[TRAIN]]
    if name == "loss_scale":
        return any((named[name].values != 1).any() for named in curves)
    if name == "sgd_lr":
        return any(named[name].values.any() for named in curves)
    if name == "images_per_second":
        samples = [named.get("samples_per_second") for named in curves]
        return any(
            same is None or not np.array_equal(named[name].values, same.values, equal_nan=True)
            for named, same in zip(curves, samples, strict=True)
        )
    return bool(curves)


def _series(runs: Sequence[ReportedRun], name: str, kinds: Sequence[str]) -> list[Series]:
    """One colour a run; of a single run, one colour a kind."""
    several, series = len(runs) > 1, []
    for number, run in enumerate(runs):
        for place, kind in enumerate(kinds):
            if (curve := run.curves.kinds[kind].get(name)) is not None:
                words = [_shortened(run.name)] if several else []
                if len(kinds) > 1 or not several:
                    words.append("validation" if kind == VALID else "training")
                series.append(Series(", ".join(words), curve, number if several else place, kind == VALID))
    return series


def _validations(runs: Sequence[ReportedRun]) -> list[Part]:
    """What decides which validation is the best, by epoch, and all of them as a table for each run."""
    validated = [run for run in runs if run.curves.kinds[VALID]]
    charts = [_by_epoch(runs, name) for name in (SCORE, "loss")]
    tables = [_validation_table(run) for run in validated]
    return [*(draw(chart) for chart in charts if chart.series), *tables]


def _by_epoch(runs: Sequence[ReportedRun], decisive: str) -> Chart:
    """Of those runs whose best validation is chosen by this figure."""
    series = []
    for number, run in enumerate(runs):
        curves = run.curves.kinds[VALID]
        chosen_by = SCORE if SCORE in curves else "loss"
        if chosen_by == decisive and {"epoch", decisive} <= curves.keys():
            epochs, values = curves["epoch"].values, curves[decisive].values
            if len(epochs) == len(values):  # else a record lacks one of them
                series.append(Series(_shortened(run.name), Curve(epochs, values), number, True))
    about = f"By this the best validation is chosen: {'more' if decisive == SCORE else 'less'} is better."
    return Chart(f"valid_{decisive}", f"{title_of(decisive)} by epoch", about, series, "epoch")


def _validation_table(run: ReportedRun) -> Table:
    curves = run.curves.kinds[VALID]
    names = [*(name for name in curves if name == "epoch"), *results_among(curves)]
    by_step: dict[int, dict[str, float]] = {}
    for name in names:
        for step, value in zip(curves[name].steps.tolist(), curves[name].values.tolist(), strict=True):
            by_step.setdefault(step, {})[name] = value
    rows = [[f"{step:,}", *(_cell(told.get(name)) for name in names)] for step, told in by_step.items()]
    rows = rows[-MOST_ROWS:]
    left_out = len(by_step) - len(rows)
    caption = f"Validations of {run.name}" + (f"; the first {left_out:,} are left out." if left_out else ".")
    return Table(["Step", *map(title_of, names)], rows, caption)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _shortened(name: str) -> str:
    """For a chart's key."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)
