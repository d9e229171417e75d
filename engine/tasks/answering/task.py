"""What all tasks with questions have in common. A task of its own says where it differs: see engine/tasks/vqa.py."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from engine.commands import command
from engine.configuration.flags import of_flags
from engine.data.annotations.answers import ANSWER_LIST, AnswerTable
from engine.data.annotations.questions.file import (
    Question,
    QuestionFile,
    QuestionId,
    check_unique,
    files_of,
    read_questions,
)
from engine.data.annotations.source import AnnotationSource
from engine.errors import UserError
from engine.printing import note
from engine.tasks.answering.dataset import QuestionDataset, QuestionOptions
from engine.tasks.answering.flags import FineTuningConfig, PredictConfig, SoftScoresConfig
from engine.tasks.answering.scoring import AnswerCollector, Scorer
from engine.tasks.task import Judge, Task

if TYPE_CHECKING:
    from engine.checkpoint.state import SavedState
    from engine.data.loading import Batch
    from engine.data.trained_on import TrainedOn
    from engine.model.question_answering import AnsweringOutput, ClipVilForQuestionAnswering

Config = TypeVar("Config", bound=FineTuningConfig)
SoftConfig = TypeVar("SoftConfig", bound=SoftScoresConfig)


class AnsweringJudge(Judge):
    """The score of all questions of the validation."""

    metric = "score"

    def __init__(self, scorer: Scorer, answers: list[str]) -> None:
        self.scorer, self.answers = scorer, answers
        self.collector = AnswerCollector()

    def see(self, batch: "Batch", output: "AnsweringOutput") -> None:
        self.collector.see(batch, output)

    def report(self) -> tuple[dict[str, Any], str]:
        questions = self.scorer.questions
        best = self.collector.gather(len(questions)).answers[:, 0].tolist()
        score = self.scorer.score({q.question_id: self.answers[row] for q, row in zip(questions, best, strict=True)})
        return score, self.scorer.table(score)


class AnsweringTask(Task[Config], Generic[Config]):
    """Questions about images, which the trunk under an answer head chooses an answer for.

    Its class alone is all that a prediction needs of a task.
    """

    architecture = "question_answering"
    best_and_last = True
    with_new_answers = "--load_lxmert takes the trunk alone"
    files: ClassVar[type[QuestionFile]]
    predict_class: ClassVar[type[PredictConfig]] = PredictConfig
    refuses_seen_images: ClassVar[bool] = True  # to score questions about images that were trained on
    one_of_all: ClassVar[bool] = False  # exactly one answer is right
    config_class: ClassVar[type[FineTuningConfig]]
    training: QuestionDataset
    validation: QuestionDataset | None

    @classmethod
    def scorer(cls, config: Any, questions: list[Question], files: Sequence[QuestionFile]) -> Scorer:
        """What answers to these questions are worth.

        Args:
            config: of a training or of a prediction.
            files: where the questions are from.

        Raises:
            UserError: if something that the score needs is missing.
        """
        return Scorer(questions)

    @staticmethod
    @abstractmethod
    def result(question_id: QuestionId, answer: str) -> dict[str, Any]:
        """An answer as it stands in the file of predictions, which for some tasks a server takes."""

    @classmethod
    def rows_flag(cls, data_root: Path) -> str:
        """How to tell launch/convert.py which answers the head of the original's model is for."""
        return f"--answers {data_root / cls.files.folder / ANSWER_LIST}"

    @property
    def fine_tuned_on(self) -> str:
        return self.files.folder

    def read_answers(self) -> None:
        self.table = self.files.answers(self.data_root, ",".join(self.config.splits.values()))
        self.answers = self.table.answers

    def source(self, names: str, split: str) -> AnnotationSource:
        return AnnotationSource(self.files.parts(names, self.data_root), self.encoder, self.table)

    def read_training(self) -> None:
        config, source = self.config, self.source(self.config.train, "train")
        self.training = self._read(source, config.allow_missing_images, answered_only=self.files.answered_only)

    def read_validation(self) -> None:
        config = self.config
        self.validation = None
        if config.valid:
            source = self.source(config.valid, "valid")
            self.validation = self._read(source, allow_missing_images=None)
            files = files_of(source.parts)
            questions = read_questions(files)
            if questions[0].label is None:
                raise UserError(f"--valid {config.valid} has no labels to score; {command('predict')} predicts it")
            asked = set(self.validation.sentences.question_ids.tolist())  # --tiny leaves some out
            self.judged = self.scorer(config, [q for q in questions if q.number in asked], files)

    def _read(
        self, source: AnnotationSource, allow_missing_images: bool | None, *, answered_only: bool = False
    ) -> QuestionDataset:
        images = self.images(source)
        split = self.open_split(source, images, allow_missing_images, answered_only=answered_only)
        check_unique(split.sentences.question_ids, files_of(source.parts), source.name)
        options = of_flags(QuestionOptions, self.config, num_answers=len(self.table))
        return QuestionDataset(split, images, self.encoder.vocabulary, options)

    def pretrained(self, *, verified: bool = True) -> "SavedState | None":
        from engine.checkpoint.formats.original import OriginalState
        from engine.checkpoint.state import open_checkpoint
        from engine.checkpoint.weights import HEAD

        config = self.config
        path = config.load_lxmert_qa or config.load_lxmert
        if path is None:
            return None
        saved = open_checkpoint(path, self.ranks, optimizers=False, verified=verified)
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
            told = trained_on.check_unseen(self.validation.split, images_too=self.refuses_seen_images)
            if self.ranks.rank == 0:
                note(told)

    def unused(self) -> dict[str, str]:
        from engine.checkpoint.weights import HEAD

        unused = {"cls.": "the heads for masked words and matching, which fine-tuning has no use for"}
        if (path := self.config.load_lxmert) is not None:
            unused[HEAD] = f"the answer head; --load_lxmert_qa {path} takes it, too"
        return unused

    def judge(self) -> Judge:
        return AnsweringJudge(self.judged, self.table.answers)

    def next_command(self, checkpoint: Path, best: Path | None) -> list[str]:
        """Predict the questions of the leaderboard if they are there, else those that were validated on."""
        files, config = self.files, self.config
        handed_in = self.data_root / files.folder / files.file_name.format(files.leaderboard)
        test = files.leaderboard if handed_in.is_file() else config.valid or files.leaderboard
        flags = ["--task", files.folder, "--load", str(best or checkpoint), "--test", test]
        if config.data_root != self.config_class().data_root:
            flags += ["--data_root", config.data_root]
        return ["predict", *flags]


TaskClass = type[AnsweringTask[Any]]


class SoftScoresTask(AnsweringTask[SoftConfig], Generic[SoftConfig]):
    """Several answers to a question may be right, each with a score: the loss is the binary cross entropy of each."""

    def set_up(self, model: "ClipVilForQuestionAnswering") -> None:
        model.loss_scale = len(self.table) if self.config.loss_scale == 1 else self.config.loss_scale
        model.best_answer_only = self.config.mce_loss


def paths_of(flag: str | None) -> list[Path]:
    """Those that a flag names, with commas between them."""
    return [Path(path) for path in (flag or "").split(",") if path]
