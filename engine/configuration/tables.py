"""The flags of one's own tables, and of answer tables (docs/formats.md)."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg


@dataclass
class TableConfig:
    """What the columns of tables are called, for training and preparing alike."""

    image_root: str | None = HfArg(
        default=None, help="folder that image paths in tables start from; a table's own if not given"
    )
    image_column: str | None = HfArg(
        default=None, help="column of tables with paths of images, if it has no usual name"
    )
    text_column: str | None = HfArg(default=None, help="column with a caption, or a list of them")
    question_column: str | None = HfArg(default=None, help="column with a question, or a list of them")
    answer_column: str | None = HfArg(default=None, help="column with its answer, several, or answers with scores")
    split_column: str | None = HfArg(default=None, help="column that says which rows to train on, which to validate on")


@dataclass
class AnswersConfig:
    """Which answers there are."""

    answers: str | None = HfArg(
        default=None,
        help="answer table that `prepare answers` wrote, for --taskQA; DATA_ROOT/lxmert/all_ans.json if not given",
    )
    qa_sets: str | None = HfArg(aliases=["--qaSets"], default=None, help="answers of these data sets only")
