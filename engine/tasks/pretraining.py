"""Pre-training: masked words, swapped captions and, in stage two, questions, on LXMERT's annotations."""

import random
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from transformers.hf_argparser import HfArg

from engine.commands import command
from engine.configuration.flags import TrainingConfig, of_flags
from engine.configuration.tables import AnswersConfig, TableConfig
from engine.data.annotations.answers import ANSWER_TABLE
from engine.data.annotations.named import columns_of, is_own, read_answers, read_names, weight_of
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import Vocabulary
from engine.data.dataset import ExampleOptions, ImageTextDataset
from engine.data.images.folder import ImageSource
from engine.data.sampler import Sample
from engine.data.splits import Split
from engine.errors import UserError
from engine.printing import warn
from engine.tasks.masking import IGNORE, Generator, mask_tokens, pack_labels, sample_answer
from engine.tasks.task import Task

if TYPE_CHECKING:  # flags are checked, and --help answers, before anything heavy is imported
    from engine.checkpoint.state import SavedState
    from engine.model.pretraining import ClipVilForPretraining

COUNTED_SENTENCES = 20_000
# Of the next stage and of the fine-tuning, by backbone.
RECIPES = {
    "RN50": ("rn50_stage_two", "vqa_rn50"),
    "RN50x4": ("rn50x4_stage_two", "vqa_rn50x4"),
    "tiny": ("demo_stage_two", "demo_vqa"),
}


@dataclass
class PretrainConfig(AnswersConfig, TableConfig, TrainingConfig):
    """Everything that launch/pretrain.py takes."""

    train: str = HfArg(
        default="mscoco_train,mscoco_nominival,vgnococo",
        help="annotation files in data/lxmert/, and paths of tables, shards or datasets; NAME:0.5 takes half an epoch",
    )
    valid: str = HfArg(default="mscoco_minival", help="the same, to validate on after each epoch; '' for none")
    limit_source: str | None = HfArg(
        default=None, help="sentences of these categories only, such as mscoco,vg (see docs/data.md)"
    )
    word_mask_rate: float = HfArg(aliases=["--wordMaskRate"], default=0.15, help="share of words to mask")
    long_captions: Literal["cut", "window"] = HfArg(
        default="cut", help="of a text that is longer than --max_seq_length: its beginning, or a part drawn each time"
    )
    task_mask_lm: bool = HfArg(aliases=["--taskMaskLM"], default=True, help="predict masked words")
    task_matched: bool = HfArg(aliases=["--taskMatched"], default=True, help="tell matched from swapped captions")
    task_qa: bool = HfArg(aliases=["--taskQA"], default=False, help="answer questions")

    def check(self, world_size: int) -> None:
        super().check(world_size)
        if not 0.0 <= self.word_mask_rate <= 1.0:
            raise UserError(f"--word_mask_rate {self.word_mask_rate}: a share between 0 and 1 is needed")
        if self.word_mask_rate == 0.0 and self.task_mask_lm:
            raise UserError("--word_mask_rate 0 leaves no word to predict; add --no_task_mask_lm")
        if not (self.task_mask_lm or self.task_matched or self.task_qa):
            raise UserError("no task is left; turn on one of --taskMaskLM, --taskMatched, --taskQA")


@dataclass(frozen=True)
class PretrainingOptions(ExampleOptions):
    """How sentences become examples; the flags of the same names."""

    task_mask_lm: bool = True
    task_matched: bool = True
    word_mask_rate: float = 0.15
    long_captions: str = "cut"


class Pair(NamedTuple):
    """A sentence's image and label beside its own text, or that of another sentence."""

    number: int  # of the sentence that gives the image and the label
    text_number: int

    @property
    def is_matched(self) -> bool:
        return self.number == self.text_number


