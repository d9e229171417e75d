"""A trained model that takes images and sentences.

model = engine.load_pretrained("snap/vqa/NAME/BEST")
model.answer("cat.jpg", "What is this?")             # [Answer("cat", 0.93), ...]
model.features(["cat.jpg", "dog.jpg"], "a pet")      # Features, of two rows

B pairs of a batch    L word pieces, padded    h hidden size
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.formats.original import OriginalState
from engine.checkpoint.state import Checkpoint, SavedState, build_network, open_checkpoint
from engine.commands import command
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import ImageShape
from engine.errors import UserError
from engine.inference.attention import attention_to_cells, projections
from engine.inference.features import Column, Features, columns_of
from engine.inference.pixels import ImageLike, read_pixels
from engine.inference.reading import SHOWN, UNKNOWN, Answer, Guess, Reading, note_of
from engine.model.clip_resnet import grid_side
from engine.model.encoder import check_grid
from engine.provenance.tested import check_versions
from engine.tasks.answering.task import TaskClass
from engine.tasks.named import TASKS
from kernels.sampling import sample_cells

ANSWER, FILL_MASK, MATCH = "answer", "fill_mask", "match"
# What to do where a model lacks one of them.
REMEDIES = {
    ANSWER: "load a model that was trained on questions, such as the BEST of a fine-tuning",
    FILL_MASK: "load a pre-training's checkpoint; fine-tuning doesn't keep the head for words",
    MATCH: "load a pre-training's checkpoint; fine-tuning doesn't keep the head for pairs",
}

Result = TypeVar("Result")


def load_pretrained(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 9595,
    sub_sampling: bool = True,
) -> "Pretrained":
    """A trained model that takes images and sentences.

    Args:
        folder: BEST or LAST of a fine-tuning, a checkpoint of any training (Epoch05), what `launch/convert.py --to
            safetensors` wrote, or a run's folder, which stands for its BEST or else its newest whole checkpoint.
        device: where it computes; the GPU if there is one.
        dtype: of its weights; fp16 on a GPU, else fp32. Statistics of batch norm stay fp32.
        seed: of the cells that are drawn; predict.py has the same.
        sub_sampling: whether cells are drawn, if the model was trained so; else it reads all cells of an image.

    Raises:
        UserError: if there is no whole model, it doesn't say what its words are, or a library is too old.
    """
    check_versions()
    saved = open_checkpoint(str(folder), optimizers=False)
    if isinstance(saved, OriginalState) or saved.description is None:
        raise UserError(
            f"{saved.source} doesn't say what its words are; {command('convert')} --from lxrt {saved.source} "
            "--bert bert-base-uncased --to safetensors FOLDER makes a folder to load"
        )
    if saved.description.vocabulary is None:
        raise UserError(f"{saved.source} has no vocabulary; convert it again with --bert")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    half = torch.float16 if place.type == "cuda" else torch.float32
    return Pretrained(saved, place, dtype or half, seed, sub_sampling=sub_sampling)


class Text(NamedTuple):
    """Sentences as a model takes them."""

    input_ids: Tensor  # int64 (B, L), padded
    attention_mask: Tensor  # int64 (B, L), 1 for word pieces
    tokens: list[list[str]]  # of each, without padding
    cut: list[int]  # how many more pieces each has


class Pretrained:
    """A trained model, in evaluation mode.

    Each method takes one image and one sentence, or a list of one of them or of both, in which case both have to be as
    long. An image is a path, the bytes of a file, Pillow's image, or uint8 (height, width, 3). A result comes alone for
    one image and one sentence, and in a list otherwise, in the order of what was given. What a pair comes to doesn't
    depend on the others. Python warns (UserWarning) if a sentence is too long, or has words that aren't known.

    Where the model was trained on a sample of an image's cells, it reads a sample here, too, unless `sub_sampling` is
    false: the same for all images whose grids have the same shape.

    Attributes:
        source: where it is from.
        description: its shape, its answers, and what it was trained to read.
        abilities: which of `answer`, `fill_mask` and `match` it has been trained for.
        network: the model that takes tensors.
    """

    def __init__(
        self,
        saved: SavedState,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        task: TaskClass | None = None,
        *,
        sub_sampling: bool = True,
    ) -> None:
        """Args:
        task: that it was fine-tuned on, where the checkpoint doesn't say so.
        """
        assert saved.description is not None
        self.source, self.description, self.device, self.seed = saved.source, saved.description, device, seed
        self.dtype = dtype
        reads = self.description.preprocessing
        low, high = reads.image_size_min, reads.image_size_max
        self.shape = ImageShape(low, high, reads.orient_after_resize)
        for height, width in ((low, high), (high, low)):
            check_grid(self.description.visual, height, width)
        self.encoder = TextEncoder(self.description.tokenizer())
        self.task = task or TASKS.get(self.description.task or "")
        self.abilities = abilities_of(saved)
        self.network = build_network(saved, device, dtype)
        self.network.bert.encoder.sub_sampling_in_evaluation = sub_sampling

    @overload
    def answer(self, images: ImageLike, questions: str, *, top_k: int = 5) -> list[Answer]: ...
    @overload
    def answer(
        self, images: ImageLike | Sequence[ImageLike], questions: str | Sequence[str], *, top_k: int = 5
    ) -> Any: ...
    def answer(self, images: Any, questions: Any, *, top_k: int = 5) -> Any:
        """The `top_k` most likely answers to a question about an image, the best first; a list of these for lists.

        A probability is that of being right by itself, after fine-tuning on VQA and GQA, where several answers may be;
        else it is the answer's share among all.

        Raises:
            UserError: if the model can't answer questions, or an image can't be read.
        """
        self._check_ability(ANSWER)
        return self._each(images, questions, lambda reading: reading.answers(top_k))

    @overload
    def fill_mask(self, images: ImageLike, sentences: str, *, top_k: int = 5) -> list[list[Guess]]: ...
    @overload
    def fill_mask(
        self, images: ImageLike | Sequence[ImageLike], sentences: str | Sequence[str], *, top_k: int = 5
    ) -> Any: ...
    def fill_mask(self, images: Any, sentences: Any, *, top_k: int = 5) -> Any:
        """The `top_k` most likely word pieces for each [MASK] of a sentence, in order; a list of these for lists.

        Raises:
            UserError: if the model can't do that, a sentence has no [MASK] that it reads, or an image can't be read.
        """
        self._check_ability(FILL_MASK)
        for sentence in [sentences] if isinstance(sentences, str) else sentences:
            pieces, cut = self._pieces(sentence)
            if self.encoder.vocabulary.mask_id not in pieces:
                behind = f" among the first {len(pieces)} pieces, which are all that it reads" if cut else ""
                raise UserError(f"there is no [MASK]{behind} in {_shown(sentence)}; put one in the place of a word")
        return self._each(images, sentences, lambda reading: reading.guesses(top_k))

    @overload
    def match(self, images: ImageLike, sentences: str) -> float: ...
    @overload
    def match(self, images: ImageLike | Sequence[ImageLike], sentences: str | Sequence[str]) -> Any: ...
    def match(self, images: Any, sentences: Any) -> Any:
        """How likely an image and a sentence belong together, 0 to 1; a list of these for lists.

        Raises:
            UserError: if the model can't tell, or an image can't be read.
        """
        self._check_ability(MATCH)
        return self._each(images, sentences, lambda reading: reading.matched)

    def features(
        self,
        images: ImageLike | Sequence[ImageLike],
        sentences: str | Sequence[str],
        *,
        batch_size: int = 32,
    ) -> Features:
        """What every model makes of each pair before any head; a row for each, also where there is only one.

        Args:
            batch_size: pairs that are computed at a time; fewer of each of the two orientations.

        Raises:
            UserError: if an image can't be read, or there are not as many images as sentences.
        """
        pairs = self._pairs(images, sentences)
        found, notes = Features.empty(self.columns, len(pairs)), [""] * len(pairs)
        for first in _starts(len(pairs), batch_size):
            chunk = pairs[first : first + batch_size]
            for members, pixels in self._by_shape(chunk):
                text, rows = self.text([chunk[n][1] for n in members]), [first + n for n in members]
                for row, tokens, cut in zip(rows, text.tokens, text.cut, strict=True):
                    notes[row] = note_of(tokens, cut)
                found.put(rows, self.features_of(text.input_ids, text.attention_mask, torch.from_numpy(pixels)))
        _warn(notes, stacklevel=3)
        return found

    @torch.inference_mode()
    def features_of(self, input_ids: Tensor, attention_mask: Tensor, images: Tensor) -> Features:
        """The same of one batch of tensors.

        Args:
            input_ids, attention_mask: int64 (B, L), framed and padded.
            images: uint8 (B, 3, H, W), of one of the two shapes that `shape` has.
        """
        grid_shape = grid_side(images.shape[2]), grid_side(images.shape[3])
        cells = self._draw(grid_shape[0] * grid_shape[1], [0] * len(images))
        language, vision, pooled, grid = self._encode(input_ids, attention_mask, images, cells)
        return Features(
            input_ids=input_ids.cpu(),
            attention_mask=attention_mask.cpu(),
            language=language.cpu(),
            vision=vision.cpu(),
            cells=cells,
            pooled=pooled.cpu(),
            grid=grid.flatten(2).transpose(1, 2).cpu(),
            grid_shape=torch.tensor(grid_shape).expand(len(images), 2),
        )

    @property
    def columns(self) -> dict[str, Column]:
        """What each feature of a pair is, by name."""
        return columns_of(self.description, self.dtype, sub_sampling=self.draws_cells)

    def read(
        self,
        images: ImageLike | Sequence[ImageLike],
        sentences: str | Sequence[str],
        *,
        numbers: Sequence[int] | None = None,
        attention: bool = False,
        batch_size: int = 32,
    ) -> list[Reading]:
        """All that the model makes of each pair. What wasn't read of a sentence stands in its `note`.

        Args:
            numbers: the place of each pair in an evaluation, which decides the cells that are drawn; as predict.py
                has them, question n of a split has n. If not given, all have 0.
            attention: also tell where words look.
            batch_size: pairs that are computed at a time; fewer of each of the two orientations.

        Raises:
            UserError: if an image can't be read, or there are not as many images as sentences.
        """
        pairs = self._pairs(images, sentences)
        return list(self._read(pairs, numbers, attention=attention, batch_size=batch_size))

    def _each(self, images: Any, sentences: Any, result_of: Callable[[Reading], Result]) -> Result | list[Result]:
        """What comes of each reading, alone or in a list; warns of what wasn't read."""
        results, notes = list[Result](), list[str]()
        for reading in self._read(self._pairs(images, sentences)):
            results.append(result_of(reading))
            notes.append(reading.note)
        _warn(notes, stacklevel=4)
        return results[0] if isinstance(images, ImageLike) and isinstance(sentences, str) else results

    def _pairs(self, images: Any, sentences: Any) -> list[tuple[ImageLike, str]]:
        """Raises UserError if there are not as many of the ones as of the others."""
        if isinstance(images, ImageLike):
            image = read_pixels(images, self.shape)  # once for all sentences
            return [(image, sentence) for sentence in ([sentences] if isinstance(sentences, str) else sentences)]
        images = list(images)
        sentences = [sentences] * len(images) if isinstance(sentences, str) else list(sentences)
        if len(images) != len(sentences):
            raise UserError(f"{len(images):,} images and {len(sentences):,} sentences; give as many, or one of either")
        return list(zip(images, sentences, strict=True))

    def _read(
        self,
        pairs: Sequence[tuple[ImageLike, str]],
        numbers: Sequence[int] | None = None,
        *,
        attention: bool = False,
        batch_size: int = 32,
    ) -> Iterator[Reading]:
        """One after the other, so that images needn't be in memory all at once."""
        numbers = numbers if numbers is not None else [0] * len(pairs)
        for first in _starts(len(pairs), batch_size):
            chunk, readings = pairs[first : first + batch_size], dict[int, Reading]()
            for members, pixels in self._by_shape(chunk):
                batch = self._read_batch(
                    pixels,
                    self.text([chunk[n][1] for n in members]),
                    [numbers[first + n] for n in members],
                    attention=attention,
                )
                readings |= zip(members, batch, strict=True)
            yield from (readings[n] for n in range(len(chunk)))

    def _by_shape(self, chunk: Sequence[tuple[ImageLike, str]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """The pairs whose images have the same shape, by their places, with pixels uint8 (B, 3, H, W)."""
        pixels = [read_pixels(image, self.shape) for image, _ in chunk]
        for shape in sorted({array.shape for array in pixels}):
            members = [n for n, array in enumerate(pixels) if array.shape == shape]
            yield members, np.stack([pixels[n] for n in members])

    def text(self, sentences: Sequence[str]) -> Text:
        """Sentences as the model takes them."""
        words, length = self.encoder.vocabulary, self.description.preprocessing.max_seq_length
        pieces, cut = zip(*map(self._pieces, sentences), strict=True)
        framed = [[words.cls_id, *ids, words.sep_id] for ids in pieces]
        return Text(
            torch.tensor([ids + [words.pad_id] * (length - len(ids)) for ids in framed]),
            torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in framed]),
            [[str(self.encoder.tokenizer.id_to_token(number)) for number in ids] for ids in framed],
            list(cut),
        )

    @torch.inference_mode()
    def _encode(
        self, input_ids: Tensor, attention_mask: Tensor, images: Tensor, cells: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the trunk gives, on the model's device: see engine.model.encoder.Trunk.

        Args:
            cells: int64 (B, S) that are read.
        """
        inputs = [input_ids, torch.zeros_like(input_ids), attention_mask, images]
        positions = cells.to(self.device) if self.draws_cells else None
        features: tuple[Tensor, Tensor, Tensor, Tensor]
        features = self.network.bert(*(tensor.to(self.device) for tensor in inputs), positions=positions)
        return features

    @torch.inference_mode()
    def _read_batch(self, pixels: np.ndarray, text: Text, numbers: Sequence[int], *, attention: bool) -> list[Reading]:
        """Pixels uint8 (B, 3, H, W) with their sentences."""
        grid = grid_side(pixels.shape[2]), grid_side(pixels.shape[3])
        cells = self._draw(grid[0] * grid[1], numbers)
        with projections(self.network.bert.encoder.layer[-1]) as seen:
            language, _, pooled, _ = self._encode(text.input_ids, text.attention_mask, torch.from_numpy(pixels), cells)
        heads = self.description.bert.get("num_attention_heads", 12)
        mask = text.attention_mask.to(self.device)
        looks = attention_to_cells(seen, heads, mask).cpu().numpy() if attention else None
        answers, matched = self._scores(pooled)
        return [
            Reading(
                tokens=tokens,
                unknown=tokens.count(UNKNOWN),
                cut=text.cut[n],
                grid=grid,
                cells=cells[n].numpy(),
                pixels=pixels[n].transpose(1, 2, 0),
                answer_probabilities=None if answers is None else answers[n],
                word_probabilities=self._words(language[n], text.input_ids[n]),
                matched=None if matched is None else float(matched[n]),
                attention=None if looks is None else looks[n, : len(tokens)],
                known_answers=self.description.answers or [],
                known_words=self.description.vocabulary or [],
            )
            for n, tokens in enumerate(text.tokens)
        ]

    def _pieces(self, sentence: str) -> tuple[list[int], int]:
        """Ids of as many word pieces as the model reads, and how many more there are."""
        ids = self.encoder(self.task.files.cleaned(sentence) if self.task is not None else sentence)
        room = self.description.preprocessing.max_seq_length - 2
        return ids[:room], max(0, len(ids) - room)

    @property
    def draws_cells(self) -> bool:
        """Whether it reads a sample of an image's cells, or all."""
        return self.description.visual.sub_feat_num is not None and self.network.bert.encoder.sub_sampling_in_evaluation

    @property
    def one_of_all(self) -> bool:
        """Whether an answer's probability is its share among all answers, or that of being right by itself."""
        return self.description.architecture == "pretraining" or (self.task is not None and self.task.one_of_all)

    def _draw(self, num_cells: int, numbers: Sequence[int]) -> Tensor:
        """Cells that are read, int64 (B, S), on the CPU: the draws of an evaluation, or all."""
        if not self.draws_cells:
            return torch.arange(num_cells).expand(len(numbers), -1)
        sample = self.description.visual.sub_feat_num or num_cells
        states = (torch.tensor([self.seed, 0, number]) for number in numbers)
        return torch.cat([sample_cells(state, 1, num_cells, sample)[0] for state in states]).long()

    def _scores(self, pooled: Tensor) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Probabilities of answers (B, answers), and of belonging together (B,), where the model tells them."""
        answers = matched = None
        if ANSWER in self.abilities:
            scores = self.network.answer_head(pooled).float()
            answers = (scores.softmax(1) if self.one_of_all else scores.sigmoid()).cpu().numpy()
        if MATCH in self.abilities:
            matched = self.network.cls.seq_relationship(pooled).float().softmax(1)[:, 1].cpu().numpy()
        return answers, matched

    def _words(self, language: Tensor, input_ids: Tensor) -> np.ndarray | None:
        """Probabilities of word pieces (masks, V) in the places of [MASK], of one encoded text (L, h)."""
        if FILL_MASK not in self.abilities:
            return None
        masked = language[(input_ids == self.encoder.vocabulary.mask_id).to(self.device)]
        scores = self.network.cls.predictions(masked, self.network.bert.embeddings.word_embeddings.weight)
        known = scores.float()[:, : len(self.description.vocabulary or [])]
        return known.softmax(1).cpu().numpy()

    def _check_ability(self, ability: str) -> None:
        if ability not in self.abilities:
            can = ", ".join(f"`{name}`" for name in [*sorted(self.abilities), "features"])
            raise UserError(f"{self.source} was not trained for `{ability}`; {REMEDIES[ability]}. This one has {can}")


def abilities_of(saved: SavedState) -> frozenset[str]:
    """What a model was trained for. A checkpoint of a pre-training knows which of its heads learnt."""
    assert saved.description is not None
    config = saved.content.get("config", {}) if isinstance(saved, Checkpoint) else {}
    has = {ANSWER} if saved.description.answers is not None else set()
    if saved.description.architecture == "pretraining":
        has |= {name for name, flag in ((FILL_MASK, "task_mask_lm"), (MATCH, "task_matched")) if config.get(flag, True)}
    return frozenset(has)


def _starts(number: int, batch_size: int) -> range:
    """Where batches of so many pairs begin."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: at least 1 is needed")
    return range(0, number, batch_size)


def _shown(sentence: str) -> str:
    return repr(sentence if len(sentence) <= SHOWN else sentence[:SHOWN] + "...")


def _warn(notes: Sequence[str], stacklevel: int) -> None:
    """Warn once of all sentences that weren't read as they were given.

    Args:
        notes: of each sentence, "" for none.
        stacklevel: how far above this function the line is that called a method of Pretrained, itself being 1.
    """
    told = [(number, note) for number, note in enumerate(notes, 1) if note]
    if told:
        number, note = told[0]
        which = "the sentence" if len(notes) == 1 else f"sentence {number:,} of {len(notes):,}"
        more = f" (of {len(told) - 1:,} more, something wasn't read either)" if len(told) > 1 else ""
        warnings.warn(f"{which}: {note}{more}", stacklevel=stacklevel)
