"""A run's metrics in TensorBoard, CSV files, W&B and Comet are those of metrics.jsonl, also after a kill."""

import contextlib
import csv
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import deepspeed.comm
import numpy as np
import pytest
import torch

from engine.checkpoint.manifest import complete_checkpoints, read_manifest
from engine.model.metrics import MetricSums
from engine.tasks.pretraining import PretrainConfig
from engine.training.loop import TrainState
from engine.training.observers import reporter
from engine.training.reports.metrics import Metrics
from engine.training.reports.monitors import Monitors, run_id, values
from tests.conftest import launch, session_members, small_tmpfs, start

Curves = dict[str, list[tuple[int, float]]]
RECORDS: list[dict[str, Any]] = [
    {"kind": "train", "epoch": 0.5, "step": 2, "loss": 0.1, "lr": 1e-4, "skipped_steps": 0},
    {"kind": "train", "epoch": 1, "step": 4, "loss": 1 / 3, "lr": 2e-4, "skipped_steps": 1},
    {"kind": "train", "epoch": 1, "step": 4, "loss": 0.7, "lr": 2e-4, "skipped_steps": 1},  # of left-over micro-batches
    {
        "kind": "valid",
        "epoch": 1,
        "step": 4,
        "loss": 1e30,
        "by_type": {"yes/no": 0.25, "how many": {"x": 1}},
        "text": "a",
    },
    {"kind": "warning", "step": 4, "rank": 1, "text": "this rank holds up the others"},  # whose number is no metric
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's monitors ask for the rank."""
    monkeypatch.setattr(deepspeed.comm, "get_rank", lambda: 0)


def curves(records: list[dict[str, Any]], rounded: Callable[[float], float] = float) -> Curves:
    """The points (step, value) of each tag."""
    found: Curves = {}
    for record in (record for record in records if record["kind"] != "warning"):
        for tag, value in values(record).items():
            found.setdefault(tag, []).append((record["step"], rounded(value)))
    return found


def in_event_files(folder: Path) -> Curves:
    """As TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # all of them
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def in_csv_files(folder: Path) -> Curves:
    """By the names of the files, in which a tag's strokes are underscores."""
    found = {}
    for path in folder.glob("*.csv"):
        (word, _), *rows = csv.reader(path.read_text().splitlines())
        assert word == "step"
        found[path.stem] = [(int(step), float(value)) for step, value in rows]
    return found


def in_wandb_file(folder: Path) -> list[dict[str, Any]]:
    """The rows of an offline run, from its log: blocks of 32 KiB with parts of messages, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("*.wandb")
    log, at, message, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(log):
        if (left := -at % 32768) and left < 7:
            at += left
            continue
        length, kind = struct.unpack("<4xHB", log[at : at + 7])
        message += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole one, or the last part
            record = Record.FromString(message)
            message = b""
            if record.WhichOneof("record_type") == "history":
                items = {"".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def assert_shown(output: Path) -> list[dict[str, Any]]:
    """Event files hold each value of metrics.jsonl in fp32, and CSV files with all digits; gives the records."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert records
    assert in_event_files(output / "tensorboard") == curves(records, lambda value: float(np.float32(value)))
    expected = {tag.replace("/", "_"): points for tag, points in curves(records).items()}
    assert in_csv_files(output / "csv") == expected
    return records


def write(output: Path, records: list[dict[str, Any]]) -> None:
    output.mkdir(exist_ok=True)
    (output / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_tags_are_paths_and_values_are_numbers() -> None:
    assert values(RECORDS[0]) == {"train/epoch": 0.5, "train/loss": 0.1, "train/lr": 1e-4, "train/skipped_steps": 0}
    valid = {"valid/epoch": 1, "valid/loss": 1e30, "valid/by_type/yes_no": 0.25, "valid/by_type/how_many/x": 1}
    assert values(RECORDS[3]) == valid
    assert values({"kind": "train", "step": 1, "told": True, "nothing": None}) == {}


def test_local_files_hold_what_was_reported(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    with Monitors({"tensorboard": {}, "csv": {}}, tmp_path) as monitors:
        for record in RECORDS:
            monitors.hear(record)
        assert_shown(tmp_path)  # while it goes on, too


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    """Even in a TensorBoard that has read the steps that are done again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Monitors({"tensorboard": {}, "csv": {}}, tmp_path) as monitors:
        for record in RECORDS:
            monitors.hear({**record, "loss": 9.0})
    open_since = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    open_since.Reload()
    assert len(open_since.Scalars("train/loss")) == 3
    with Monitors({"tensorboard": {}, "csv": {}}, tmp_path) as monitors:
        monitors.restart(RECORDS[:1])
        for record in RECORDS[1:]:
            monitors.hear(record)
    write(tmp_path, RECORDS)
    assert_shown(tmp_path)
    open_since.Reload()
    assert [event.value for event in open_since.Scalars("train/loss")] == [np.float32(v) for v in (0.1, 1 / 3, 0.7)]


def test_another_place_is_the_runs_own(tmp_path: Path) -> None:
    """Two runs of one DeepSpeed JSON, which names it, leave each other's files alone."""
    settings = {"output_path": str(tmp_path / "shared"), "job_name": "ours"}
    for _ in range(2):  # the second time as a resumed run
        for name in ("one", "two"):
            (tmp_path / name).mkdir(exist_ok=True)
            with Monitors({"tensorboard": settings, "csv": settings}, tmp_path / name) as monitors:
                monitors.hear(RECORDS[0])
    folders = [tmp_path / "shared" / f"ours-{run_id(tmp_path / name)[:8]}" for name in ("one", "two")]
    assert sorted((tmp_path / "shared").iterdir()) == sorted(folders)
    for folder in folders:
        assert in_event_files(folder)["train/loss"] == [(2, np.float32(0.1))]
        assert in_csv_files(folder)["train_loss"] == [(2, 0.1)]


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {"MODE": "offline", "CONSOLE": "off", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    import wandb

    yield wandb
    wandb.teardown()


def test_wandb_offline_has_a_row_for_each_step(
    tmp_path: Path, wandb_offline: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """First as a whole; then as W&B goes on that has a part of step 2, its last one: it comes again, at the next."""
    with Monitors({"wandb": {"project": "other"}}, tmp_path) as monitors:
        run = wandb_offline.run
        for record in RECORDS:
            monitors.hear(record)
    assert (run.id, run.name, run.group, run.project) == (run_id(tmp_path), tmp_path.name, tmp_path.name, "other")
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    rows = in_wandb_file(folder)
    assert [row["_step"] for row in rows] == [2, 4]
    assert [rows[0].get(tag) for tag in ("train/loss", "train/lr", "valid/loss")] == [0.1, 1e-4, None]
    assert [rows[1].get(tag) for tag in ("train/loss", "train/lr", "valid/loss")] == [0.7, 2e-4, 1e30]

    monkeypatch.setattr(wandb_offline.Run, "starting_step", 3)
    with Monitors({"wandb": {}}, tmp_path) as monitors:
        assert wandb_offline.run.id == run.id
        monitors.restart([{**RECORDS[0], "step": 1}])
        for record in RECORDS:
            monitors.hear(record)
    [folder] = {*(tmp_path / "wandb").glob("offline-run-*")} - {folder}
    rows = in_wandb_file(folder)
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(3, 0.1), (4, 0.7)]
    assert "warning" not in capfd.readouterr().out


class FakeComet:
    """Of comet_ml, what DeepSpeed's monitor uses."""

    __version__ = "3.58.8"

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.logged: Curves = {}
        self.name, self.ended, self.fails = "", 0, False

    def start(self, **settings: Any) -> "FakeComet":
        self.starts.append({**settings, "auto_logging_off": os.environ["COMET_DISABLE_AUTO_LOGGING"]})
        return self

    def set_name(self, name: str) -> None:
        self.name = name

    def __internal_api__log_metric__(self, *, name: str, value: float, step: int) -> None:
        if self.fails:
            raise RuntimeError("the network is gone\nand more")
        self.logged.setdefault(name, []).append((step, value))

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def comet(monkeypatch: pytest.MonkeyPatch) -> FakeComet:
    fake = FakeComet()
    monkeypatch.setitem(sys.modules, "comet_ml", fake)  # type: ignore[arg-type]
    return fake


def test_comet_gets_every_number_and_goes_on_with_the_same_experiment(tmp_path: Path, comet: FakeComet) -> None:
    with Monitors({"comet": {"workspace": "ours"}}, tmp_path) as monitors:
        for record in RECORDS[:2]:
            monitors.hear(record)
    with Monitors({"comet": {"workspace": "ours"}}, tmp_path) as monitors:
        monitors.restart(RECORDS[:2])
        for record in RECORDS[2:]:
            monitors.hear(record)
    assert comet.logged == curves(RECORDS)
    assert comet.name == tmp_path.name
    assert comet.ended == 2
    first, second = comet.starts
    assert first == second
    expected = {"project": "clipvil", "workspace": "ours", "mode": "get_or_create", "experiment_key": run_id(tmp_path)}
    assert expected.items() <= first.items()
    assert first["auto_logging_off"] == "1"
    assert "COMET_DISABLE_AUTO_LOGGING" not in os.environ
    assert len(run_id(tmp_path)) == 32


def test_a_tool_that_fails_is_told_once_and_switched_off(
    tmp_path: Path, comet: FakeComet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it opens, as W&B does without a key, or later on."""
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    write(tmp_path, RECORDS)
    with Monitors({"comet": {}, "wandb": {}, "tensorboard": {}, "csv": {}}, tmp_path) as monitors:
        for number, record in enumerate(RECORDS):
            comet.fails = number > 0
            monitors.hear(record)
    assert_shown(tmp_path)
    assert comet.logged == curves(RECORDS[:1])
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [warning.split(" ")[1] for warning in warnings] == ["wandb", "comet"]
    assert warnings[1] == (
        "warning: comet gets no more metrics (the network is gone); the training and metrics.jsonl go on"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_full_disk_ends_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        small_tmpfs(tmp_path / "small", "64k"),
        Monitors({"tensorboard": {}, "csv": {}}, tmp_path / "small") as monitors,
    ):
        monitors.hear(RECORDS[0])
        with contextlib.suppress(OSError), (tmp_path / "small" / "other").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        for step in range(3, 1000):  # what has begun a block may still fill it
            monitors.hear({**RECORDS[0], "step": step})
    assert monitors.open == {}
    warnings = sorted(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
    assert [line.split(" ")[1] for line in warnings] == ["csv", "tensorboard"]
    assert all("No space left on device" in line for line in warnings)


def test_nothing_is_written_between_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is written are numbers, for which nobody waits."""
    monkeypatch.setattr(reporter.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(reporter.dist, "is_initialized", lambda: False)
    written: list[int] = []
    optimizer = SimpleNamespace(
        overflow=False, optimizer=SimpleNamespace(param_groups=[{"schedule": "warmup", "lr": 1e-4}])
    )
    engine: Any = SimpleNamespace(
        optimizer=optimizer,
        global_rank=0,
        get_global_grad_norm=lambda: 1.0,
        skipped_steps=0,
        module=torch.nn.Linear(1, 1),
        device=torch.device("cpu"),
    )
    monkeypatch.setattr(reporter.dist, "all_gather_object", lambda found, mine: None)

    class Loader(list[int]):
        batch_sampler = range(12)
        seconds = 0.0

    config = PretrainConfig(output=str(tmp_path), report_step=4, gradient_accumulation_steps=2, epochs=1)
    metrics = Metrics(torch.device("cpu"))
    with Monitors({"csv": {}}, tmp_path) as monitors:
        csv_files = monitors.open["csv"]
        monkeypatch.setattr(csv_files.master, "write_events", lambda events: written.append(state.step))
        told = reporter.Reporter(engine, config, Loader(range(12)), metrics, [monitors])  # type: ignore[arg-type]
        state, seen = TrainState(), []
        for number in range(1, 13):
            state.batches, state.step = number, number // 2
            metrics.add(MetricSums(("mask_lm_loss",), torch.tensor([[1.0, 1.0]])))
            told.after_micro_step(state, Batch(), number % 2 == 0)
            seen.append(len(written))
    assert written == [2, 4, 6]
    assert seen == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


class Batch:
    unreadable: tuple[str, ...] = ()
    inputs: ClassVar[dict[str, list[int]]] = {"images": [0]}

    def __len__(self) -> int:
        return 1


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_curves(
    flags: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL between two checkpoints: steps that were reported are done again, and each is there once."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "run"
    common = flags("--batchSize", "8", "--report_step", "1", "--save_step", "5", "--keep", "1", "--epochs", "100")
    common += ["--monitor", "tensorboard,csv,wandb", "--resume", "auto"]
    process = start("launch/pretrain.py", common, ranks=1)

    def reported() -> int:
        path = output / "metrics.jsonl"
        return json.loads(path.read_text().splitlines()[-1])["step"] if path.exists() and path.stat().st_size else 0

    def saved() -> int:
        return max((read_manifest(path)["step"] for path in complete_checkpoints(output)), default=0)

    try:
        deadline = time.monotonic() + 90
        while not 0 < saved() < reported():
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    again, before = saved(), reported()
    assert again < before
    identity = run_id(output)
    run = launch("launch/pretrain.py", [*common, "--max_steps", str(before + 3)], ranks=1, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert f"after step {again}" in run.stdout
    records = assert_shown(output)
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, before + 4))
    assert run_id(output) == identity
    rows = in_wandb_file(sorted((output / "wandb").glob(f"offline-run-*-{identity}"))[-1])
    losses = {row["_step"]: row["train/loss"] for row in rows}
    assert losses == dict(curves(records)["train/loss"])
