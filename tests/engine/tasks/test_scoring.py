from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.data.annotations.questions.file import Question
from engine.tasks.answering.scoring import AnswerCollector, score_answers, score_table

QUESTIONS = [
    Question(10, "a", "", {"red": 1.0, "blue": 0.3}, "other", "what color"),
    Question(11, "a", "", {"2": 0.9}, "number", "how many"),
    Question(12, "b", "", {}, "other", "what color"),
    Question(13, "b", "", {"yes": 1.0}, "yes/no", "is the"),
]


def batch_of(*numbers):
    return SimpleNamespace(numbers=list(numbers))


def output_of(*rows):
    return SimpleNamespace(answer_scores=torch.tensor(rows))


def test_the_score_is_over_all_questions():
    """(0.3 + 0.9 + 0 + nothing) / 4, where the original would divide by the three that were answered."""
    score = score_answers(QUESTIONS, {10: "blue", 11: "2", 12: "red"})
    assert score["score"] == pytest.approx(1.2 / 4)
    assert score["questions"] == 4
    assert score["answer_type"] == {
        "number": {"score": 0.9, "questions": 1},
        "other": {"score": pytest.approx(0.15), "questions": 2},
        "yes/no": {"score": 0.0, "questions": 1},
    }
    assert score["question_type"]["what color"] == {"score": pytest.approx(0.15), "questions": 2}
    assert "official_accuracy" not in score


def test_the_official_accuracy_where_ten_answers_are_known():
    """Two of ten people say red: 0.6. All say "A red" alike, which is compared as it is written: 0."""
    asked = [
        Question(1, "a", "", {"red": 0.6}, human_answers=("red", "red", *["blue"] * 8)),
        Question(2, "a", "", {"red": 1.0}, human_answers=("a red",) * 10),
        Question(3, "a", "", {"red": 1.0}, human_answers=("red",) * 10),
    ]
    score = score_answers(asked, {1: "red", 2: "red"})
    assert score["official_accuracy"] == pytest.approx((0.6 + 0 + 0) / 3)
    assert score["score"] == pytest.approx(1.6 / 3)
    assert score["answer_type"] == {}


def test_the_table_shows_per_cent():
    table = score_table(score_answers(QUESTIONS, {10: "red", 11: "2", 12: "red", 13: "no"}))
    assert [line.split() for line in table.splitlines()][1] == ["all", "4", "47.50"]
    assert "  yes/no" in table


def test_answers_come_in_the_order_of_the_questions_whatever_the_batches():
    collector = AnswerCollector(top_k=2)
    collector.see(batch_of(2, 0), output_of([0.0, 3.0, 1.0], [2.0, -1.0, 0.0]))
    collector.see(batch_of(1), output_of([1.0, 1.0, 0.0]))
    found = collector.gather(3)
    assert found.answers.tolist() == [[0, 2], [0, 1], [1, 2]]  # the first of two that are alike comes first
    sigmoid = 1 / (1 + np.exp(-np.array([[2.0, 0.0], [1.0, 1.0], [3.0, 1.0]])))
    assert np.allclose(found.probabilities, sigmoid)
    assert collector.parts == []


@pytest.mark.parametrize("numbers", [(0, 0), (0, 2), (0,)])
def test_a_question_seen_twice_or_never_is_no_result(numbers):
    collector = AnswerCollector()
    collector.see(batch_of(*numbers), output_of(*[[0.0, 1.0]] * len(numbers)))
    with pytest.raises(AssertionError, match="exactly once"):
        collector.gather(2)
