"""The files of SNLI-VE, visual entailment, as its authors publish them: an object in each line.

    {"Flickr30K_ID": "1234567890", "sentence2": "A dog waits for its owner.", "gold_label": "neutral",
     "pairID": "1234567890.jpg#0r1n", ...}

`sentence2` is the hypothesis; the premise is the image. Pairs on whose label people did not agree are labelled "-".
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from engine.data.annotations.answers import AnswerTable, ExactAnswers
from engine.data.annotations.formats.file import FieldError
from engine.data.annotations.formats.lines import JsonLinesFile
from engine.data.annotations.formats.lxmert import field
from engine.data.annotations.questions.file import Question, QuestionFile
from engine.data.images.places import FLICKR30K
from engine.errors import UserError
from engine.progress import Bar

LABELS = ("entailment", "neutral", "contradiction")  # in the order of the head's rows
NO_AGREEMENT = "-"


class EntailmentFile(QuestionFile):
    """Hypotheses about images, each with one of three labels."""

    unit: ClassVar[str] = "line"
    format: ClassVar[str] = "snli_ve"
    folder: ClassVar[str] = "snli_ve"
    file_name: ClassVar[str] = "snli_ve_{}.jsonl"
    has_list: ClassVar[bool] = False
    whole: ClassVar[Mapping[str, tuple[int, int]]] = {
        "train": (529_500, 29_783),
        "dev": (17_850, 1_000),
        "test": (17_900, 1_000),
    }
    usual_answers: ClassVar[int] = len(LABELS)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lines = JsonLinesFile(path)

    @classmethod
    def answers(cls, data_root: Path, names: str = "") -> AnswerTable:
        return ExactAnswers(LABELS, "visual entailment")

    @classmethod
    def known_answers(cls, data_root: Path) -> AnswerTable | None:
        return cls.answers(data_root)

    @staticmethod
    def cleaned(sentence: str) -> str:
        """In lower case whatever the vocabulary, as the original reads it."""
        return sentence.lower()

    def items(self, bar: Bar | None = None) -> Iterator[Any]:
        for row in self.lines.rows(bar):
            self.number = self.lines.number
            yield row

    def was(self, digest: str) -> bool:
        return self.lines.was(digest)

    def question_of(self, item: Any) -> Question | str:
        pair, label = field(item, "pairID", str), item.get("gold_label")
        if label == NO_AGREEMENT:
            return f"labelled {NO_AGREEMENT!r}"
        if label not in (None, *LABELS):
            raise FieldError(f"the gold_label {label!r} is none of {', '.join(LABELS)}")
        image = f"{FLICKR30K}:{field(item, 'Flickr30K_ID', str).removesuffix('.jpg')}"
        known = None if label is None else {label: 1.0}
        return Question(pair, image, field(item, "sentence2", str), known, answer_type=label or "")


def check_labels(order: str) -> None:
    """Raises UserError if a --label_order hasn't each label once."""
    if sorted(order.split(",")) != sorted(LABELS):
        raise UserError(f"--label_order {order}: {', '.join(LABELS)} are needed, each once, with commas between them")
