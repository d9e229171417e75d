"""Datasets of Hugging Face's `datasets` that were saved to disk."""

import hashlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.data.annotations.answers import no_such_file
from engine.data.annotations.formats.table import SPLITS, Row, TableFile, name_of
from engine.data.images.places import Place, Rows, file_stamp
from engine.errors import UserError
from engine.progress import Bar

ROWS = 1024  # that are read at a time
STATE, SPLIT_NAMES = "state.json", "dataset_dict.json"  # files of a saved dataset, and of one with splits


class DatasetFolder(TableFile):
    """A Dataset, or a DatasetDict of which one split is taken. Its images are in it, or named by their paths."""

    format = "dataset"

    @property
    def folder(self) -> Path:
        """Of the one Dataset."""
        if not (self.path / SPLIT_NAMES).is_file():
            return self.path
        try:
            names = json.loads((self.path / SPLIT_NAMES).read_bytes())["splits"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.path / SPLIT_NAMES} can't be read ({error}); save the dataset again") from None
        wanted = sorted(SPLITS[self.split]) if self.split else names
        found = [name for name in names if name in wanted]
        if len(found) != 1:
            raise UserError(
                f"{self.path} has the splits {', '.join(names)}, and one of {', '.join(wanted)} is needed; name the "
                f"folder of a split, as in {self.path / names[0] if names else self.path}"
            )
        return self.path / found[0]

    @property
    def place(self) -> tuple[str, Place]:
        """Of a dataset with images in it, the images' ids are numbers of rows."""
        features = self._read("dataset_info.json").get("features") or {}
        column = self.roles_of_all(tuple(features)).image
        if features[column].get("_type") != "Image":
            return super().place
        return name_of(self.folder), Rows(self.folder, column)

    @property
    def identity(self) -> list[Any]:
        return [self.folder.name, *super().identity]

    def size(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def digest(self) -> str:
        """Of what describes the dataset, with sizes and times of the files that hold it."""
        described = [self._read("dataset_info.json"), self._read(STATE), *map(file_stamp, self._files())]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def was(self, digest: str) -> bool:
        return self.digest() == digest

    def rows(self, bar: Bar | None) -> Iterator[Row]:
        dataset = load(self.folder)
        names = tuple(dataset.column_names)
        roles = self.roles_of_all(names)
        with_images = isinstance(self.place[1], Rows)
        columns = [name for name in dict.fromkeys(roles) if name and not (with_images and name == roles.image)]
        share = self.size() / max(1, len(dataset))
        self.number = -1
        for batch in dataset.select_columns(columns).iter(ROWS):
            for values in zip(*batch.values(), strict=True):
                self.number += 1
                row = dict(zip(columns, values, strict=True))
                yield {**row, roles.image: str(self.number)} if with_images else row
            if bar is not None:
                bar.update(share * len(batch[columns[0]]))

    def _read(self, name: str) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_bytes())
        except OSError as error:
            raise no_such_file(path, error) from None
        except ValueError as error:
            raise UserError(f"{path} can't be read ({error}); save the dataset again") from None

    def _files(self) -> list[Path]:
        files = [self.folder / file["filename"] for file in self._read(STATE)["_data_files"]]
        for path in files:
            if not path.is_file():
                raise UserError(f"{path} is missing; save the dataset again")
        return files


def load(folder: Path) -> Any:
    """The dataset in a folder, with its images as they are stored.

    Raises:
        UserError: if it can't be read.
    """
    if find_spec("datasets") is None:
        raise UserError(f"{folder} is a dataset that needs a package to be read; run `pip install datasets`")
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder)).with_format(None)
    except Exception as error:  # whatever Arrow and `datasets` find
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} can't be read as a saved dataset ({reason}); save it again") from None
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset
