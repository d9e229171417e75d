"""The commands of the documents, run as they are printed, with little data and small models in place of large ones.

All words of a command reach the real program. What differs from the page is in the tables below, with the reason.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

from tests.conftest import ROOT, environment, launch

# Flags that follow those of a page. A training has a model of a few layers, which a CPU trains in a second, with the
# shape of the checkpoints in the folder (`start_folder` in conftest.py), and takes one step; workers take longer to
# start than they save. Nothing is fetched.
SMALL_MODEL = "--clip_model_name tiny --clip_weights RN50.pt --sub_feat_num 5 --pos_num 3 --image_size_min 64"
SMALL_MODEL += " --image_size_max 96 --max_seq_length 14"
ONE_STEP = "--fp16 false --batch_size 8 --global_batch_size 16 --sentences_per_image 1 --max_steps 1 --num_workers 0"
MORE = {
    "launch/pretrain.py": f"{SMALL_MODEL} {ONE_STEP}",
    "launch/finetune.py": f"{SMALL_MODEL} {ONE_STEP}",
    "launch/finetune_vqa.py": f"{SMALL_MODEL} {ONE_STEP}",
    "launch/predict.py": "--num_workers 0",
    "launch/predict_vqa.py": "--num_workers 0",
    "launch/prepare.py download": "--dry-run",
    "launch/prepare.py answers": "--force",  # the folder has all lists
    "launch/convert.py --from lxrt": "--bert bert-base-uncased",  # else the number of heads follows from the width
}
# Programs that train: each command has its flags read as printed, and the first one of a page and task trains as well.
TRAINING = ("launch/pretrain.py", "launch/finetune.py", "launch/finetune_vqa.py")
# Programs that take minutes, or go on until they are stopped, and have tests of their own: here, their flags are read.
LONG = ("launch/demo.py", "launch/demo_own.py", "launch/app.py")
# These end with 1 if there is something to say about the data, which so few images may give them.
MAY_END_WITH_1 = ("launch/prepare.py verify", "launch/prepare.py inspect")
# Placeholders, and what somebody might write in their place.
PLACEHOLDERS = {"FLAGS": "--fp16 --batchSize 32 --lr 1e-4 --numWorkers 20 --add_zero_padding"}
# Commands of a shell that are run as they are.
SHELL = ("cp", "touch")
# Programs that fetch what they are for: the tests have no network.
FETCHING = ("pip", "docker", "hf")
# What can't be run here, and why. Each has to be in a document.
NOT_RUN = {
    "source .venv/bin/activate": "the tests have another environment",
    "source clipvil/bin/activate": "the same",
    "grep -v '^triton==' constraints.txt > tested.txt": "only pip reads what it writes",
    "pre-commit install": "it changes the checkout",
    "kill -USR2 PID": "tests/launch/test_resume.py sends this signal to a training",
    "PYTHONPATH=other python -m pytest tests/kernels": "it needs what the line above installs",
}
MOST_RANKS = 2  # on two cores


@dataclass(frozen=True)
class Command:
    """A line of a block, without the comment behind it."""

    words: list[str]
    started: int | None  # place of the word that names the program or module
    into: str | None  # file that takes what it prints

    @classmethod
    def of(cls, line: str) -> "Command":
        for name, meant in PLACEHOLDERS.items():
            line = re.sub(rf"\b{name}\b", meant, line)
        words, into = shlex.split(line, comments=True), None
        if words[-2:-1] == [">"]:
            words, into = words[:-2], words[-1]
        if words[0] == "make":
            return cls(words, None, into)
        before = zip(["", *words], words, strict=False)
        programs = (n for n, (last, word) in enumerate(before) if word.endswith(".py") or last in ("-m", "--module"))
        return cls(words, 0 if words[0].startswith("clipvil-") else next(programs, None), into)

    @property
    def program(self) -> str:
        """A file of this checkout, which an installed command stands for, a module, or a command of the shell."""
        word = self.words[self.started or 0]
        return f"launch/{word[8:].replace('-', '_')}.py" if word.startswith("clipvil-") else word

    @property
    def launcher(self) -> list[str]:
        return self.words[: self.started or 0]

    @property
    def flags(self) -> list[str]:
        return self.words[(self.started or 0) + 1 :]

    @property
    def name(self) -> str:
        """The program, with the first words of one that does several things."""
        words = {"launch/prepare.py": 1, "launch/convert.py": 2}.get(self.program, 0)
        return " ".join([self.program, *self.flags[:words]])

    @property
    def task(self) -> str:
        return " ".join([self.program, *re.findall(r"--task (\w+)", " ".join(self.flags))])

    @property
    def ranks(self) -> int:
        """As many as the launcher starts, on all machines; 8 where nothing but the machine says it."""
        words = " ".join(self.launcher)
        numbers = [int(number) for number in re.findall(r"(?:--num_gpus|--nnodes|--nproc-per-node|-n)[ =](\d+)", words)]
        if numbers:
            return numbers[0] * (numbers[1] if len(numbers) > 1 else 1)
        included = re.search(r"localhost:([\d,]+)", words)
        return len(included.group(1).split(",")) if included else 1 if self.launcher[:1] in ([], ["python"]) else 8


def commands_of(text: str) -> list[str]:
    """The lines of a block that are commands, those that go on behind a backslash in one."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", line).strip()


