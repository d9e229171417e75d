"""Fine-tuning on GQA: compositional questions, each with one answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.hf_argparser import HfArg

from engine.data.annotations.questions.file import Question, QuestionFile, QuestionId
from engine.data.annotations.questions.gqa import GqaFile
from engine.errors import UserError
from engine.tasks.answering.flags import PredictConfig, SoftScoresConfig
from engine.tasks.answering.gqa_measures import OfficialGqa, official_table
from engine.tasks.answering.scoring import Score, Scorer, score_table
from engine.tasks.answering.task import SoftScoresTask, paths_of


@dataclass
class OfficialFilesConfig:
    """What GQA's scores take."""

    official_questions: str | None = HfArg(
        default=None, help="GQA's own question files of the scored split, for its measures beside accuracy"
    )
    official_choices: str | None = HfArg(
        default=None, help="GQA's own choices files, for validity and plausibility; with --official_questions"
    )

    def check_official(self) -> None:
        """Raises UserError."""
        if self.official_choices and not self.official_questions:
            raise UserError("--official_choices belong to questions; add --official_questions, or leave them out")


@dataclass
class GqaConfig(OfficialFilesConfig, SoftScoresConfig):
    """Everything that fine-tuning on GQA takes."""

    train: str = HfArg(default="train,valid", help="annotation files in data/gqa/")
    valid: str = HfArg(default="testdev", help="annotation files to score after each epoch; '' for none")
    output: str = HfArg(default="snap/gqa/run", help="folder for BEST, LAST, checkpoints and metrics.jsonl")

    def check(self, world_size: int) -> None:
        super().check(world_size)
        self.check_official()
        if self.official_questions and not self.valid:
            raise UserError("--official_questions are for the validation; add --valid, or leave them out")


@dataclass
class PredictGqaConfig(OfficialFilesConfig, PredictConfig):
    """Answer GQA's questions with a fine-tuned model, and score the answers where the right ones are known."""

    def check(self) -> None:
        super().check()
        self.check_official()


class GqaScorer(Scorer):
    """Accuracy, and GQA's own measures where its files are at hand."""

    def __init__(self, questions: Sequence[Question], official: OfficialGqa | None) -> None:
        super().__init__(questions)
        self.official = official

    def score(self, answers: Mapping[QuestionId, str]) -> Score:
        score = super().score(answers)
        if self.official is not None:
            score["official"] = self.official.measure({str(number): answer for number, answer in answers.items()})
        return score

    def table(self, score: Score) -> str:
        table = score_table(score)
        return f"{table}\n{official_table(score['official'])}" if "official" in score else table


class Gqa(SoftScoresTask[GqaConfig]):
    """Compositional questions, on GQA's annotations. Pre-training has seen most of its images."""

    config_class = GqaConfig
    predict_class = PredictGqaConfig
    files = GqaFile
    refuses_seen_images = False

    @classmethod
    def scorer(cls, config: OfficialFilesConfig, questions: list[Question], files: Sequence[QuestionFile]) -> Scorer:
        official = None
        if config.official_questions:
            official = OfficialGqa.read(paths_of(config.official_questions), paths_of(config.official_choices))
            official.check_asked({str(question.question_id) for question in questions})
        return GqaScorer(questions, official)

    @staticmethod
    def result(question_id: QuestionId, answer: str) -> dict[str, Any]:
        return {"questionId": question_id, "prediction": answer}
