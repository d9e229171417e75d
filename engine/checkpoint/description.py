"""What has to be known to build a model again; every checkpoint holds it."""

from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import BertConfig

from engine.errors import UserError
from engine.model.clip_resnet import ResNetShape
from engine.model.encoder import VisualShape
from engine.model.pretraining import ClipVilForPretraining


def word_pieces(tokenizer: Tokenizer) -> list[str]:
    """In the order of their ids."""
    ids = tokenizer.get_vocab()
    return sorted(ids, key=lambda word: ids[word])


@dataclass(frozen=True)
class ModelDescription:
    """The shape of a model, and what its rows stand for."""

    bert: dict[str, Any]  # BertConfig's own values that aren't its defaults
    visual: VisualShape
    answers: list[str] | None = None  # of the answer head, in the order of its rows; None without a head
    vocabulary: list[str] | None = None  # word pieces in the order of their ids

    @classmethod
    def of(
        cls, bert: BertConfig, visual: VisualShape, answers: list[str] | None, tokenizer: Tokenizer | None
    ) -> "ModelDescription":
        return cls(bert.to_diff_dict(), visual, answers, word_pieces(tokenizer) if tokenizer is not None else None)

    def build(self) -> ClipVilForPretraining:
        """The model with random weights."""
        return ClipVilForPretraining(
            BertConfig.from_dict(self.bert), self.visual, None if self.answers is None else len(self.answers)
        )

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
            return cls(values["bert"], shape, values["answers"], values["vocabulary"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{source} doesn't describe a model of this version ({error})") from None
