"""What a rank did since the last report, what a report says of it, and what a checkpoint keeps."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.data.loading import Batch
from engine.training.reports import pace
from engine.training.reports.pace import ForwardTimer, Pace, Share, speeds


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one reports what this one does."""
    monkeypatch.setattr(pace.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(pace.dist, "all_gather_object", lambda shares, mine: shares.__setitem__(slice(2), [mine, mine]))


def new_pace() -> Pace:
    engine = SimpleNamespace(module=torch.nn.Linear(1, 1), device=torch.device("cpu"))
    return Pace(engine, SimpleNamespace(seconds=5.0))


def batch(sentences: int, images: int) -> Batch:
    return Batch({"images": torch.zeros(images, 3, 1, 1)}, [0] * sentences, [])


@pytest.mark.usefixtures("two_ranks")
def test_images_and_samples_of_all_ranks_and_the_wait_for_data(clock: Clock) -> None:
    rank: Any = new_pace()
    for _ in range(4):
        rank.count(batch(sentences=8, images=2))
    rank.batches.seconds += 3.0
    clock.now += 10
    shares = rank.gather()
    found = speeds(shares, accumulation=2)
    assert found.pop("peak_memory_gb") > 0.05  # Python and torch
    assert found == {
        "images_per_second": 1.6,
        "samples_per_second": 6.4,
        "seconds_per_step": 5.0,
        "data_wait": 0.3,
    }
    rank.start()
    assert (rank.samples, rank.images, rank.micro_batches) == (0, 0, 0)
    clock.now += 1
    assert rank.gather()[0].waited == 0


def test_a_report_is_about_all_ranks() -> None:
    """Here the ranks' images were estimated differently, and one waited and took more."""
    one = Share(10.0, 80, 30, 5, waited=1.0, forward=0.1, peak_memory=3.0)
    two = Share(11.0, 80, 50, 5, waited=5.5, forward=0.1, peak_memory=4.0)
    assert speeds([one, two], 1) == {
        **{"images_per_second": 4.0, "samples_per_second": 8.0, "seconds_per_step": 2.0},
        **{"data_wait": 0.3, "peak_memory_gb": 4.0},
    }


@pytest.mark.usefixtures("two_ranks")
def test_a_checkpoint_goes_on_counting(clock: Clock) -> None:
    rank: Any = new_pace()
    rank.count(batch(8, 2))
    rank.batches.seconds += 1.0
    clock.now += 4
    state = rank.state_dict()
    assert state == {"samples": 16, "images": 4, "micro_batches": 1, "seconds": 4.0, "waited": 1.0}
    other: Any = new_pace()
    other.load_state_dict(state)
    clock.now += 2
    other.batches.seconds += 0.5
    assert other.state_dict() == {**state, "seconds": 6.0, "waited": 1.5}


@pytest.mark.usefixtures("two_ranks")
def test_a_checkpoint_of_an_earlier_version_goes_on_counting() -> None:
    """It has sentences under the name of images."""
    rank = new_pace()
    rank.load_state_dict({"images": 64, "micro_batches": 2, "seconds": 3.0})
    assert (rank.samples, rank.images, rank.micro_batches) == (64, 64, 2)


def test_forward_passes_are_timed_in_training_alone(clock: Clock) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    timer = ForwardTimer(model, torch.device("cpu"))
    seconds = iter((1.0, 5.0, 2.0))
    model[0].register_forward_hook(lambda *_: setattr(clock, "now", clock.now + next(seconds, 100.0)))
    for _ in range(3):
        model(torch.zeros(1, 1))
    model.eval()
    model(torch.zeros(1, 1))
    assert timer.take() == 2.0
    assert timer.take() == 0.0


def test_a_gpu_is_asked_when_a_report_is_made_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """With events that only note what they are asked: milliseconds, as CUDA's."""
    asked: list[str] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.number = Event.made

        def record(self) -> None:
            asked.append(f"record {self.number}")

        def synchronize(self) -> None:
            asked.append(f"wait for {self.number}")

        def elapsed_time(self, end: "Event") -> float:
            asked.append(f"{self.number} to {end.number}")
            return 100.0 * end.number

    monkeypatch.setattr(torch.cuda, "Event", Event)
    model = torch.nn.Linear(1, 1)
    timer = ForwardTimer(model, torch.device("cuda"))
    model(torch.zeros(1, 1))
    model(torch.zeros(1, 1))
    assert asked == ["record 1", "record 2", "record 3", "record 4"]
    assert timer.take() == pytest.approx((0.2 + 0.4) / 2)
    assert asked[4:] == ["wait for 4", "1 to 2", "3 to 4"]
