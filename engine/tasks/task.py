"""What a task adds to a training; everything else is engine/training, the same for all."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from tokenizers import Tokenizer

from engine.commands import command
from engine.configuration.flags import TrainingConfig
from engine.data.annotations.formats.table import places_of
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.dataset import ImageTextDataset
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import ImageSource
from engine.data.splits import Split, open_images, read_split
from engine.distributed.ranks import Ranks
from engine.distributed.sharing import share_on_node
from engine.errors import UserError
from engine.printing import note

if TYPE_CHECKING:  # flags are checked, and --help answers, before anything heavy is imported
    from engine.checkpoint.state import SavedState
    from engine.data.loading import Batch
    from engine.data.trained_on import TrainedOn

Config = TypeVar("Config", bound=TrainingConfig)


class Judge:
    """Sees every batch of a validation with the model's output, for what means over batches don't tell."""

    metric: str | None = None  # of the report; the model with the highest is kept as BEST

    def see(self, batch: "Batch", output: Any) -> None: ...

    def report(self) -> tuple[dict[str, Any], str]:
        """More entries of the validation's record, and a text for the eye. Every rank calls it, and gets the same."""
        return {}, ""


class Task(ABC, Generic[Config]):
    """Data, model, and validation of one kind of training. Each rank makes one, before the ranks have joined."""

    config_class: ClassVar[type[TrainingConfig]]
    architecture: ClassVar[str]  # of engine.checkpoint.description.MODELS
    epoch_weights: ClassVar[bool] = False  # write EpochNN_LXRT.pth with each epoch's checkpoint
    best_and_last: ClassVar[bool] = False  # keep the models BEST and LAST
    with_new_answers: ClassVar[str] = f"`{command('convert')} --new_answers FILE` makes a head for them"

    training: ImageTextDataset
    validation: ImageTextDataset | None
    answers: list[str] | None  # of the answer head's rows; None for a model without one

    def __init__(self, config: Config, tokenizer: Tokenizer, ranks: Ranks) -> None:
        """Read the answers; `read` is for the data, which may take minutes."""
        self.config, self.ranks, self.opened = config, ranks, 0
        self.encoder = TextEncoder(tokenizer)
        self.data_root = Path(config.data_root)
        self.cache = Path(config.cache_dir or self.data_root / "cache")
        self.read_answers()

    @property
    def fine_tuned_on(self) -> str | None:
        """Its name in engine.tasks.named, which checkpoints store; None for pre-training."""
        return None

    @abstractmethod
    def read_answers(self) -> None:
        """Set `answers`."""

    @abstractmethod
    def source(self, names: str, split: str) -> AnnotationSource:
        """The annotation files of a split (train or valid), as the flag of that name names them.

        Raises:
            UserError: if one is missing.
        """

    @abstractmethod
    def read_training(self) -> None:
        """Set `training`, whose sentences and image sizes are read."""

    @abstractmethod
    def read_validation(self) -> None:
        """Set `validation`."""

    def read(self) -> None:
        """Both; says what was found."""
        self.read_training()
        self.read_validation()
        if self.ranks.rank == 0:
            for dataset in filter(None, (self.training, self.validation)):
                print(dataset.split.summary, flush=True)
                note(dataset.lost_words())

    def pretrained(self, *, verified: bool = True) -> "SavedState | None":
        """Weights to begin with instead of CLIP's and BERT's, where neither --load nor --resume gives any.

        Args:
            verified: whether every byte is compared with the checkpoint's hashes.
        """
        return None

    def check_answers(self, saved: "SavedState") -> None:
        """Refuse weights whose answer head is for other answers.

        Raises:
            UserError: with what doesn't fit.
        """
        theirs, ours = saved.answers, self.answers
        if theirs and ours and not set(theirs) & set(ours):
            raise UserError(
                f"{saved.source} has learnt {len(theirs):,} answers, such as {theirs[0]!r}, and none of them is among "
                f"the {len(ours):,} of this training's answer table, such as {ours[0]!r}; restore the table that it "
                f"was trained with, or begin with new answers: {self.with_new_answers}"
            )

    def check_start(self, trained_on: "TrainedOn") -> None:
        """Refuse to begin, once the data are read, from weights that have seen them.

        Raises:
            UserError: with what doesn't fit.
        """

    def unused(self) -> dict[str, str]:
        """Parts of a checkpoint that the model doesn't take, as the beginnings of names, each with the reason."""
        return {}

    def kept_answers(self, saved: "SavedState") -> list[str] | None:
        """Of an answer head that stays in the model, though this task doesn't train it."""
        return None

    def set_up(self, model: Any) -> None:
        """Set what is no part of the model's description."""

    def judge(self) -> Judge:
        return Judge()

    def chance(self) -> dict[str, float]:
        """What metrics come to by always giving the most frequent answer, for those that should soon be better."""
        return {}

    @abstractmethod
    def next_command(self, checkpoint: Path, best: Path | None) -> list[str]:
        """Program and flags that one is likely to start when the training has come to its end.

        Args:
            checkpoint: the newest one.
            best: the best model, for a task that keeps it, or else the last one.
        """

    def flags_of_data(self) -> list[str]:
        """Where this training found the data that the next one needs, too, unless that is the usual place."""
        return ["--data_root", self.config.data_root] * (self.config.data_root != TrainingConfig.data_root)

    def open_split(
        self,
        source: AnnotationSource,
        images: ImageSource,
        allow_missing_images: bool | None,
        categories: Sequence[str] | None = None,
        *,
        answered_only: bool = False,
        answers_needed: bool = True,
    ) -> Split:
        """Read once for all ranks of a machine.

        Args:
            categories: those to keep; None for all.
            allow_missing_images, answered_only, answers_needed: see read_split.
        """
        first = self.ranks.rank == 0
        self.opened += 1  # the same files may be trained on and validated on
        return share_on_node(
            self.ranks,
            f"{self.opened} {source.name}",
            lambda: read_split(
                source,
                images,
                self.cache,
                allow_missing_images=allow_missing_images,
                categories=categories,
                most_images=self.config.most_images,
                answered_only=answered_only,
                answers_needed=answers_needed,
                progress=first,
            ),
        )

    def images(self, source: AnnotationSource) -> ImageSource:
        """Where those of a split come from."""
        config = self.config
        shape = ImageShape(config.image_size_min, config.image_size_max, config.orient_after_resize)
        places = places_of(source.files)
        return open_images(self.data_root, config.image_store, shape, config.image_decoder, places)