class Shell:
    """Runs the commands of one page, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: set[str] = set()

    def run_block(self, text: str) -> None:
        if text.startswith("#!"):  # a job file, whose programs tests/launch/test_job_files.py starts
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
            return
        for line in commands_of(text):
            if without_comment(line) not in NOT_RUN:
                self.run(Command.of(line))

    def run(self, command: Command) -> None:
        if command.program == "make":
            make(command.flags)
        elif command.program in SHELL:
            subprocess.run(command.words, cwd=self.folder, check=True)
        elif command.program in FETCHING:
            return
        elif command.started is None:
            raise AssertionError(f"tests/documents/commands.py doesn't say how to run {command.program}")
        elif command.program in TRAINING:
            self.train(command)
        elif command.program in LONG or not command.program.endswith(".py"):
            self.start(["tests/documents/read_flags.py", *command.words[command.started or 0 :]], 1)
        else:
            more = shlex.split(MORE.get(command.name, ""))
            codes = (0, 1) if command.name in MAY_END_WITH_1 else (0,)
            self.start([command.program, *command.flags, *more], min(command.ranks, MOST_RANKS), codes)

    def train(self, command: Command) -> None:
        size = {"WORLD_SIZE": str(command.ranks), "LOCAL_SIZE": str(command.ranks), "RANK": "0", "LOCAL_RANK": "0"}
        printed = self.start([command.program, *command.flags, "--print_config"], 1, variables=size)
        if command.into is not None:
            (self.folder / command.into).write_text(printed)
        if command.task not in self.trained and not {"--print_config", "--dry_run"}.intersection(command.flags):
            self.trained.add(command.task)
            # The folders that the page names hold the checkpoints that its other commands read.
            more = [*shlex.split(MORE[command.program]), "--output", f"trained/{len(self.trained)}"]
            self.start([command.program, *command.flags, *more], min(command.ranks, MOST_RANKS))

    def start(
        self,
        words: list[str],
        ranks: int,
        codes: tuple[int, ...] = (0,),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Run a program, see it end well, and get what it printed."""
        script, *flags = words
        with patch.dict(os.environ, variables):
            run = launch(script, flags, ranks=ranks, launcher="warm", folder=self.folder)
        told = f"{run.stdout[-500:]}{run.stderr[-2000:]}"
        assert run.code in codes, f"{shlex.join(words)}\nended with code {run.code}:\n{told}"
        return run.stdout

    def run_python(self, blocks: list[str]) -> str:
        """Those of a page as one program, since a block may use the names of earlier ones; what it printed."""
        # What transformers copies of a model's code stays in this folder, too.
        first = 'import transformers.dynamic_module_utils as code\n\ncode.HF_MODULES_CACHE = "modules"\n'
        (self.folder / "blocks.py").write_text("\n".join([first, *blocks]))
        return self.start([str(self.folder / "blocks.py")], 1)


def make(words: list[str]) -> None:
    """That Make knows the targets, and the Makefile the variables."""
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert not is_variable or re.search(rf"\$\({name}\)|\$\(if \$\({name}\)|,{name}\)", text), f"make {word}"
    run = subprocess.run(["make", "-n", *words], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
