"""Fine-tuning on VQA v2: questions with soft scores for the answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.hf_argparser import HfArg

from engine.configuration.flags import TrainingConfig, of_flags
from engine.data.annotations.answers import AnswerTable, ExactAnswers
from engine.data.annotations.named import read_names
from engine.data.annotations.questions import Question, QuestionFile, check_unique, read_questions
from engine.data.annotations.source import AnnotationSource
from engine.errors import UserError
from engine.tasks.answering.dataset import QuestionDataset, QuestionOptions
from engine.tasks.answering.scoring import AnswerCollector, score_answers, score_table
from engine.tasks.task import Judge, Task

if TYPE_CHECKING:
    from engine.checkpoint.state import SavedState
    from engine.data.loading import Batch
    from engine.data.trained_on import TrainedOn
    from engine.model.question_answering import AnsweringOutput, ClipVilForQuestionAnswering


@dataclass
class VqaConfig(TrainingConfig):
    """Everything that launch/finetune_vqa.py takes."""

    train: str = HfArg(default="train,nominival", help="annotation files in data/vqa/")
    valid: str = HfArg(default="minival", help="annotation files to score after each epoch; '' for none")
    output: str = HfArg(default="snap/vqa/run", help="folder for BEST, LAST, checkpoints and metrics.jsonl")
    aspect_ratio_group_factor: int = HfArg(default=0, help="as in pre-training, where it is 5; 0: by orientation alone")
    load_lxmert: str | None = HfArg(
        aliases=["--loadLXMERT"], default=None, help="pre-trained checkpoint to take the trunk from"
    )
    load_lxmert_qa: str | None = HfArg(
        aliases=["--loadLXMERTQA"], default=None, help="pre-trained checkpoint to take the trunk and answers from"
    )
    loss_scale: float = HfArg(default=1.0, help="factor of the mean loss; 1 for the number of answers, as the original")
    mce_loss: bool = HfArg(aliases=["--mceLoss"], default=False, help="cross entropy of a question's best answer")
    human_answers: str | None = HfArg(
        default=None, help="official annotation files with ten answers a question, for the official accuracy"
    )
    allow_trained_on: bool = HfArg(default=False, help="score questions or images that were trained on")

    def check(self, world_size: int) -> None:
        super().check(world_size)
        if not 0 < self.loss_scale < float("inf"):
            raise UserError(f"--loss_scale {self.loss_scale}: a number above 0 is needed")
        starts = ["load", "load_lxmert", "load_lxmert_qa"]
        given = [name for name in starts if getattr(self, name) is not None] + ["fromScratch"] * self.from_scratch
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} exclude each other; drop one (with a recipe: --NAME '')")
        if self.human_answers and not self.valid:
            raise UserError("--human_answers are for the validation; add --valid, or leave them out")


class VqaJudge(Judge):
    """The score of all questions of the validation."""

    metric = "score"

    def __init__(self, questions: list[Question], answers: list[str]) -> None:
        self.questions, self.answers = questions, answers
        self.collector = AnswerCollector()

    def see(self, batch: "Batch", output: "AnsweringOutput") -> None:
        self.collector.see(batch, output)

    def report(self) -> tuple[dict[str, Any], str]:
        best = self.collector.gather(len(self.questions)).answers[:, 0].tolist()
        chosen = {q.question_id: self.answers[row] for q, row in zip(self.questions, best, strict=True)}
        score = score_answers(self.questions, chosen)
        return score, score_table(score)


class Vqa(Task[VqaConfig]):
    """Questions with soft scores for the answers, on VQA's annotations."""

    config_class = VqaConfig
    architecture = "question_answering"
    best_and_last = True
    training: QuestionDataset
    validation: QuestionDataset | None

    def read_answers(self) -> None:
        self.table = ExactAnswers.of_task(self.data_root / "vqa")
        self.answers = self.table.answers

    def source(self, names: str, split: str) -> AnnotationSource:
        parts = read_names(names, self.data_root / "vqa", original=QuestionFile)
        return AnnotationSource(parts, self.encoder, self.table)

    def read_training(self) -> None:
        self.training = self._read(self.config.train, "train", allow_missing_images=self.config.allow_missing_images)

    def read_validation(self) -> None:
        config = self.config
        self.validation = None
        if config.valid:
            self.validation = self._read(config.valid, "valid", allow_missing_images=False)
            human_answers = [Path(path) for path in (config.human_answers or "").split(",") if path]
            files = [file.path for file in self.source(config.valid, "valid").files]
            questions = read_questions(files, human_answers)
            asked = set(self.validation.sentences.question_ids.tolist())  # --tiny leaves some out
            self.questions = [question for question in questions if question.question_id in asked]
            if self.questions[0].label is None:
                raise UserError(f"--valid {config.valid} has no labels to score; launch/predict_vqa.py predicts it")

    def _read(self, names: str, which: str, *, allow_missing_images: bool) -> QuestionDataset:
        config, source = self.config, self.source(names, which)
        images = self.images(source)
        split = self.open_split(source, images, allow_missing_images)
        check_unique(split.sentences.question_ids, names)
        options = of_flags(QuestionOptions, config, num_answers=len(self.table))
        return QuestionDataset(split, images, self.encoder.vocabulary, options)

    def pretrained(self, *, verified: bool = True) -> "SavedState | None":
        from engine.checkpoint.formats.original import OriginalState
        from engine.checkpoint.state import open_checkpoint
        from engine.checkpoint.weights import HEAD

        config, first = self.config, self.ranks.rank == 0
        path = config.load_lxmert_qa or config.load_lxmert
        if path is None:
            return None
        saved = open_checkpoint(path, optimizers=False, verified=verified, progress=first)
        if config.load_lxmert_qa is None:
            return saved
        rows = saved.state.get(f"{HEAD}logit_fc.3.bias") if isinstance(saved, OriginalState) else None
        if isinstance(saved, OriginalState) and rows is not None:  # its files don't name their answers
            table = AnswerTable.read(self.data_root / "lxmert" / "all_ans.json")
            if len(table) != len(rows):
                raise UserError(
                    f"{saved.source} has an answer head of {len(rows):,} rows, {table.name} {len(table):,} answers; "
                    "put the table there that it was pre-trained with"
                )
            saved.answers = table.answers
        if saved.answers is None:
            raise UserError(f"{saved.source} has no answer head; take a stage-two checkpoint, or use --load_lxmert")
        return saved

    def check_answers(self, saved: "SavedState") -> None:
        config = self.config
        if config.load is not None and saved.answers not in (None, self.answers):
            found = len(saved.answers or ())
            raise UserError(
                f"{saved.source} answers with {found:,} answers that are not the {len(self.table):,} of "
                f"{self.table.name}; restore the list that it was trained with, or use --load_lxmert_qa {config.load}, "
                "which goes by the answers' names"
            )
        if config.load_lxmert is None:  # which doesn't take the head
            super().check_answers(saved)

    def check_start(self, trained_on: "TrainedOn") -> None:
        if self.validation is not None and not self.config.allow_trained_on:
            trained_on.check_unseen(self.validation.split)

    def unused(self) -> tuple[str, ...]:
        from engine.checkpoint.weights import HEAD

        return ("cls.", HEAD) if self.config.load_lxmert is not None else ("cls.",)

    def set_up(self, model: "ClipVilForQuestionAnswering") -> None:
        model.loss_scale = len(self.table) if self.config.loss_scale == 1 else self.config.loss_scale
        model.best_answer_only = self.config.mce_loss

    def judge(self) -> Judge:
        return VqaJudge(self.questions, self.table.answers)

    def next_command(self, checkpoint: Path, best: Path | None) -> list[str]:
        """Predict the questions of the leaderboard if they are there, else those that were validated on."""
        test = "test" if (self.data_root / "vqa" / "test.json").is_file() else self.config.valid or "minival"
        flags = ["--load", str(best or checkpoint), "--test", test]
        if self.config.data_root != VqaConfig().data_root:
            flags += ["--data_root", self.config.data_root]
        return ["launch/predict_vqa.py", *flags]
