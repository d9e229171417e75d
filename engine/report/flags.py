"""The flags of launch/report.py."""

from dataclasses import dataclass, field

from transformers.hf_argparser import HfArg

from engine.configuration.parsing import parse_command
from engine.errors import UserError


@dataclass
class ReportConfig:
    """Write a page about runs that have trained or are training: curves, results, and what differs between them."""

    runs: list[str] = field(init=False, metadata={"help": "folders that trainings have written (--output)"})
    output: str | None = HfArg(default=None, help="folder of report.html and its pictures; if not given, RUN/report")
    pictures: bool = HfArg(default=True, help="show what the model makes of images that it wasn't trained on")
    questions: int = HfArg(default=500, help="held-out examples to try the model on, at most")
    data_root: str | None = HfArg(default=None, help="where the data are now; if not given, where the run had them")
    batch_size: int = HfArg(default=32, help="held-out examples at a time")
    seed: int = HfArg(default=9595, help="of the draws of held-out examples and of the cells that the model reads")

    def check(self) -> None:
        for name in ("questions", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name} {value}: at least 1 is needed")


def parse_report(argv: list[str]) -> ReportConfig:
    """Raises UserError for an unknown flag or value."""
    config = parse_command(ReportConfig, argv)
    config.check()
    return config
