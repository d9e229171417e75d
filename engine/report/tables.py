"""What is told of runs in words: what was trained, what came out, what warned, and what differs."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.progress import duration
from engine.provenance.compare import ABSENT, compare_all
from engine.report.runs import ReportedRun
from engine.report.sections import Part, Section, Table
from engine.report.words import results_among, scorer_of, title_of

PRETRAINING = {"task_mask_lm": "masked words", "task_matched": "matching captions", "task_qa": "questions"}
WEIGHTS = ("load_lxmert", "load_lxmert_qa")  # flags of fine-tuning that name a checkpoint
SCORE_FILES = "_score.json"  # which launch/predict.py writes, behind the split's name
LISTED = 50  # warnings, of each run
NAMED = 5  # lines that can't be read


def head(runs: Sequence[ReportedRun]) -> Section:
    """What was trained, on what, and how that ended."""
    rows = [[title, *(_told(run, tell) for run in runs)] for title, tell in HEAD.items()]
    known = [row for row in rows if set(row[1:]) != {ABSENT}]
    table = Table(["", *(run.name for run in runs)], known)
    return Section("What was trained", [table, *(note for run in runs for note in _notes(run))])


def results(runs: Sequence[ReportedRun]) -> Section:
    """Every figure with the split that it is of and how it is measured."""
    rows: list[list[str]] = []
    ended_best = all(run.curves.results.best == run.curves.results.valid for run in runs)
    for when, kind, split in (
        ("best and last validation" if ended_best else "best validation", "best", "valid"),
        *([] if ended_best else [("last validation", "valid", "valid")]),
        ("last report of the training", "train", "train"),
    ):
        told = [getattr(run.curves.results, kind) for run in runs]
        rows += _rows(when, told, [_flag(run, split) for run in runs])
    for name in dict.fromkeys(path.name for run in runs for path in _score_files(run)):
        told = [_read_scores(run.folder / name) for run in runs]
        rows += _rows("prediction", told, [name.removesuffix(SCORE_FILES)] * len(runs))
    if not rows:
        return Section("Results", ["There are none yet."])
    return Section("Results", [Table(["Figure", *(run.name for run in runs), "Of the", "Split", "Measured by"], rows)])


def differences(runs: Sequence[ReportedRun]) -> Section:
    """What isn't the same in all runs."""
    found = compare_all([run.record for run in runs])
    names = [run.name for run in runs]
    parts: list[Part] = [Table([title, *names], rows) for title, rows in found.differences.items()]
    if found.same:
        parts.append(f"There is no difference in {', '.join(found.same)}.")
    if found.missing:
        parts.append(f"Not all of the runs have recorded: {', '.join(found.missing)}.")
    return Section("What differs", parts)


def warnings(runs: Sequence[ReportedRun]) -> Section | None:
    """None where there are none."""
    rows: list[list[str]] = []
    more = 0
    for run in runs:
        told = run.curves.warnings
        rows += [[run.name, f"{each['step']:,}", _rank(each), str(each.get("text", ""))] for each in told[:LISTED]]
        more += len(told[LISTED:])
    if not rows:
        return None
    caption = f"{more:,} more are in metrics.jsonl." if more else ""
    return Section("Warnings", [Table(["Run", "Step", "Rank", "Warning"], rows, caption)])


def _told(run: ReportedRun, tell: Callable[[ReportedRun], str]) -> str:
    try:
        return tell(run)
    except (AttributeError, TypeError, ArithmeticError):  # what run.json has there is of another kind
        return ABSENT


