"""What answers are worth: gathered from all ranks, each question once, and scored over all of them.

LXMERT's score is the one that the question's label gives to the answer, 0 if it gives none. VQA's official one, where
ten human answers are known, is in engine.tasks.answering.official_accuracy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.data.annotations.questions.file import Question, QuestionId
from engine.tasks.answering.official_accuracy import accuracy

if TYPE_CHECKING:
    from engine.data.loading import Batch
    from engine.model.question_answering import AnsweringOutput

Score = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """The best answers of each question of a split, in the split's order."""

    answers: np.ndarray  # rows of the answer head, the best first, int64 (N, k)
    probabilities: np.ndarray  # fp32 (N, k)


class AnswerCollector:
    """Notes the best `top_k` answers of each question that this rank sees.

    Args:
        one_of_all: whether an answer's probability is its share among all answers, or that of being right by itself.
    """

    def __init__(self, top_k: int = 1, *, one_of_all: bool = False) -> None:
        self.top_k, self.one_of_all = top_k, one_of_all
        self.parts: list[tuple[np.ndarray, ...]] = []

    def see(self, batch: "Batch", output: "AnsweringOutput") -> None:
        scores = output.answer_scores.float()
        rows = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.top_k]
        probabilities = (scores.softmax(1) if self.one_of_all else scores.sigmoid()).gather(1, rows)
        self.parts.append((np.array(batch.numbers), rows.cpu().numpy(), probabilities.cpu().numpy()))

    def gather(self, questions: int) -> Predictions:
        """All ranks' answers, on every rank; what this one has collected starts anew.

        Raises:
            AssertionError: if a question was seen twice, or not at all.
        """
        import torch.distributed as dist  # here, since flags are checked before anything heavy is imported

        everywhere: list[Any] = [self.parts]
        if dist.is_initialized():
            everywhere = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, self.parts)
        self.parts = []
        parts = [part for of_rank in everywhere for part in of_rank]
        numbers, rows, probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(numbers, kind="stable")
        assert np.array_equal(numbers[order], np.arange(questions)), "not every question was seen exactly once"
        return Predictions(rows[order], probabilities[order])


class Scorer:
    """What answers to the questions of a split are worth. A task with measures of its own derives from it."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions

    @property
    def can_score(self) -> bool:
        """Whether the right answers are known."""
        return self.questions[0].label is not None or bool(self.questions[0].human_answers)

    def score(self, answers: Mapping[QuestionId, str]) -> Score:
        """`score`, from 0 to 1, and what else the task tells; an answer is missing where the question has none."""
        return score_answers(self.questions, answers)

    def table(self, score: Score) -> str:
        """The same for the eye."""
        return score_table(score)


def score_answers(questions: Sequence[Question], answers: Mapping[QuestionId, str]) -> Score:
    """Mean scores over all questions, one without an answer counting 0.

    Args:
        answers: by question id.

    Returns:
        `score` where the questions have labels, `official_accuracy` where they have human answers, `questions`, and
        the same by `answer_type` and by `question_type`.
    """
    worth: dict[str, list[float]] = {}
    if questions[0].label is not None:
        worth["score"] = [(q.label or {}).get(answers.get(q.question_id, ""), 0.0) for q in questions]
    if questions[0].human_answers:
        worth["official_accuracy"] = [
            accuracy(answers[q.question_id], q.human_answers) if q.question_id in answers else 0.0 for q in questions
        ]
    return {
        **_means(worth, range(len(questions))),
        "answer_type": _by([question.answer_type for question in questions], worth),
        "question_type": _by([question.question_type for question in questions], worth),
    }


def _by(kinds: Sequence[str], worth: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    members: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds):
        members.setdefault(kind, []).append(number)
    return {kind: _means(worth, numbers) for kind, numbers in sorted(members.items()) if kind}


def _means(worth: dict[str, list[float]], numbers: Sequence[int]) -> dict[str, float]:
    means = {name: float(np.mean([values[number] for number in numbers])) for name, values in worth.items()}
    return {**means, "questions": len(numbers)}


def score_table(score: Score) -> str:
    """Scores in per cent, for the eye: of all questions, by answer type, by question type."""
    names = [name for name in ("score", "official_accuracy") if name in score]
    lines = [f"{'':<40}{'questions':>10}" + "".join(f"{name.replace('_', ' '):>20}" for name in names)]
    sections: list[tuple[str, Mapping[str, Score]]] = [("", {"all": score})]
    sections += [(kind.replace("_", " "), score[kind]) for kind in ("answer_type", "question_type")]
    for title, rows in sections:
        lines += [title] if title and rows else []
        for name, row in rows.items():
            label = f"  {name}" if title else name
            lines.append(f"{label:<40}{row['questions']:>10,}" + "".join(f"{100 * row[n]:>20.2f}" for n in names))
    return "\n".join(lines)
