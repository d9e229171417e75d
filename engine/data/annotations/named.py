"""What --train and --valid name: LXMERT's files, and files of one's own, each with a weight.

mscoco_train,own/captions.jsonl:0.5,shards/{00000..00099}.tar
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.commands import command
from engine.configuration.tables import AnswersConfig, TableConfig
from engine.data.annotations.answers import ANSWER_TABLE, AnswerTable
from engine.data.annotations.formats.dataset import SPLIT_NAMES, STATE, DatasetFolder
from engine.data.annotations.formats.file import AnnotationFile
from engine.data.annotations.formats.lines import CommaFile, JsonLinesFile, TabFile
from engine.data.annotations.formats.lxmert import LxmertFile
from engine.data.annotations.formats.parquet import ParquetFile
from engine.data.annotations.formats.shards import ShardFile
from engine.data.annotations.formats.table import Columns, TableFile
from engine.errors import UserError

FORMATS: dict[str, type[TableFile]] = {
    ".jsonl": JsonLinesFile,
    ".ndjson": JsonLinesFile,
    ".csv": CommaFile,
    ".tsv": TabFile,
    ".parquet": ParquetFile,
    ".tar": ShardFile,
}
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of shards


@dataclass(frozen=True)
class Part:
    """One name of a split: its files, and how often their sentences come in an epoch."""

    name: str
    files: tuple[AnnotationFile, ...]
    weight: float = 1.0


def read_names(
    names: str,
    folder: Path,
    *,
    original: type[AnnotationFile] = LxmertFile,
    file_name: str = "{}.json",
    columns: Columns | None = None,
    split: str | None = "train",
) -> tuple[Part, ...]:
    """The parts of a comma-separated list of names.

    Args:
        folder: where the original's files are, which go by their names alone.
        original: their format.
        file_name: what the file of a name is called.
        columns: of tables; None where only the original's files may be named.
        split: train or valid, for tables that have a column for it; None for all of their rows, each once.

    Raises:
        UserError: if one isn't there, or is no file of a known format.
    """
    parts = []
    for word in filter(None, names.split(",")):
        name, weight = weight_of(word)
        if weight != 1 and split != "train":
            taker = "a validation" if split == "valid" else "--pairs"
            raise UserError(f"{word}: {taker} takes each sentence once; leave out the weight behind the colon")
        if not is_own(name, folder):
            own = "name files of your own by their paths"
            if columns is None:
                own = "files of your own go there, too, and by such names"
            elif split == "valid":
                own = "name files of your own by their paths, and give --valid '' if there are none to validate on"
            parts.append(Part(name, (original(original_file(folder, name, file_name, own)),), weight))
        elif columns is None:
            raise UserError(f"{name!r} is a path, and this task takes names of files in {folder} alone")
        else:
            parts.append(Part(short_name(name), own_files(name, columns, split), weight))
    if not parts:
        raise UserError(f"{names!r} names no file in {folder}")
    return tuple(parts)


def columns_of(config: TableConfig) -> Columns:
    """What the flags say of tables."""
    return Columns(
        config.image_column,
        config.text_column,
        config.question_column,
        config.answer_column,
        config.split_column,
        config.image_root,
    )


def read_answers(config: AnswersConfig, folder: Path) -> AnswerTable:
    """The answer table of pre-training; an empty one where none is named and the folder has none.

    Only who learns to answer questions needs one.

    Args:
        folder: where the original's files are.

    Raises:
        UserError: if the table that is named isn't there, or if it is broken.
    """
    file = Path(config.answers) if config.answers is not None else folder / ANSWER_TABLE
    if not file.exists():
        if config.answers is None:
            return AnswerTable([])
        raise UserError(
            f"--answers {file} is missing; `{command('prepare')} answers --train FILES --output {file}` makes an "
            "answer table of the questions in your files"
        )
    return AnswerTable.read(file, config.qa_sets.split(",") if config.qa_sets else None)


def weight_of(word: str) -> tuple[str, float]:
    """NAME or NAME:WEIGHT."""
    name, colon, number = word.rpartition(":")
    try:
        weight = float(number) if colon and name else None
    except ValueError:
        weight = None
    if weight is None:
        return word, 1.0
    if not 0 < weight < 1000:
        raise UserError(f"{word}: a weight above 0 and below 1,000 is needed behind the colon")
    return name, weight


def is_own(name: str, folder: Path) -> bool:
    """Whether a name is a path, and not that of one of the original's files."""
    return not (folder / f"{name}.json").is_file() and ("/" in name or bool(Path(name).suffix) or Path(name).is_dir())


