"""Tables in Parquet files."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from engine.data.annotations.formats.file import CHUNK
from engine.data.annotations.formats.table import Row, TableFile
from engine.data.images.places import file_stamp
from engine.errors import UserError
from engine.progress import Bar

ROWS = 4096  # that are read at a time


class ParquetFile(TableFile):
    """Columns of Parquet. Images are named by their paths; a column that holds the images themselves is refused."""

    format = "parquet"

    def was(self, digest: str) -> bool:
        return file_stamp(self.path) == self.stamp

    def rows(self, bar: Bar | None) -> Iterator[Row]:
        if find_spec("pyarrow") is None:
            raise UserError(f"{self.path} needs a package to be read; run `pip install pyarrow`")
        import pyarrow
        import pyarrow.parquet

        self.stamp = file_stamp(self.path)
        try:
            # Read by pages: otherwise all of a row group, often a million rows, is in memory.
            with pyarrow.parquet.ParquetFile(self.path, buffer_size=CHUNK, pre_buffer=False) as file:
                schema = file.schema_arrow
                roles = self.roles_of_all(tuple(schema.names))
                self._check_image(schema.field(roles.image).type, roles.image, pyarrow)
                columns = list(dict.fromkeys(name for name in roles if name is not None))
                share = self.size() / max(1, file.metadata.num_rows)
                self.number = 0
                for batch in file.iter_batches(ROWS, columns=columns, use_threads=False):
                    for values in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                        self.number += 1
                        yield dict(zip(columns, values, strict=True))
                    if bar is not None:
                        bar.update(share * len(batch))
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path} can't be read as Parquet ({reason}); write or copy it again") from None

    def _check_image(self, kind: Any, column: str, pyarrow: Any) -> None:
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(
                f"{self.path}: the column {column!r} holds {kind}, and paths of image files are needed; a dataset with "
                "images in it can be trained on once `datasets` has saved it: load_dataset('parquet', "
                "data_files=FILE).save_to_disk(FOLDER), then --train FOLDER"
            )
