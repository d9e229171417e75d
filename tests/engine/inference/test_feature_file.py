"""A file of features: what safetensors reads, whole or not there, and refused before work starts."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from engine.errors import UserError
from engine.inference import feature_file
from engine.inference.feature_file import FeatureFile
from engine.inference.features import Column
from tests.conftest import small_tmpfs

COLUMNS = {
    "pooled": Column(torch.float16, (3,)),
    "language": Column(torch.bfloat16, (2, 3)),
    "vision": Column(torch.float32, (1, 1)),
    "cells": Column(torch.int64, (2,)),
}


def rows_of(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (100 * torch.randn(rows, *shape, generator=generator)).to(dtype)
        for name, (dtype, shape) in COLUMNS.items()
    }


def test_two_processes_write_their_rows_in_any_order(tmp_path: Path) -> None:
    values = rows_of(5)
    path = tmp_path / "new" / "features.safetensors"
    first, second = (FeatureFile(path, COLUMNS, 5, {"model": "BEST"}) for _ in range(2))
    with first, second:
        first.create()
        second.open()
        for file, rows in ((second, [4, 0]), (first, [2]), (second, [1, 3])):
            file.write(
                rows, {**{name: tensor[rows] for name, tensor in values.items()}, "grid": torch.zeros(len(rows))}
            )
        second.sync()
        first.sync()
        assert not path.exists()
        first.publish()
    assert [found.name for found in path.parent.iterdir()] == ["features.safetensors"]
    with safe_open(path, "pt") as found:
        assert found.metadata() == {"format": "pt", "model": "BEST"}
        assert set(found.keys()) == set(COLUMNS)
        for name, tensor in values.items():
            assert torch.equal(found.get_tensor(name), tensor)
            assert torch.equal(found.get_slice(name)[1:3], tensor[1:3])


def test_no_rows_make_a_file_too(tmp_path: Path) -> None:
    with FeatureFile(tmp_path / "none.safetensors", COLUMNS, 0, {}) as file:
        file.create()
        file.sync()
        file.publish()
    with safe_open(tmp_path / "none.safetensors", "pt") as found:
        assert found.get_tensor("language").shape == (0, 2, 3)


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    path.write_text("an older one")
    path.with_name(f"{path.name}.partial").write_text("what a killed run has left")
    with FeatureFile(path, COLUMNS, 5, {}) as file:  # as where a photo can't be read
        file.create()
    assert path.read_text() == "an older one"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_one_run_at_a_time_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    with FeatureFile(path, COLUMNS, 5, {}) as file:
        file.create()
        with pytest.raises(UserError, match="is in use by another process"), FeatureFile(path, COLUMNS, 5, {}) as other:
            other.create()
        assert file.partial.stat().st_size == file.size


@pytest.mark.parametrize("free", [None, 10**12])
def test_a_full_disk_is_told_of_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    """Also one that says it has room, as with a quota, and refuses it when it is asked."""
    path = tmp_path / "disk" / "features.safetensors"
    with small_tmpfs(path.parent, "1m"):
        if free is not None:
            monkeypatch.setattr(feature_file, "free_bytes", lambda folder: free)
        told = r"takes 0.038 GB, and .* GB are free; free space, .* or keep less .* such as --feature_parts pooled$"
        with pytest.raises(UserError, match=told), FeatureFile(path, COLUMNS, 10**6, {}) as file:
            file.create()
        assert os.listdir(path.parent) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = FeatureFile(tmp_path / "file" / "features.safetensors", COLUMNS, 5, {})
    with pytest.raises(UserError, match="can't be written"):
        file.create()
    with pytest.raises(UserError, match="is a folder; choose another name"):
        FeatureFile(tmp_path, COLUMNS, 5, {}).create()
    with pytest.raises(UserError, match=r"can't be opened .*; name a folder that all machines share"):
        FeatureFile(tmp_path / "features.safetensors", COLUMNS, 5, {}).open()
