"""Fine-tuning on VQA v2: questions with soft scores for the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.hf_argparser import HfArg

from engine.data.annotations.questions.file import Question, QuestionFile, QuestionId
from engine.data.annotations.questions.vqa import VqaFile, with_human_answers
from engine.errors import UserError
from engine.tasks.answering.flags import PredictConfig, SoftScoresConfig
from engine.tasks.answering.scoring import Scorer
from engine.tasks.answering.task import SoftScoresTask, paths_of


@dataclass
class HumanAnswersConfig:
    """What VQA's scores take."""

    human_answers: str | None = HfArg(
        default=None, help="official annotation files with ten answers a question, for the official accuracy"
    )


@dataclass
class VqaConfig(HumanAnswersConfig, SoftScoresConfig):
    """Everything that fine-tuning on VQA takes."""

    train: str = HfArg(default="train,nominival", help="annotation files in data/vqa/")
    valid: str = HfArg(default="minival", help="annotation files to score after each epoch; '' for none")
    output: str = HfArg(default="snap/vqa/run", help="folder for BEST, LAST, checkpoints and metrics.jsonl")

    def check(self, world_size: int) -> None:
        super().check(world_size)
        if self.human_answers and not self.valid:
            raise UserError("--human_answers are for the validation; add --valid, or leave them out")


@dataclass
class PredictVqaConfig(HumanAnswersConfig, PredictConfig):
    """Answer VQA's questions with a fine-tuned model, and score the answers where the right ones are known."""


class Vqa(SoftScoresTask[VqaConfig]):
    """Questions with soft scores for the answers, on VQA's annotations."""

    config_class = VqaConfig
    predict_class = PredictVqaConfig
    files = VqaFile

    @classmethod
    def scorer(cls, config: HumanAnswersConfig, questions: list[Question], files: Sequence[QuestionFile]) -> Scorer:
        return Scorer(with_human_answers(questions, files, paths_of(config.human_answers)))

    @staticmethod
    def result(question_id: QuestionId, answer: str) -> dict[str, Any]:
        return {"question_id": question_id, "answer": answer}
