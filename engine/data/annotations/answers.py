"""The answer table of LXMERT, and how a raw answer is normalised before it is looked up."""

import json
from array import array
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from engine.errors import UserError

ANSWER_TABLE = "all_ans.json"  # of pre-training
ANSWER_LIST, ANSWER_ROWS = "trainval_label2ans.json", "trainval_ans2label.json"  # of a task
ARTICLES = ("a ", "an ", "the ")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SYNONYMS = {
    **{word: str(number) for number, word in enumerate(NUMBERS, start=1)},
    "grey": "gray",
    # Only a second article gets here: "the a man".
    **{f"{article}{person}": person for article in ("a ", "the ") for person in ("man", "woman")},
}


def normalise_answer(answer: str) -> str:
    """Lower case, no final full stop, no leading article, digits for the numbers up to ten.

    Articles go in the order a, an, the, each at most once: "a an apple" becomes "apple", "the an apple" "an apple".
    """
    answer = answer.lower()
    if answer.endswith("."):
        answer = answer[:-1].strip()
    for article in ARTICLES:
        if answer.startswith(article):
            answer = answer[len(article) :].strip()
    return SYNONYMS.get(answer, answer)


def read_json(path: Path) -> object:
    """A JSON file's content, or one line that says where it is broken."""
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        reason = f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
        raise UserError(f"{reason}; download the file again or mend that line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, byte {error.start}: not UTF-8; download the file again") from None
    except OSError as error:
        raise no_such_file(path, error) from None


def no_such_file(path: Path, error: OSError) -> UserError:
    """What to say of a data file that can't be opened or read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing; see 'Real data' in README.md for where to get it")
    return UserError(f"{path} can't be read: {error.strerror}")


class AnswerTable:
    """The answers that the QA head can give, in the order of their ids."""

    def __init__(self, answers: Iterable[str], name: str = "the answer table") -> None:
        self.name = name  # for messages
        self.answers = list(answers)
        self.ids = {answer: number for number, answer in enumerate(self.answers)}
        if len(self.ids) != len(self.answers):
            raise ValueError("an answer occurs twice in the table")

    @classmethod
    def read(cls, path: Path, qa_sets: Iterable[str] | None = None) -> "AnswerTable":
        """Read `all_ans.json`: [{"ans": str, "dsets": [str, ...]}, ...], or the answers of some data sets in it.

        A plain list of answers will do, too.
        """
        entries = read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path}: a list of answers was expected, found {type(entries).__name__}")
        if entries and all(isinstance(entry, str) for entry in entries):
            entries = [{"ans": entry, "dsets": sorted(qa_sets or ())} for entry in entries]
        wanted = None if qa_sets is None else set(qa_sets)
        answers = []
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("ans"), str):
                raise UserError(f"{path}, item {number}: the field 'ans' is missing or no text")
            if wanted is None or wanted & set(entry.get("dsets") or ()):
                answers.append(entry["ans"])
        if not answers:
            of = f" of the data sets {', '.join(sorted(wanted))}; check --qaSets" if wanted else "; download it again"
            raise UserError(f"{path} has no answer{of}")
        try:
            return cls(answers, str(path))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def __len__(self) -> int:
        return len(self.answers)

    def label(self, scores: dict[str, float]) -> dict[int, float]:
        """Raw answers with scores to ids with scores; unknown answers are dropped.

        As in the original, an answer that had to be normalised overwrites one that reads so already, and goes to the
        end of the order if there is none: the order decides which answer a draw picks.
        """
        kept = dict(scores)
        for answer in scores:
            normalised = normalise_answer(answer)
            if normalised not in self.ids:
                del kept[answer]
            elif normalised != answer:
                kept[normalised] = kept.pop(answer)
        return {self.ids[answer]: score for answer, score in kept.items()}


class ExactAnswers(AnswerTable):
    """The answers of a fine-tuning, which labels name exactly as the list does."""

    @classmethod
    def of_task(cls, folder: Path) -> "ExactAnswers":
        """`trainval_label2ans.json`, [answer, ...], and `trainval_ans2label.json`, {answer: row}, which has to agree.

        Raises:
            UserError: if one can't be read, or they disagree.
        """
        table = cls.read(folder / ANSWER_LIST)
        rows_file = folder / ANSWER_ROWS
        if rows_file.exists() and (rows := read_json(rows_file)) != table.ids:
            wrong = next((a for a, row in table.ids.items() if not isinstance(rows, dict) or rows.get(a) != row), None)
            raise UserError(
                f"{rows_file} and {table.name} disagree"
                + (f", first on {wrong!r}" if wrong is not None else "")
                + "; both have to be of one list of answers: download them again"
            )
        return cls(table.answers, table.name)

    def label(self, scores: dict[str, float]) -> dict[int, float]:
        """Answers with scores to rows with scores; unknown answers are dropped."""
        return {self.ids[answer]: score for answer, score in scores.items() if answer in self.ids}


class AnswerCounts:
    """Which answers the questions of some files have; a question takes a few bytes."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}  # a number for each answer
        self.categories: dict[str, set[str]] = {}  # in which each answer occurs
        self.given = array("I")  # the codes of all questions' answers, one question after the other
        self.ends = array("Q", [0])  # where those of each question end

    def add(self, answers: Collection[str], category: str) -> None:
        """A question with its answers, each once; one without an answer doesn't count."""
        if not answers:
            return
        for answer in answers:
            self.given.append(self.codes.setdefault(answer, len(self.codes)))
            self.categories.setdefault(answer, set()).add(category)
        self.ends.append(len(self.given))

    @property
    def questions(self) -> int:
        """How many have an answer."""
        return len(self.ends) - 1

    def frequent(self, min_count: int) -> list[str]:
        """The answers that at least so many questions have, the most frequent first, then by name.

        Raises:
            UserError: if there is none.
        """
        counts = np.bincount(self.given, minlength=len(self.codes)).tolist()
        ranked = sorted(self.codes, key=lambda answer: (-counts[self.codes[answer]], answer))
        kept = [answer for answer in ranked if counts[self.codes[answer]] >= min_count]
        if not kept:
            raise UserError(
                f"none of {len(ranked):,} answers occurs with {min_count} questions, and the most frequent one, "
                f"{ranked[0]!r}, occurs with {counts[self.codes[ranked[0]]]:,}; lower --min_count, 1 keeps all answers"
            )
        return kept

    def covered(self, answers: Iterable[str]) -> int:
        """How many questions have at least one of these answers."""
        known = np.zeros(len(self.codes), bool)
        known[[self.codes[answer] for answer in answers]] = True
        before = np.concatenate([[0], np.cumsum(known[np.asarray(self.given)])])[np.asarray(self.ends, np.int64)]
        return int(np.count_nonzero(np.diff(before)))
