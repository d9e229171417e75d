import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from engine.data.annotations.columns import ColumnWriter, DamagedFile, SharedColumns
from tests.conftest import in_shared_memory, left_in_shared_memory

COLUMNS = {
    "small": np.arange(7, dtype=np.uint8),
    "words": np.arange(5, dtype=np.uint16) * 13000,
    "scores": np.array([0.3, 1.0]),
    "none": np.zeros(0, dtype=np.uint32),
}


@pytest.fixture
def path(tmp_path):
    writer = ColumnWriter({name: array.dtype.str for name, array in COLUMNS.items()}, tmp_path)
    for name, array in COLUMNS.items():
        for part in np.array_split(array, 3):  # columns grow side by side
            writer.append(name, part)
    with (tmp_path / "columns").open("wb") as file:
        writer.finish(file, {"key": "k"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["columns"]
    return tmp_path / "columns"


def assert_columns(columns):
    for name, array in COLUMNS.items():
        assert columns[name].dtype == array.dtype
        assert np.array_equal(columns[name], array)


def test_columns_come_back_with_their_types_and_the_header(path):
    columns = SharedColumns.load(path)
    assert_columns(columns)
    assert columns.header["key"] == "k"
    assert columns.nbytes == path.stat().st_size


def test_columns_made_of_arrays():
    assert_columns(SharedColumns.of(COLUMNS))


def test_every_flipped_byte_is_noticed(path):
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DamagedFile):
            SharedColumns.load(path)


def test_every_truncation_is_noticed(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFile):
            SharedColumns.load(path)


def test_bytes_at_the_end_are_noticed(path):
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DamagedFile, match="bytes, not"):
        SharedColumns.load(path)


def test_memory_is_sealed_and_has_no_name(path):
    before = in_shared_memory()
    columns = SharedColumns.load(path)
    assert left_in_shared_memory(before) == set()
    with pytest.raises(PermissionError):
        os.pwrite(columns.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(columns.descriptor, 10)
    with pytest.raises(ValueError, match="read-only"):
        columns["words"][0] = 1


def test_what_becomes_of_the_file_does_not_matter_any_more(path):
    columns = SharedColumns.load(path)
    path.write_bytes(b"")
    assert_columns(columns)


def check_and_tell(columns, memory, pipe):
    assert_columns(columns)
    pipe.send(os.fstat(columns.descriptor).st_ino == memory)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_get_the_memory_itself(path, method):
    columns = SharedColumns.load(path)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=check_and_tell, args=(columns, os.fstat(columns.descriptor).st_ino, there))
    worker.start()
    assert here.poll(60)
    assert here.recv()
    worker.join(60)
    assert worker.exitcode == 0


def test_descriptors_are_closed_with_the_last_reference(path):
    """A training that reads many splits in one process must not run out of them."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        SharedColumns.load(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
