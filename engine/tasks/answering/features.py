"""Features of the pairs of a split, from the model to a file: predict.py --features.

NAME.safetensors    the tensors, a row for each pair
NAME.rows.json      what each row is of: the image, the sentence and, of a task's questions, the id
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.description import ModelDescription
from engine.data.annotations.formats.file import AnnotationFile
from engine.data.annotations.questions.file import QuestionFile
from engine.errors import UserError
from engine.files import write_json_list
from engine.inference.feature_file import FeatureFile
from engine.inference.features import columns_of
from engine.tasks.answering.flags import PARTS, PredictConfig


def feature_file(
    config: PredictConfig, description: ModelDescription, source: str, dtype: torch.dtype, rows: int
) -> FeatureFile:
    """The file that --features names, which is yet to be created.

    Args:
        source: where the model is from.
        dtype: of its weights.
    """
    assert config.features is not None
    drawn = config.sub_sampling_in_evaluation and description.visual.sub_feat_num is not None
    columns = columns_of(description, dtype, sub_sampling=config.sub_sampling_in_evaluation)
    kept = {name: column for name, column in columns.items() if name not in PARTS or name in config.kept_parts}
    about = {
        "model": source,
        "pairs": config.pairs or config.test or "--question",
        "cells": f"drawn with seed {config.seed}" if drawn else "all",
    }
    return FeatureFile(Path(config.features), kept, rows, about)


def publish(file: FeatureFile, rows: Iterable[dict[str, Any]]) -> None:
    """Give the file its name, and write beside it what each row is of.

    Raises:
        UserError: if that can't be written, or there are not as many rows any more; the features stay.
    """
    names = file.path.with_suffix(".rows.json")
    names.unlink(missing_ok=True)  # so that no older one lies beside the new features
    file.publish()
    written = write_json_list(names, rows)
    if written != file.rows:
        raise UserError(
            f"{names} has {written:,} pairs, and {file.path} {file.rows:,}: the annotations changed in between; run "
            "the same command again"
        )
    print(f"wrote {file.path}, {file.rows:,} rows, and {names}")


def rows_of(files: Sequence[AnnotationFile]) -> Iterator[dict[str, Any]]:
    """What each row is of, as a stream, in the order of the files."""
    for file in files:
        if isinstance(file, QuestionFile):
            for question in file.questions():
                yield {"question_id": question.question_id, "image": question.img_id, "sentence": question.sentence}
        else:
            for texts in file.texts():
                yield from ({"image": texts.img_id, "sentence": text} for text in texts.texts)