def original_file(folder: Path, name: str, file_name: str, own: str) -> Path:
    """Raises UserError if it isn't there, with the names of those that are and, in `own`, what else can be named."""
    file = folder / file_name.format(name)
    if not file.is_file():
        before, after = file_name.split("{}")
        paths = folder.glob(file_name.format("*"))
        names = sorted(path.name.removeprefix(before).removesuffix(after) for path in paths)
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        absent = absent_folder(folder)
        found = f"{folder} holds {', '.join(names) or 'nothing'}" if absent is None else f"there is no folder {absent}"
        raise UserError(
            f"{file} is missing; {found}{meant} See 'Real data' in README.md for where to get the files; {own}"
        )
    return file


def absent_folder(folder: Path) -> Path | None:
    """Of a data root and its folder for a task, the first that isn't there; None if both are."""
    return next((path for path in (folder.parent, folder) if not path.is_dir()), None)


def own_files(name: str, columns: Columns, split: str | None) -> tuple[AnnotationFile, ...]:
    """The files that a path, a range of shards or a pattern names."""
    paths = expanded(name)
    if missing := [path for path in paths if not path.exists()]:
        more = f", and {len(missing) - 1:,} more of {len(paths):,}" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]} is missing{more}; relative paths start from {Path.cwd()}")
    files = tuple(own_file(path, columns, split) for path in paths)
    for file in files:
        if isinstance(file, TableFile):
            file.may_be_empty = len(files) > 1
    return files


def own_file(path: Path, columns: Columns, split: str | None) -> AnnotationFile:
    """Raises UserError for what is no file of a known format."""
    if path.is_dir():
        if (path / STATE).is_file() or (path / SPLIT_NAMES).is_file():
            return DatasetFolder(path, columns, split)
        raise UserError(
            f"{path} is a folder, and no dataset that `datasets` has saved there; name a table in it, or shards, as in "
            f"'{path}/*.tar'"
        )
    if path.suffix == ".json":
        return LxmertFile(path)
    if path.suffix not in FORMATS:
        raise UserError(
            f"{path}: {path.suffix or 'no ending'!r} isn't the ending of a known format; {', '.join(FORMATS)}, and "
            ".json in LXMERT's form are read"
        )
    return FORMATS[path.suffix](path, columns, split)


def expanded(name: str) -> Sequence[Path]:
    """The paths of a range, {00000..00099}, or of a pattern with * or ?; one of any other name."""
    if found := RANGE.search(name):
        first, last = found[1], found[2]
        if int(last) < int(first):
            raise UserError(f"{name}: the range ends before it begins")
        numbers = range(int(first), int(last) + 1)
        return [Path(f"{name[: found.start()]}{n:0{len(first)}d}{name[found.end() :]}") for n in numbers]
    if "*" in name or "?" in name:
        pattern = Path(name)
        paths = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
        if not paths:
            raise UserError(f"no file is called like {name!r}; relative paths start from {Path.cwd()}")
        return paths
    return [Path(name)]


def short_name(name: str) -> str:
    """What a split is called: a file's name without its ending, for shards without their numbers, else the folder's."""
    stem = re.split(r"[{*?]", Path(name).name)[0]
    return (Path(stem).stem if stem == Path(name).name else stem.rstrip("-_.")) or Path(name).parent.resolve().name
