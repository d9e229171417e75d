"""What messages tell somebody to type works from the folder that they are in."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from engine import commands
from tests.conftest import ROOT

FILE = str(ROOT / "launch" / "pretrain.py")


@pytest.mark.parametrize(
    ("started", "module", "from_checkout", "expected"),
    [
        ("launch/pretrain.py", None, True, "python launch/prepare.py"),
        (FILE, "launch.pretrain", True, "python launch/prepare.py"),
        (FILE, None, False, f"python {ROOT / 'launch' / 'prepare.py'}"),  # a checkout that isn't installed
        (FILE, "launch.pretrain", False, "clipvil-prepare"),  # -m, of an editable installation
        ("/env/bin/clipvil-pretrain", None, False, "clipvil-prepare"),
        ("ask.py", None, False, "clipvil-prepare"),  # a program of one's own that imports the engine
    ],
)
def test_commands_are_those_that_are_there(
    started: str,
    module: str | None,
    from_checkout: bool,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT if from_checkout else tmp_path)
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", module and ModuleSpec(module, None))
    assert commands.command("prepare") == expected
    words = commands.program_words("prepare", with_launcher=True)
    assert words == (expected.split()[1:] if "python" in expected else ["-m", "launch.prepare"])
    assert expected in commands.usage("    python launch/prepare.py sizes")
