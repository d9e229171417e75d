"""The examples of pre-training: captions and questions, swapped and masked."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.data.dataset import ExampleOptions, ImageTextDataset
from engine.data.images import ImageSource
from engine.data.masking import IGNORE, Generator, mask_tokens, sample_answer
from engine.data.sampler import Sample
from engine.data.splits import Split
from engine.data.text import Vocabulary


@dataclass(frozen=True)
class PretrainingOptions(ExampleOptions):
    """How sentences become examples; the flags of the same names."""

    task_mask_lm: bool = True
    task_matched: bool = True
    word_mask_rate: float = 0.15


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

    def _masked_words(self, token_ids: Sequence[int], generator: Generator) -> dict[str, Any]:
        options, vocabulary = self.options, self.vocabulary
        tokens = token_ids[: options.max_seq_length - 2]
        masked, labels = list(tokens), [IGNORE] * len(tokens)
        if options.task_mask_lm:
            masked, labels = mask_tokens(
                tokens, generator, rate=options.word_mask_rate, mask_id=vocabulary.mask_id, vocab_size=vocabulary.size
            )
        padding = options.max_seq_length - 2 - len(tokens)
        return {**self.words(masked), "masked_lm_labels": [IGNORE, *labels, IGNORE] + [IGNORE] * padding}
