from types import SimpleNamespace

import pytest
import torch

import engine.distributed
from engine.distributed import Ranks, pick_device
from engine.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch):
    """An accelerator that notes which device it is told to use."""
    chosen = []
    accelerator = SimpleNamespace(
        device_name=lambda index=None: "cuda" if index is None else f"cuda:{index}",
        device_count=lambda: 2,
        set_device=chosen.append,
    )
    monkeypatch.setattr(engine.distributed, "get_accelerator", lambda: accelerator)
    return chosen


def test_each_rank_has_the_gpu_of_its_local_rank(two_gpus):
    """On the second of two nodes, global and local rank differ."""
    assert pick_device(Ranks(rank=3, world_size=4, local_rank=1, local_world_size=2)) == torch.device("cuda:1")
    assert two_gpus == [1]


def test_more_ranks_than_gpus_are_refused(two_gpus):
    with pytest.raises(UserError, match="3 ranks were started on this machine, which has 2 GPUs"):
        pick_device(Ranks(rank=2, world_size=3, local_rank=2, local_world_size=3))
    assert two_gpus == []


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}, Ranks(5, 8, 1, 4)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Ranks(5, 8, 1, 4)),
        ({}, Ranks(0, 1, 0, 1)),
    ],
    ids=["deepspeed", "torchrun", "alone"],
)
def test_ranks_are_read_from_each_launchers_environment(monkeypatch, launcher, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == expected