def _rows(when: str, told: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> list[list[str]]:
    """A row for each figure, with a cell for each run."""
    rows = []
    for name in results_among(name for values in told for name in values):
        split = "; ".join(dict.fromkeys(split for split, values in zip(splits, told, strict=True) if name in values))
        rows.append([title_of(name), *(_figure(values.get(name)) for values in told), when, split, scorer_of(name)])
    return rows


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else ABSENT


def _score_files(run: ReportedRun) -> list[Path]:
    return sorted(run.folder.glob(f"*{SCORE_FILES}"))


def _read_scores(path: Path) -> Mapping[str, Any]:
    """Of a file that is damaged or isn't there, none."""
    try:
        scores = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return scores if isinstance(scores, Mapping) else {}


def _notes(run: ReportedRun) -> list[str]:
    """What could not be read."""
    damaged = run.curves.damaged
    if not damaged:
        return []
    lines = "Line" if len(damaged) == 1 else "Lines"
    numbers = ", ".join(map(str, damaged[:NAMED])) + (f" and {len(damaged) - NAMED:,} more" * (len(damaged) > NAMED))
    return [f"{lines} {numbers} of metrics.jsonl of {run.name} can't be read and left out; a run may be writing one."]


def _rank(warning: Mapping[str, Any]) -> str:
    return "all" if warning.get("rank") is None else str(warning["rank"])


def _flag(run: ReportedRun, name: str) -> str:
    value = run.recorded("configuration", name)
    return ABSENT if value in (None, "") else str(value)


def _task(run: ReportedRun) -> str:
    flags = run.recorded("configuration")
    if not isinstance(flags, Mapping):
        return ABSENT
    if flags.keys() & PRETRAINING.keys():
        return "pre-training: " + ", ".join(words for flag, words in PRETRAINING.items() if flags.get(flag))
    words = list(map(str, run.recorded("command", "argv") or []))
    named = [after for word, after in pairwise(words) if word == "--task"]
    named += [word.removeprefix("--task=") for word in words if word.startswith("--task=")]
    return f"fine-tuning on {named[0] if named else 'vqa' if words else 'questions'}"


def _model(run: ReportedRun) -> str:
    return f"{_flag(run, 'clip_model_name')} and BERT ({_flag(run, 'bert')})"


def _data(run: ReportedRun, use: str) -> str:
    counts = [run.recorded("data", use, what) for what in ("sentences", "images")]
    told = f" ({counts[0]:,} sentences, {counts[1]:,} images)" if all(isinstance(n, int) for n in counts) else ""
    return _flag(run, use) + told


def _came_from(run: ReportedRun) -> str:
    """The checkpoint whose weights it took, also where a fine-tuning took them with a flag of its own."""
    told = [run.recorded("came_from"), *(run.recorded("configuration", flag) for flag in WEIGHTS)]
    return str(next(filter(None, told), ABSENT))


def _batch(run: ReportedRun) -> str:
    size = run.recorded("deepspeed", "train_batch_size")
    precision = next((name for name in ("fp16", "bf16") if run.recorded("configuration", name)), "fp32")
    return ABSENT if size is None else f"{size} samples, in {precision}"


def _machines(run: ReportedRun) -> str:
    hosts = run.recorded("hosts")
    if not isinstance(hosts, Mapping):
        return ABSENT
    ranks = sum(len(host.get("ranks") or []) for host in hosts.values())
    devices = dict.fromkeys(str(device) for host in hosts.values() for device in host.get("gpus") or [host.get("cpu")])
    machines = "1 machine" if len(hosts) == 1 else f"{len(hosts)} machines"
    return f"{ranks} {'rank' if ranks == 1 else 'ranks'} on {machines} ({', '.join(devices)})"


def _time(run: ReportedRun, name: str) -> str:
    try:
        return datetime.fromisoformat(str(run.recorded(name))).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return ABSENT


def _seconds(run: ReportedRun) -> str:
    seconds = run.record.results.get("seconds")
    starts = run.record.results.get("starts", 1)
    return ABSENT if seconds is None else duration(seconds) + (f", in {starts} starts" if starts != 1 else "")


def _progress(run: ReportedRun) -> str:
    last = run.curves.results
    step = max((told["step"] for told in (last.train, last.valid) if told), default=None)
    epochs = _flag(run, "epochs")
    return ABSENT if step is None else f"{step:,}; epoch {_figure(last.train.get('epoch'))} of {epochs}"


def _best(run: ReportedRun) -> str:
    best = run.curves.results.best
    name = "score" if "score" in best else "loss"
    if name not in best:
        return ABSENT
    return f"{name} {best[name]:.4g}, after epoch {_figure(best.get('epoch'))} (step {best['step']:,})"


def _code(run: ReportedRun) -> str:
    commit = run.recorded("code", "commit")
    return ABSENT if commit is None else str(commit)[:10] + ("" if run.recorded("code", "clean") else ", with changes")


HEAD: dict[str, Callable[[ReportedRun], str]] = {
    "Folder": lambda run: str(run.folder),
    "Task": _task,
    "Model": _model,
    "Trained on": lambda run: _data(run, "train"),
    "Validated on": lambda run: _data(run, "valid"),
    "Went on from": _came_from,
    "Optimiser step": _batch,
    "Machines": _machines,
    "Started": lambda run: _time(run, "start"),
    "Ended": lambda run: _time(run, "end"),
    "How it ended": lambda run: run.end,
    "Trained for": _seconds,
    "Came to step": _progress,
    "Best validation": _best,
    "Code": _code,
}
