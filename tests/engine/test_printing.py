"""What is printed is never a reason for a training to stop, and a quiet end for a program that only prints."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

WORK = """
import os, sys
from engine.printing import keep_printing
keep_printing()
for number in range(3):
    print("a line", number, flush=True)
    print("another", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write(f"done, {file.fileno() > 2}")
"""
PRINTS = """
from engine.distributed.leaving import telling_errors
with telling_errors():
    print("a result")
"""


def has_done(tmp_path: os.PathLike[str], redirection: str) -> bool:
    """Whether the work comes to its end, without an error and without a descriptor of a standard stream."""
    result = os.path.join(tmp_path, "result")
    program = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "$2" {redirection}; exit ${{PIPESTATUS[0]}}', sys.executable, WORK, result],
        cwd=ROOT,
        timeout=60,
    )
    with open(result) as file:
        return program.returncode == 0 and file.read() == "done, True"


@pytest.mark.parametrize(
    "redirection",
    ["2>&1 | true", "> /dev/full 2>&1", ">&- 2>&-", "2>&1 | head -n1 > /dev/null"],
    ids=["no reader", "full disk", "closed", "one that leaves"],
)
def test_work_goes_on_whatever_becomes_of_its_output(tmp_path: os.PathLike[str], redirection: str) -> None:
    assert has_done(tmp_path, redirection)


def test_what_can_be_printed_is_printed() -> None:
    command = [sys.executable, "-c", WORK, os.devnull]
    program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert program.stdout == "a line 0\na line 1\na line 2\n"
    assert program.stderr == "another\n" * 3


def test_a_program_that_only_prints_ends_quietly_with_its_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = subprocess.Popen(
        [sys.executable, "-c", PRINTS], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert program.communicate(timeout=60)[1] == ""
    assert program.returncode == 141
