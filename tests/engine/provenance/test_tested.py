"""Versions that weren't tested are told, and draws that have changed are refused."""

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from engine.errors import UserError
from engine.provenance import known_draws, tested
from engine.provenance.known_draws import check_draws
from engine.provenance.tested import TESTED, check_versions
from tests.conftest import ROOT, packaging


def test_setup_asks_for_what_was_tested() -> None:
    asked = {found.name: str(found.specifier) for found in map(Requirement, packaging()["install_requires"])}
    assert {name: asked[name] for name in TESTED} == {name: f">={lowest}" for name, (lowest, _) in TESTED.items()}


def test_what_make_installs_was_tested() -> None:
    pins = re.findall(r"^([\w-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    installed = [(name, version) for name, version in pins if name in TESTED]
    assert {name for name, _ in installed} == TESTED.keys()
    for name, version in installed:
        lowest, newest = map(Version, TESTED[name])
        assert lowest <= Version(version) <= newest


# Numbers of their own, so that those of the next release change no test.
LIMITS = {
    "torch": ("2.10", "2.13.0"),
    "triton": ("3.6", "3.9.0"),
    "deepspeed": ("0.18", "0.19.8"),
    "transformers": ("5.3", "5.23.0"),
    "tokenizers": ("0.22", "0.23.3"),
    "numpy": ("1.26", "2.4.6"),
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The newest versions, but for those that are given; None stands for a library that isn't there."""

    def install(**changed: str | None) -> None:
        def version(name: str) -> str:
            if (found := ({name: newest for name, (_, newest) in LIMITS.items()} | changed)[name]) is None:
                raise PackageNotFoundError(name)
            return found

        monkeypatch.setattr(tested, "TESTED", LIMITS)
        monkeypatch.setattr(tested, "version", version)

    return install


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"torch": "2.13.7", "numpy": "2.4.99", "triton": None}, None),
        ({"torch": "2.10.0a0+b4e4ee81d3.nv25.12"}, None),
        (
            {"torch": "2.14.0.dev20261101+cu130"},
            "torch 2.14.0.dev20261101+cu130 is newer than 2.13.0, the newest that was tested",
        ),
        (
            {"numpy": "3.0.0", "transformers": "5.24.1"},
            "transformers 5.24.1 is newer than 5.23.0, the newest that was tested; "
            "numpy 3.0.0 is newer than 2.4.6, the newest that was tested",
        ),
    ],
)
def test_newer_libraries_are_told_in_one_line(
    changed: dict[str, str | None], told: str | None, install: Callable[..., None]
) -> None:
    install(**changed)
    assert check_versions() == told


def test_older_libraries_are_refused_in_one_line(install: Callable[..., None]) -> None:
    install(transformers="5.0.0", tokenizers="0.21.4", numpy="3.0.0")
    with pytest.raises(UserError) as error:
        check_versions()
    assert str(error.value) == (
        "transformers 5.0.0 is older than 5.3, the oldest that works; "
        'tokenizers 0.21.4 is older than 0.22, the oldest that works; run `pip install "transformers>=5.3" '
        '"tokenizers>=0.22"`'
    )


def test_draws_are_those_of_other_versions() -> None:
    check_draws(None)
    check_draws(torch.device("cpu"))


class Backwards(np.random.Generator):
    def shuffle(self, array: np.ndarray, axis: int = 0) -> None:  # type: ignore[override]
        array[:] = array[::-1].copy()


def test_another_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Backwards(np.random.PCG64(seed)))
    with pytest.raises(UserError) as error:
        check_draws(None)
    message = str(error.value)
    assert message.startswith(f"numpy {np.__version__} gives [")
    assert f"for an epoch's order of 8 sentences, where the tested versions give {known_draws.ORDER};" in message
    assert "\n" not in message


def test_other_cells_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_draws, "sample_cells", lambda *_: (torch.arange(8)[None], None))
    check_draws(None)
    with pytest.raises(UserError, match=rf"^torch {re.escape(torch.__version__)} gives \[0, 1, .* drawn cells of 240,"):
        check_draws(torch.device("cpu"))
