"""prepare.py inspect: what is in data of one's own, before a training."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from transformers.hf_argparser import HfArg

from engine.configuration.tables import AnswersConfig, TableConfig
from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.formats.file import AnnotationFile
from engine.data.annotations.formats.table import places_of
from engine.data.annotations.named import columns_of, read_answers, read_names
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import ImageFolder
from engine.data.inspection.advice import advice
from engine.data.inspection.images import ImageTable, look_at_images, oddest
from engine.data.inspection.report import describe_images, describe_texts, print_found
from engine.data.inspection.sheet import ENDINGS, Font, read_font, write_sheet
from engine.data.inspection.texts import TextReader, TextTable, bar_of, texts_to_show
from engine.data.preparation import PrepareConfig, Summary, print_problems
from engine.errors import UserError
from engine.files import check_writable

PICTURES = 24  # on the sheet, drawn by the seed
ODD_PICTURES = 2  # of each kind


@dataclass
class PrepareInspect(AnswersConfig, TableConfig, PrepareConfig):
    """Show what is in tables, tar shards, saved datasets or LXMERT's files, and what a training would make of it."""

    files: list[str] = field(init=False, metadata={"help": "as for --train, with commas or spaces between them"})
    split: Literal["train", "valid"] = HfArg(default="train", help="rows to read, of tables with a column for splits")
    bert: str = HfArg(default="bert-base-uncased", help="folder or hub name; gives the vocabulary")
    do_lower_case: bool | None = HfArg(default=None, help="as in training")
    max_seq_length: int = HfArg(default=20, help="as in training: tokens per sentence, [CLS] and [SEP] included")
    image_size_min: int = HfArg(default=384, help="as in training: short side of the padded image, in pixels")
    image_size_max: int = HfArg(default=640, help="as in training: long side of the padded image, in pixels")
    aspect_ratio_group_factor: int = HfArg(default=5, help="as in training: 2 k + 2 groups of aspect ratio")
    max_images: int | None = HfArg(default=None, help="decode only so many images, drawn by --seed; all if not given")
    seed: int = HfArg(default=0, help="of the draws of images")
    sheet: str | None = HfArg(
        default=None, help="picture sheet to write, .jpg or .png; with --json NAME.json it is NAME.pictures.jpg"
    )
    font: str | None = HfArg(default=None, help="font file for the sheet, where the usual one lacks your letters")

    @property
    def sheet_file(self) -> Path | None:
        if self.sheet is None:
            return None if self.json is None else Path(self.json).with_suffix(".pictures.jpg")
        return Path(self.sheet)

    def check(self) -> None:
        for name, least in (("max_seq_length", 3), ("image_size_min", 1), ("aspect_ratio_group_factor", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: at least {least} is needed")
        if self.image_size_max < self.image_size_min:
            raise UserError(f"--image_size_max {self.image_size_max} is less than --image_size_min")
        if self.max_images is not None and self.max_images < 1:
            raise UserError(f"--max_images {self.max_images}: at least 1 is needed")
        if self.sheet_file is not None:
            if self.sheet_file.suffix.lower() not in ENDINGS:
                raise UserError(f"--sheet {self.sheet_file}: one of {', '.join(ENDINGS)} is needed as its ending")
            if self.json is not None and self.sheet_file == Path(self.json):
                raise UserError(f"--sheet {self.sheet_file} and --json {self.json} are one file; give them two names")
            check_writable(self.sheet_file)


def prepare_inspect(config: PrepareInspect) -> Summary:
    """What is in the files; `problems` is what keeps a training from starting, or makes it leave something out."""
    font = read_font(config.font)
    folder = Path(config.data_root, "lxmert")
    names = ",".join(config.files)
    parts = read_names(names, folder, columns=columns_of(config), split=config.split)
    answers = read_answers(config, folder)
    reader, positions = text_reader(config, answers)
    files = read_files([file for part in parts for file in part.files], reader)
    images = ImageFolder(
        Path(config.data_root), ImageShape(config.image_size_min, config.image_size_max), places=places_of(files)
    )
    texts = TextTable(reader)
    pictures = look_at_images(images, texts.names, numbers_to_look_at(len(texts.names), config))
    sampled = texts_and_sheet(config, files, images, texts, pictures, font)
    summary: Summary = {
        "files": names,
        "texts": describe_texts(reader, texts, config.max_seq_length, sampled),
        "images": describe_images(images.shape, texts, pictures, config.aspect_ratio_group_factor),
        "sheet": None if config.sheet_file is None else str(config.sheet_file),
        "seed": config.seed,
    }
    kinds = (
        *(reader.broken_files, reader.broken_rows, reader.broken_texts),
        *(pictures.missing_lines, pictures.unreadable_lines),
    )
    summary["problems"] = [line for kind in kinds for line in kind.lines]
    summary["advice"] = advice(summary, config.max_seq_length, positions)
    print_found(summary)
    print_problems(summary["problems"])
    print(f"\n{summary['advice']}")
    return summary


def text_reader(config: PrepareInspect, answers: AnswerTable) -> tuple[TextReader, int]:
    """What reads texts in the words of --bert, and how many positions this model has."""
    from engine.configuration.bert import read_bert  # brings transformers' tokenisers, which takes seconds

    bert, tokenizer = read_bert(config.bert, config.do_lower_case)
    return TextReader(TextEncoder(tokenizer), answers), bert.max_position_embeddings


def read_files(files: Sequence[AnnotationFile], reader: TextReader) -> list[AnnotationFile]:
    """Read all of them; returns those that could be read at least in part.

    Raises:
        UserError: if none could.
    """
    useful = []
    for file in files:
        before = len(reader.hashes)
        with bar_of(file, "reading") as bar:
            reader.read(file, bar)
        if len(reader.hashes) > before:
            useful.append(file)
    if not useful:
        lines = [*reader.broken_rows.lines, *reader.broken_texts.lines, *reader.broken_files.lines]
        raise UserError(lines[0] if lines else f"{files[0].path} has no text")
    return useful


def numbers_to_look_at(images: int, config: PrepareInspect) -> np.ndarray:
    """Of all images, or of a sample: ascending int64."""
    if config.max_images is None or config.max_images >= images:
        return np.arange(images)
    return np.sort(np.array(random.Random(config.seed).sample(range(images), config.max_images), np.int64))


def texts_and_sheet(
    config: PrepareInspect,
    files: Sequence[AnnotationFile],
    images: ImageFolder,
    texts: TextTable,
    pictures: ImageTable,
    font: Font,
) -> dict[str, int]:
    """Write the sheet; returns the captions that most images share, with how many do."""
    readable = pictures.numbers[pictures.readable].tolist()
    drawn = random.Random(config.seed).sample(readable, min(PICTURES, len(readable)))
    sample = [texts.names[number] for number in sorted(drawn)] if config.sheet_file is not None else []
    odd = oddest(pictures, texts.names, ODD_PICTURES) if config.sheet_file is not None else []
    shared = texts.shared_captions()[2]
    captions, repeated = texts_to_show(files, [*sample, *(img_id for img_id, _ in odd)], shared)
    if config.sheet_file is not None:
        headline = f"{len(sample):,} of {len(readable):,} images, drawn by seed {config.seed}"
        rows = [
            (headline, [(img_id, "", captions.get(img_id, "")) for img_id in sample]),
            ("The oddest images", [(img_id, word, captions.get(img_id, "")) for img_id, word in odd]),
        ]
        write_sheet(config.sheet_file, images, rows, font)
    return {text: shared[hashed] for hashed in shared if (text := repeated.get(hashed)) is not None}
