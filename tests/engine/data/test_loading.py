"""Batches that are copied one ahead, with streams that only note what they are asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.data.loading import Batch, CopiedAhead

GPU = torch.device("cuda", 0)


class Tensor:
    def __init__(self, number: int, notes: list[str]) -> None:
        self.number, self.notes = number, notes

    def record_stream(self, stream: "Stream") -> None:
        self.notes.append(f"{self.number} used on {stream.name}")


class Stream:
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def wait_stream(self, other: "Stream") -> None:
        self.notes.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    current = [Stream("compute", found)]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def to(batch: Batch, device: torch.device) -> Batch:
        assert device == GPU
        found.append(f"{batch.numbers[0]} copied on {current[-1].name}")
        return batch

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", found))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(Batch, "to", to)
    return found


def loader(count: int, notes: list[str]) -> Iterator[Batch]:
    for number in range(count):
        notes.append(f"{number} read")
        inputs: dict[str, Any] = {"images": Tensor(number, notes)}
        yield Batch(inputs, [number], [])


def test_on_a_gpu_the_next_copy_is_under_way_while_a_batch_is_computed(notes: list[str]) -> None:
    for batch in CopiedAhead(loader(3, notes), GPU):
        notes.append(f"{batch.numbers[0]} computed")
    expected = ["0 read", "0 copied on side"]
    for number in range(3):
        expected += ["compute waits for side", f"{number} used on compute"]  # before another copy is on the side stream
        expected += [f"{number + 1} read", f"{number + 1} copied on side"] if number < 2 else []
        expected += [f"{number} computed"]
    assert notes == expected


def test_an_epoch_may_be_empty_or_end_early(notes: list[str]) -> None:
    assert list(CopiedAhead(loader(0, notes), GPU)) == []
    for batch in CopiedAhead(loader(5, notes), GPU):
        if batch.numbers == [1]:
            break
    assert [note for note in notes if note.endswith("read")] == ["0 read", "1 read", "2 read"]


def test_a_cpu_gets_the_batches_as_they_are_and_none_ahead() -> None:
    given = [Batch({"ids": torch.full((2,), number)}, [number], []) for number in range(3)]
    left = iter(given)
    copied = iter(CopiedAhead(left, torch.device("cpu")))
    tensor = given[0].inputs["ids"]
    assert next(copied) is given[0]
    assert given[0].inputs["ids"] is tensor
    assert next(left) is given[1]  # not read ahead
    assert list(copied) == given[2:]
