"""The examples of tasks that answer questions: questions with a score for every answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data.dataset import ExampleOptions, ImageTextDataset
from engine.data.sampler import Sample


@dataclass(frozen=True)
class QuestionOptions(ExampleOptions):
    """How questions become examples."""

    num_answers: int = 0

    def sample_bytes(self) -> int:
        return super().sample_bytes() + 4 * self.num_answers


class QuestionDataset(ImageTextDataset):
    """Questions as they are; nothing is drawn."""

    options: QuestionOptions

    def examples(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """`target` holds each answer's score; `is_labelled` is false without a label, or without a readable image."""
        numbers = [sample.index for sample in samples]
        examples = []
        for number, img_id, token_ids, label in zip(numbers, *self.sentences.take(numbers), strict=True):
            example = {**self.words(token_ids), **self.pixels(number, img_id)}
            target = np.zeros(self.options.num_answers, np.float32)
            for answer, score in (label or {}).items():
                target[answer] = score
            example.update(target=target, is_labelled=label is not None and example["unreadable"] is None)
            examples.append(example)
        return examples
