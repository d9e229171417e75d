"""Every block of README.md, CONTRIBUTING.md and docs/: commands and Python run, JSON and YAML can be read."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.documents.commands import NOT_RUN, Command, Shell, commands_of, without_comment
from tests.documents.pages import LANGUAGES, PAGES, blocks, prose

SLOW = {
    "docs/checkpoints.md": "writing an ONNX file takes about fifteen seconds",
    "docs/runs.md": "a dry run, monitors and a report take about twenty seconds",
    "docs/tasks.md": "the trainings and predictions of three tasks take about fifteen seconds",
}

WORD_FOR_WORD = ("docs/your-own-data.md",)  # test_your_own_data.py runs it, without a flag more


def commands() -> list[tuple[str, str]]:
    """The place and the words of every line that is a command."""
    found = []
    for name, path in PAGES.items():
        for block in blocks(path):
            if block.language == "bash" and not block.text.startswith("#!"):
                found += [(f"{name}, block at line {block.line}", line) for line in commands_of(block.text)]
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name, path in PAGES.items()
        if name not in WORD_FOR_WORD and any(block.language != "text" for block in blocks(path))
    ],
)
def test_every_block_runs(name: str, start_folder: Path, tmp_path: Path) -> None:
    """In the order of the page, in a folder of its own; Python behind the commands, which may make what it loads."""
    folder = Path(shutil.copytree(start_folder, tmp_path / "folder", symlinks=True))
    shell, program = Shell(folder), list[str]()
    run = {
        "bash": shell.run_block,
        "python": program.append,
        "json": json.loads,
        "yaml": lambda text: list(yaml.safe_load_all(text)),
        "text": str,
    }
    problems = []
    for block in blocks(PAGES[name]):
        try:
            run[block.language](block.text)
        except Exception as error:
            problems.append(f"{name}, block at line {block.line}: {error}")
    assert problems == []
    if program:
        shell.run_python(program)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_fenced_and_has_a_known_language(name: str) -> None:
    """Else it would not be found, and never be run."""
    left = re.findall(r"^ *```.*|(?<=\n\n)    [^ ].*", prose(PAGES[name]), re.MULTILINE)
    assert left == [], f"fence it, as one of {', '.join(LANGUAGES)}"


def test_launchers_know_the_flags_they_are_given() -> None:
    """In the other test, the warm process takes their place."""
    from deepspeed.launcher.runner import parse_args
    from torch.distributed.run import get_args_parser

    checked = {"deepspeed": 0, "torchrun": 0}
    for place, line in commands():
        command = Command.of(line)
        if command.launcher[:1] == ["deepspeed"]:
            parsed = parse_args(command.words[1:])
            assert (parsed.user_script, parsed.user_args) == (command.program, command.flags), place
        elif command.launcher[:1] == ["torchrun"]:
            parsed = get_args_parser().parse_args(command.words[1:])
            assert (parsed.training_script, parsed.training_script_args) == (command.program, command.flags), place
        else:
            continue
        checked[command.launcher[0]] += 1
    assert min(checked.values()) > 0


def test_what_is_not_run_is_in_the_documents() -> None:
    lines = {without_comment(line) for _, line in commands()}
    assert [line for line in NOT_RUN if line not in lines] == []
