"""A run's metrics in TensorBoard, CSV files, W&B and Comet, by DeepSpeed's monitors.

DeepSpeed's engine would feed these by itself, but it reads the loss at each step, which waits for the device. So here
they get what goes into metrics.jsonl, when it is reported.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster
from tqdm import tqdm

from engine.configuration.monitors import TOOLS
from engine.files import replacing
from engine.provenance.results import TIMES
from engine.training.reports.listener import Listener
from engine.training.run_folder import RUN_ID, drop_csv, drop_events

Record = Mapping[str, Any]
PROJECT = "clipvil"
SHOWN = ("train", "valid")  # kinds of records; warnings have no numbers
END = "60"  # seconds for W&B's and Comet's uploads at a run's end; without a network they would try for an hour or more


class Monitor:
    """One of DeepSpeed's monitors."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        section = {TOOLS[name].section: {"enabled": True, **settings}}
        self.master = MonitorMaster(get_monitor_config(section))

    def write(self, records: Sequence[Record]) -> None:
        self.master.write_events([(tag, v, record["step"]) for record in records for tag, v in values(record).items()])

    def restart(self, records: Sequence[Record]) -> None:
        """Show these, as the records of a resumed run so far."""

    def close(self, *, failed: bool) -> None: ...


class LocalFiles(Monitor):
    """Files of a folder, which a resumed run writes anew: metrics.jsonl has lost the lines of what is done again."""

    def __init__(self, name: str, settings: Mapping[str, Any], output: Path, identity: str) -> None:
        folder = output / name
        if "output_path" in settings:
            # Runs of the same DeepSpeed JSON share it, and must not remove each other's files.
            folder = Path(settings["output_path"], f"{settings.get('job_name', output.name)}-{identity[:8]}")
        self.drop(folder)
        super().__init__(name, {"output_path": str(folder.parent), "job_name": folder.name})

    def drop(self, folder: Path) -> None:
        drop_csv(folder)

    def restart(self, records: Sequence[Record]) -> None:
        self.write(records)


class TensorBoard(LocalFiles):
    """TensorBoard's event files. One that is open drops what it has read of earlier ones."""

    def __init__(self, name: str, settings: Mapping[str, Any], output: Path, identity: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        super().__init__(name, settings, output, identity)
        self.writer = self.master.tb_monitor.summary_writer
        self.writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=0)

    def drop(self, folder: Path) -> None:
        drop_events(folder)

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class Wandb(Monitor):
    """W&B. Its steps can only grow, and it complains of others, so a resumed run leaves out what W&B has already.

    Of the last step it may have a part only, such as the report without the validation. That is shown at the next one.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], output: Path, identity: str) -> None:
        ours = {"WANDB_DIR": str(output), "WANDB_NAME": output.name, "WANDB_FINISH_TIMEOUT": END}
        ours |= {"WANDB_RUN_ID": identity, "WANDB_RESUME": "allow"}
        with patch.dict(os.environ, {**ours, **os.environ}):
            super().__init__(name, {"project": PROJECT, "group": output.name, **settings})
        import wandb

        assert wandb.run is not None
        self.first_step = wandb.run.starting_step  # that W&B doesn't have yet

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            if record["step"] >= self.first_step - 1:
                step = max(record["step"], self.first_step)
                self.master.wandb_monitor.log(values(record), step=step)  # one row; write_events takes a call for each

    def restart(self, records: Sequence[Record]) -> None:
        self.write(records)  # where W&B has none of them, as offline

    def close(self, *, failed: bool) -> None:
        import wandb

        wandb.teardown(int(failed))  # waits for its process, too, which writes the files


class Comet(Monitor):
    """Comet. It takes steps in any order, so those that a resumed run does again are there twice, the same."""

    def __init__(self, name: str, settings: Mapping[str, Any], output: Path, identity: str) -> None:
        ours: dict[str, Any] = {"project": PROJECT, "experiment_name": output.name, "experiment_key": identity}
        ours["mode"] = "get_or_create"
        ours["samples_log_interval"] = 0  # 1 would leave out the second report of a step, at an epoch's end
        environment = {"COMET_TIMEOUT_CLEANING": END, "COMET_TIMEOUT_UPLOAD": END}
        environment["COMET_DISABLE_AUTO_LOGGING"] = "1"  # it may read the loss
        with patch.dict(os.environ, {**environment, **os.environ}):
            super().__init__(name, {**ours, **settings})

    def close(self, *, failed: bool) -> None:
        self.master.comet_monitor.experiment.end()


CLASSES: dict[str, Callable[..., Monitor]] = {
    "tensorboard": TensorBoard,
    "csv": LocalFiles,
    "wandb": Wandb,
    "comet": Comet,
}


class Monitors(Listener):
    """Shows each record in the chosen tools. One that fails is told, and switched off; the training goes on."""

    def __init__(self, chosen: Mapping[str, Mapping[str, Any]], output: Path) -> None:
        """Open them.

        Args:
            chosen: settings by the tool's name; those of rank 0, and none on other ranks.
            output: the run's folder.
        """
        self.open: dict[str, Monitor] = {}
        for name, settings in chosen.items():
            with self._or_off(name):
                self.open[name] = CLASSES[name](name, settings, output, run_id(output))

    def hear(self, record: Record) -> None:
        self._each(lambda monitor: monitor.write([record] if record["kind"] in SHOWN else []))

    def restart(self, records: Sequence[Record]) -> None:
        self._each(lambda monitor: monitor.restart([record for record in records if record["kind"] in SHOWN]))

    def __enter__(self) -> "Monitors":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._each(lambda monitor: monitor.close(failed=kind is not None))

    def _each(self, work: Callable[[Monitor], None]) -> None:
        for name, monitor in list(self.open.items()):
            with self._or_off(name):
                work(monitor)

    @contextmanager
    def _or_off(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tool or its network raises
            self.open.pop(name, None)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            tqdm.write(f"warning: {name} gets no more metrics ({reason}); the training and metrics.jsonl go on")


def values(record: Record) -> dict[str, float]:
    """The numbers of a record by their tags, such as valid/by_type/yes_no; the step is their x axis."""
    own = {name: value for name, value in record.items() if name not in ("kind", "step", *TIMES)}
    return dict(_flattened(own, record["kind"]))


def _flattened(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in table.items():
        tag = prefix + "/" + re.sub(r"[^-.\w]", "_", name)  # as TensorBoard would write it, for all tools
        if isinstance(value, Mapping):
            yield from _flattened(value, tag)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield tag, value


def run_id(output: Path) -> str:
    """32 hexadecimal digits, drawn at a run's first start and kept in its folder."""
    path = output / RUN_ID
    if not path.exists():
        with replacing(path, "w") as file:
            file.write(uuid.uuid4().hex)
    return path.read_text()
