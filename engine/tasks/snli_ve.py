"""Fine-tuning on visual entailment, SNLI-VE: does a hypothesis follow from an image, contradict it, or neither?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.hf_argparser import HfArg

from engine.data.annotations.questions.file import Question, QuestionFile, QuestionId
from engine.data.annotations.questions.snli_ve import LABELS, EntailmentFile, check_labels
from engine.errors import UserError
from engine.tasks.answering.flags import FineTuningConfig
from engine.tasks.answering.scoring import Score, Scorer, score_answers
from engine.tasks.answering.task import AnsweringTask

if TYPE_CHECKING:
    from engine.checkpoint.state import SavedState
    from engine.model.question_answering import ClipVilForQuestionAnswering


@dataclass
class EntailmentConfig(FineTuningConfig):
    """Everything that fine-tuning on visual entailment takes."""

    train: str = HfArg(default="train", help="annotation files in data/snli_ve/")
    valid: str = HfArg(default="dev", help="annotation files to score after each epoch; '' for none")
    output: str = HfArg(default="snap/snli_ve/run", help="folder for BEST, LAST, checkpoints and metrics.jsonl")
    label_order: str | None = HfArg(
        default=None,
        help="with --load of the original's model: which labels its head's rows are for, such as " + ",".join(LABELS),
    )

    def check(self, world_size: int) -> None:
        super().check(world_size)
        if self.load_lxmert_qa is not None:
            raise UserError(
                f"--load_lxmert_qa takes rows for answers, and visual entailment has labels; use --load_lxmert "
                f"{self.load_lxmert_qa}"
            )
        if self.label_order is not None:
            check_labels(self.label_order)
            if self.load is None:
                raise UserError("--label_order says what the rows of a model are for; add --load, or leave it out")


class EntailmentScorer(Scorer):
    """Accuracy, over all pairs and of each label, and which labels are taken for which."""

    def score(self, answers: Mapping[QuestionId, str]) -> Score:
        found = score_answers(self.questions, answers)
        confusion = {gold: dict.fromkeys(LABELS, 0) for gold in LABELS}
        for question in self.questions:
            if question.question_id in answers:
                confusion[question.answer_type][answers[question.question_id]] += 1
        overall = {name: found[name] for name in ("score", "questions")}
        return {**overall, "label": found["answer_type"], "confusion": confusion}

    def table(self, score: Score) -> str:
        """Accuracy in per cent; a row of the confusion matrix for each label, a column for each prediction."""
        lines = [f"{'':<20}{'pairs':>10}{'accuracy':>12}" + "".join(f"{name:>16}" for name in LABELS)]
        rows: list[tuple[str, Score, Mapping[str, int]]] = [("all", score, {})]
        rows += [(gold, score["label"][gold], score["confusion"][gold]) for gold in LABELS if gold in score["label"]]
        for name, row, taken_for in rows:
            counts = "".join(f"{taken_for[label]:>16,}" for label in LABELS if taken_for)
            lines.append(f"{name:<20}{row['questions']:>10,}{100 * row['score']:>12.2f}{counts}")
        return "\n".join(lines)


class VisualEntailment(AnsweringTask[EntailmentConfig]):
    """Hypotheses about images; the loss is the cross entropy of the three labels."""

    config_class = EntailmentConfig
    files = EntailmentFile
    one_of_all = True

    @classmethod
    def scorer(cls, config: Any, questions: list[Question], files: Sequence[QuestionFile]) -> Scorer:
        return EntailmentScorer(questions)

    @staticmethod
    def result(question_id: QuestionId, answer: str) -> dict[str, Any]:
        return {"pairID": question_id, "prediction": answer}

    @classmethod
    def rows_flag(cls, data_root: Path) -> str:
        return f"--label_order {','.join(LABELS)} (or in the order that it was trained with)"

    def set_up(self, model: "ClipVilForQuestionAnswering") -> None:
        model.loss_scale, model.best_answer_only = 1.0, True

    def check_answers(self, saved: "SavedState") -> None:
        """The original's file doesn't name its labels; here its rows get them, and go to ours by these."""
        from engine.checkpoint.formats.original import OriginalState
        from engine.checkpoint.weights import HEAD

        config = self.config
        if config.load is not None and isinstance(saved, OriginalState) and f"{HEAD}logit_fc.3.bias" in saved.state:
            rows = len(saved.state[f"{HEAD}logit_fc.3.bias"])
            if rows != len(LABELS):
                raise UserError(
                    f"{saved.source} has a head of {rows:,} rows, and visual entailment has {len(LABELS)} labels; "
                    f"--load_lxmert {config.load} takes the trunk alone"
                )
            if config.label_order is None:
                raise UserError(
                    f"{saved.source} doesn't say which labels its {rows} rows are for; tell their order with "
                    f"--label_order, such as {','.join(LABELS)}"
                )
            saved.answers = config.label_order.split(",")
            return
        if config.label_order is not None and config.resume is None:  # a resumed run has the flags that it began with
            raise UserError(
                "--label_order is for --load of the original's model, whose file has no labels; leave it out"
            )
        super().check_answers(saved)