class PretrainingDataset(ImageTextDataset):
    """Sentences with masked words, half of them beside an image that they don't belong to."""

    options: PretrainingOptions

    def __init__(self, split: Split, images: ImageSource, vocabulary: Vocabulary, options: PretrainingOptions) -> None:
        super().__init__(split, images, vocabulary, options)
        codes = self.sentences.images
        self.can_swap = bool(len(codes)) and bool((codes != codes[0]).any())
        self.cuts_texts = options.long_captions == "cut"

    def examples(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        generators = [
            random.Random(f"{self.options.seed}/{self.split.name}/{sample.epoch}/{sample.position}")
            for sample in samples
        ]
        pairs = [self.pair(sample.index, generator) for sample, generator in zip(samples, generators, strict=True)]
        return self.features(pairs, generators)

    def pair(self, number: int, generator: Generator) -> Pair:
        """With probability 0.5 swap the text for a sentence of another image."""
        if not self.options.task_matched or generator.random() >= 0.5 or not self.can_swap:
            return Pair(number, number)
        image, other = self.sentences.image(number), number
        while self.sentences.image(other) == image:
            other = generator.randrange(len(self.sentences))
        return Pair(number, other)

    def features(self, pairs: Sequence[Pair], generators: Sequence[Generator]) -> list[dict[str, Any]]:
        """Token ids, labels and pixels of each pair, drawn with its generator.

        An unreadable image comes back black, with no label that counts.
        """
        examples = []
        for pair, generator, img_id, text, label in zip(
            pairs, generators, *self.sentences.take([pair.number for pair in pairs]), strict=True
        ):
            example = self._masked_words(
                text if pair.is_matched else self.sentences.token_ids(pair.text_number), generator
            )
            example["matched_label"] = int(pair.is_matched) if self.options.task_matched else IGNORE
            example["ans"] = sample_answer(label, pair.is_matched, generator)
            example.update(self.pixels(pair.number, img_id))
            if example["unreadable"] is not None:
                masked_lm_labels = [IGNORE] * self.options.max_seq_length
                example.update(masked_lm_labels=masked_lm_labels, matched_label=IGNORE, ans=IGNORE)
            examples.append(example)
        return examples

    def pack(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Labels of masked words with their places, in the place of labels for all words."""
        places, labels = pack_labels(inputs["masked_lm_labels"], self.options.word_mask_rate)
        return {**inputs, "masked_positions": places, "masked_lm_labels": labels}

    def _masked_words(self, token_ids: Sequence[int], generator: Generator) -> dict[str, Any]:
        options, vocabulary = self.options, self.vocabulary
        room = options.max_seq_length - 2
        begin = 0
        if options.long_captions == "window" and len(token_ids) > room:
            begin = generator.randrange(len(token_ids) - room + 1)
        tokens = token_ids[begin : begin + room]
        masked, labels = list(tokens), [IGNORE] * len(tokens)
        if options.task_mask_lm:
            masked, labels = mask_tokens(
                tokens, generator, rate=options.word_mask_rate, mask_id=vocabulary.mask_id, vocab_size=vocabulary.size
            )
        padding = room - len(tokens)
        return {**self.words(masked), "masked_lm_labels": [IGNORE, *labels, IGNORE] + [IGNORE] * padding}


class Pretraining(Task[PretrainConfig]):
    """Masked words, swapped captions and, in stage two, questions, on LXMERT's annotations."""

    config_class = PretrainConfig
    architecture = "pretraining"
    epoch_weights = True
    training: PretrainingDataset
    validation: PretrainingDataset | None

    def read_answers(self) -> None:
        config = self.config
        folder = self.data_root / "lxmert"
        self.table = read_answers(config, folder)
        if config.task_qa and not len(self.table):
            output = Path(self.own_files[0]).parent / "answers.json" if self.own_files else None
            named = f"--answers {shlex.quote(str(output))} reads it" if output else "--answers names another"
            raise UserError(
                f"--taskQA needs an answer table, and {folder / ANSWER_TABLE} is missing; "
                f"`{answers_command(config, output)}` makes one of the questions in these files, and {named}"
            )
        self.answers = self.table.answers if config.task_qa else None

    @property
    def own_files(self) -> list[str]:
        """What --train names by paths."""
        names = (weight_of(word)[0] for word in self.config.train.split(","))
        return [name for name in names if is_own(name, self.data_root / "lxmert")]

    def source(self, names: str, split: str) -> AnnotationSource:
        parts = read_names(names, self.data_root / "lxmert", columns=columns_of(self.config), split=split)
        return AnnotationSource(parts, self.encoder, self.table)

    def read_training(self) -> None:
        self.training = self._read(self.config.train, "train")
        if self.config.task_qa and not self.training.sentences.label_count.known and self.ranks.rank == 0:
            warn(
                f"no text of --train {self.config.train} has an answer that the table knows, so --taskQA learns "
                "nothing; add a file with questions, or leave the flag out"
            )

    def read_validation(self) -> None:
        self.validation = self._read(self.config.valid, "valid") if self.config.valid else None

    def _read(self, names: str, which: str) -> PretrainingDataset:
        config, source = self.config, self.source(names, which)
        images = self.images(source)
        categories = config.limit_source.split(",") if config.limit_source else None
        split = self.open_split(source, images, config.allow_missing_images, categories, answers_needed=config.task_qa)
        return PretrainingDataset(split, images, self.encoder.vocabulary, of_flags(PretrainingOptions, config))

    def check_answers(self, saved: "SavedState") -> None:
        theirs = saved.description
        if theirs is not None and theirs.architecture != self.architecture:
            raise UserError(
                f"{saved.source} is a fine-tuned model, which has no heads for masked words and matching any more; "
                "name a checkpoint of pre-training, such as the one that it was fine-tuned from"
            )
        super().check_answers(saved)

    def kept_answers(self, saved: "SavedState") -> list[str] | None:
        return None if self.config.task_qa else saved.answers

    def set_up(self, model: "ClipVilForPretraining") -> None:
        """Heads that no loss reaches stay as they are: AdamW's decay would shrink them."""
        config = self.config
        model.answers_questions = config.task_qa
        model.cls.predictions.requires_grad_(config.task_mask_lm)
        model.cls.seq_relationship.requires_grad_(config.task_matched)
        if hasattr(model, "answer_head"):
            model.answer_head.requires_grad_(config.task_qa)

    def chance(self) -> dict[str, float]:
        return {"mask_lm_accuracy": most_frequent_share(self.training)} if self.config.task_mask_lm else {}

    def next_command(self, checkpoint: Path, best: Path | None) -> list[str]:
        """Stage two, then the fine-tuning on questions; behind a training on data of one's own, the way out of here."""
        if self.own_files:
            return ["convert", "--from", "deepspeed", str(checkpoint), "--to", "hub", "my_model"]
        model = self.config.clip_model_name
        recipes = RECIPES.get(model)
        if self.config.task_qa:
            program, load = ["finetune", "--task", "vqa"], "--load_lxmert_qa"
            begin = ["--recipe", recipes[1]] if recipes else ["--clip_model_name", model]
        else:
            program, load = ["pretrain"], "--load"
            begin = ["--recipe", recipes[0]] if recipes else ["--clip_model_name", model, "--taskQA"]
        return [*program, *begin, load, str(checkpoint), *self.flags_of_data()]


def answers_command(config: PretrainConfig, output: Path | None) -> str:
    """What makes an answer table of a training's files, ready to type; where it is usual if `output` is None."""
    given = {"data_root": config.data_root, "train": config.train, "valid": config.valid}
    given |= {field.name: getattr(config, field.name) for field in fields(TableConfig)}
    given["output"] = str(output or "")
    flags = [word for name, value in given.items() if value for word in (f"--{name}", value)]
    return f"{command('prepare')} answers {shlex.join(flags)}"


def most_frequent_share(dataset: PretrainingDataset) -> float:
    """Of all words that can be masked, the share of the most frequent one; of every n-th sentence, of a large split."""
    counts: Counter[int] = Counter()
    for number in range(0, len(dataset), max(1, len(dataset) // COUNTED_SENTENCES)):
        counts.update(dataset.sentences.token_ids(number)[: dataset.options.max_seq_length - 2])
    return max(counts.values(), default=0) / max(1, counts.total())
