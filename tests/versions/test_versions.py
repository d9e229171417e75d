"""The combinations are allowed, and the page about versions says what became of them."""

import json
import re
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from engine.provenance.tested import TESTED
from tests.conftest import ROOT, packaging
from tests.versions.__main__ import CHECKS, pins, table
from tests.versions.combinations import COMBINATIONS

RECORD = ROOT / "docs" / "benchmarks" / "versions.json"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def asked() -> dict[str, Requirement]:
    """What setup.py requires."""
    return {found.name: found for found in map(Requirement, packaging()["install_requires"])}


def test_the_page_says_what_was_found(record: dict[str, Any]) -> None:
    assert record.keys() == COMBINATIONS.keys()
    assert table(record) in (ROOT / "docs" / "versions.md").read_text()


def test_everything_passed_with_versions_that_are_allowed(record: dict[str, Any]) -> None:
    for name, found in record.items():
        assert {check: outcome["passed"] for check, outcome in found["checks"].items()} == dict.fromkeys(CHECKS, True)
        refused = [each.name for each in asked().values() if not each.specifier.contains(found["versions"][each.name])]
        assert refused == [], name


def test_the_lowest_versions_were_tried(record: dict[str, Any]) -> None:
    """To the last number that setup.py gives."""
    tried = record["lowest"]["versions"]
    for name, requirement in asked().items():
        [bound] = requirement.specifier
        assert re.match(rf"{re.escape(bound.version)}(\.|$)", tried[name]), name


def test_a_run_warns_of_what_is_beyond_those_that_were_tried(record: dict[str, Any]) -> None:
    for name, (lowest, newest) in TESTED.items():
        tried = sorted(Version(Version(found["versions"][name]).base_version) for found in record.values())
        assert (Version(lowest), Version(newest)) == (tried[0], tried[-1]), name


def test_constraints_leave_triton_to_torch() -> None:
    assert not any(line.startswith("triton") for line in pins())
    assert any(line.startswith("torch==") for line in pins())
