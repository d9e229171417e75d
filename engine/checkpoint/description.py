"""What has to be known to build a model again; every checkpoint holds it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenizers import Tokenizer
from transformers import BertConfig

from engine.configuration.bert import Splitting, bert_tokenizer
from engine.errors import UserError
from engine.model.clip_resnet import ResNetShape
from engine.model.encoder import VisualShape
from engine.model.pretraining import ClipVilForPretraining
from engine.model.question_answering import ClipVilForQuestionAnswering

# By the name that checkpoints have for it. A model is made of a BertConfig, a VisualShape and the number of answers.
MODELS: dict[str, Callable[..., Any]] = {
    "pretraining": ClipVilForPretraining,
    "question_answering": ClipVilForQuestionAnswering,
}


def word_pieces(tokenizer: Tokenizer) -> list[str]:
    """In the order of their ids."""
    ids = tokenizer.get_vocab()
    return sorted(ids, key=lambda word: ids[word])


@dataclass(frozen=True)
class Preprocessing:
    """What the model was trained to read; the flags of the same names."""

    max_seq_length: int = 20
    image_size_min: int = 384
    image_size_max: int = 640
    orient_after_resize: bool = False
    aspect_ratio_group_factor: int = 5  # the cells that an evaluation draws depend on the order of its images


@dataclass(frozen=True)
class ModelDescription:
    """The shape of a model, and what its rows stand for."""

    bert: dict[str, Any]  # BertConfig's own values that aren't its defaults
    visual: VisualShape
    answers: list[str] | None = None  # of the answer head, in the order of its rows; None without a head
    vocabulary: list[str] | None = None  # word pieces in the order of their ids
    architecture: str = "pretraining"  # one of MODELS
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    splitting: Splitting | None = None  # None in files of earlier versions, which didn't say
    task: str | None = None  # of engine.tasks.named, that it was fine-tuned on, where that is known

    @classmethod
    def of(
        cls,
        bert: BertConfig,
        visual: VisualShape,
        answers: list[str] | None,
        tokenizer: Tokenizer | None,
        architecture: str = "pretraining",
        preprocessing: Preprocessing | None = None,
        task: str | None = None,
    ) -> "ModelDescription":
        words, splitting = (None, None) if tokenizer is None else (word_pieces(tokenizer), Splitting.of(tokenizer))
        reads = preprocessing or Preprocessing()
        return cls(bert.to_diff_dict(), visual, answers, words, architecture, reads, splitting, task)

    def build(self) -> Any:
        """The model with random weights: one of MODELS."""
        make = MODELS[self.architecture]
        return make(BertConfig.from_dict(self.bert), self.visual, None if self.answers is None else len(self.answers))

    def tokenizer(self) -> Tokenizer:
        """That of the vocabulary; like BERT's uncased ones if nothing says how words are split."""
        return bert_tokenizer(self.vocabulary or [], self.splitting or Splitting())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        values = asdict(self)
        values["visual"]["backbone"]["layers"] = list(self.visual.backbone.layers)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> "ModelDescription":
        """What `to_dict` gave.

        Raises:
            UserError: if something is missing, or there is something that this version doesn't know.
        """
        try:
            visual = dict(values["visual"])
            layers, width = visual["backbone"]["layers"], visual["backbone"]["width"]
            shape = VisualShape(**{**visual, "backbone": ResNetShape(tuple(layers), width)})
            architecture = values.get("architecture", "pretraining")
            if architecture not in MODELS:
                raise KeyError(architecture)
            reads, splitting = Preprocessing(**values.get("preprocessing", {})), values.get("splitting")
            splitting = None if splitting is None else Splitting(**splitting)
            words, task = values["vocabulary"], values.get("task")
            return cls(values["bert"], shape, values["answers"], words, architecture, reads, splitting, task)
        except (KeyError, TypeError) as error:
            raise UserError(f"{source} doesn't describe a model of this version ({error})") from None
