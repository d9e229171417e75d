"""Imports without garbage collection, and what becomes of it afterwards."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine.importing import heavy_imports
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_collection_goes_on_afterwards_without_what_was_imported() -> None:
    gc.unfreeze()
    with heavy_imports():
        assert not gc.isenabled()
        module = {"constants": [{}]}
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(held is module for held in gc.get_objects())


def test_a_program_ends_without_a_word_of_what_was_imported() -> None:
    code = "from engine.importing import heavy_imports\nwith heavy_imports(): import triton"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stderr == ""


def test_a_package_that_lacks_leaves_collection_on() -> None:
    with pytest.raises(ModuleNotFoundError), heavy_imports():
        import no_such_package  # noqa: F401
    assert gc.isenabled()
