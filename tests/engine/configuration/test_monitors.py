"""--monitor: names, and packages that are missing, before anything heavy is imported."""

from pathlib import Path

import pytest

from engine.configuration import monitors
from engine.configuration.monitors import check_packages
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig


def test_an_unknown_name_is_told_with_those_that_there_are() -> None:
    PretrainConfig(monitor="csv,tensorboard").check(1)
    with pytest.raises(
        UserError, match=r"^--monitor csv,tensorbord: there is no 'tensorbord'; choose from tensorb.*comet$"
    ):
        PretrainConfig(monitor="csv,tensorbord").check(1)


def test_missing_packages_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder wandb/, where W&B keeps runs, is no package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    found = monitors.find_spec
    assert found("wandb") is not None
    check_packages(["tensorboard", "csv"])
    elsewhere = {"wandb": "no_such_package", "comet_ml": "no_such_package", "tensorboard": "json"}
    monkeypatch.setattr(monitors, "find_spec", lambda name: found(elsewhere[name]))
    with pytest.raises(UserError) as error:
        check_packages(["wandb", "tensorboard", "comet", "csv"])
    told = "--monitor needs wandb and comet_ml, which aren't installed; run `pip install wandb comet_ml`"
    assert str(error.value) == told
    with pytest.raises(
        UserError, match=r"^own\.json needs comet_ml, which isn't installed; run `pip install comet_ml`$"
    ):
        check_packages(["comet"], "own.json")
    (tmp_path / "no_such_package").mkdir()
    with pytest.raises(UserError, match=r"^--monitor needs wandb, which isn't installed; run `pip install wandb`$"):
        check_packages(["wandb", "csv"])
