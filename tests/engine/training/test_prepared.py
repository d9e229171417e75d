"""What a training sets up before it trains."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.parsing import parse
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig, Pretraining, PretrainingOptions
from engine.training import prepared as training
from engine.training.program import RECIPES


@pytest.mark.parametrize("valid", [True, False])
def test_the_training_loader_starts_last(valid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that pins its batches lives from then on, and nobody may be forked beside it."""
    order: list[str] = []
    for name in ("training_loader", "evaluation_loader"):
        monkeypatch.setattr(training, name, lambda *_, name=name, **__: order.append(name) or name)
    dataset = SimpleNamespace(options=PretrainingOptions())
    task = SimpleNamespace(training=dataset, validation=dataset if valid else None)
    batches, validation_batches = training.make_loaders(PretrainConfig(num_workers=0), task, ALONE)
    assert (batches, validation_batches) == ("training_loader", "evaluation_loader" if valid else None)
    assert order == ["evaluation_loader"] * valid + ["training_loader"]


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that --deterministic sets is as torch has it, now and afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "unset below, so that it is restored")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for flag, value in (("deterministic", False), ("benchmark", True)):
        monkeypatch.setattr(torch.backends.cudnn, flag, value)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("flag", [["--deterministic"], []], ids=["on", "off"])
def test_deterministic_is_set_before_anything_is_read(flag: list[str], flags: Callable[..., list[str]]) -> None:
    config, _ = parse(PretrainConfig, flags("--data_root", "nowhere", *flag), RECIPES)
    with pytest.raises(UserError, match=r"nowhere.* is missing"):
        training.prepare(config, Pretraining, ALONE, deepspeed_settings(config, 1))
    chosen = bool(flag)
    assert torch.are_deterministic_algorithms_enabled() == chosen
    assert torch.is_deterministic_algorithms_warn_only_enabled() == chosen
    assert torch.utils.deterministic.fill_uninitialized_memory != chosen
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (chosen, not chosen)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if chosen else None)


@pytest.mark.usefixtures("as_before")
def test_deterministic_leaves_cublas_a_workspace_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    training.pick_device(ALONE, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
