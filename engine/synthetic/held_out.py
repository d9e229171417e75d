"""How good a model is on the demo's held-out scenes, and how good the same model is blind: every image grey."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from engine.checkpoint.state import open_checkpoint, read_words
from engine.data.annotations.questions.file import files_of, read_questions
from engine.data.loading import Batch, evaluation_loader
from engine.data.sampler import Sample
from engine.distributed.ranks import ALONE
from engine.synthetic.demo import VISUAL_WORDS
from engine.tasks.answering.flags import PredictConfig
from engine.tasks.answering.prediction import build_model as build_predictor
from engine.tasks.answering.prediction import open_model, read_dataset
from engine.tasks.answering.scoring import AnswerCollector, score_answers
from engine.tasks.answering.task import TaskClass
from engine.tasks.pretraining import PretrainConfig, Pretraining, PretrainingDataset
from engine.training.loop import evaluate
from engine.training.model import build_model, describe_model

GREY = 128


class MaskedWords(PretrainingDataset):
    """Sentences in which one word for a color or a shape is masked."""

    visual_words: frozenset[int | None] = frozenset()

    def __getitems__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        examples = super().__getitems__(samples)
        for example in examples:
            ids, labels = example["input_ids"], example["masked_lm_labels"]
            visual = [place for place, token in enumerate(ids) if token in self.visual_words]
            place = random.Random(example["position"]).choice(visual)
            labels[place], ids[place] = ids[place], self.vocabulary.mask_id
        return examples


def blind(batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        batch.inputs["images"] = torch.full_like(batch.inputs["images"], GREY)
        yield batch


def evaluate_held_out(config: PretrainConfig) -> dict[str, float]:
    """Accuracies on the held-out scenes of the tasks that were trained, each with its blind twin."""
    bert, tokenizer = read_words(config.bert, config.do_lower_case)
    task = Pretraining(config, tokenizer, ALONE)
    task.read()
    held_out = task.validation
    assert held_out is not None
    assert config.load is not None
    description = describe_model(config, bert, task)
    model = build_model(config, description, open_checkpoint(config.load), task).to(get_accelerator().device_name())

    images, words, split = held_out.images, held_out.vocabulary, held_out.split
    captions = replace(split, sentences=split.sentences.select(~split.sentences.questions))
    whole = replace(held_out.options, task_mask_lm=False)
    own_image = replace(whole, task_matched=False)
    masked_words = MaskedWords(captions, images, words, own_image)
    masked_words.visual_words = frozenset(tokenizer.token_to_id(word) for word in VISUAL_WORDS)
    tasks: dict[str, PretrainingDataset] = {"mask_lm_accuracy": masked_words}
    if config.task_matched:
        tasks["matched_accuracy"] = PretrainingDataset(split, images, words, whole)
    if config.task_qa:
        tasks["qa_accuracy"] = PretrainingDataset(split, images, words, own_image)
    summary = {}
    for metric, dataset in tasks.items():
        name = metric.replace("mask_lm", "masked_word")
        batches = evaluation_loader(dataset, config.batch_size, num_workers=0, rank=0, world_size=1)
        summary[name] = evaluate(model, batches)[metric]
        summary[f"{name}_blind"] = evaluate(model, blind(batches))[metric]
    return summary


def predict_blind(task: TaskClass, model: str, data_root: str, test: str) -> float:
    """The score of a fine-tuned model that sees no image."""
    config = PredictConfig(load=model, test=test, data_root=data_root)
    saved = open_model(task, config, ALONE)
    dataset = read_dataset(task, config, saved, ALONE)
    network = build_predictor(saved, config, torch.device(get_accelerator().device_name()))
    collector = AnswerCollector()
    batches = evaluation_loader(dataset, config.batch_size, num_workers=0, rank=0, world_size=1)
    evaluate(network, blind(batches), on_batch=collector.see)
    questions = read_questions(files_of(task.files.parts(test, Path(data_root))))
    answers = collector.gather(len(dataset)).answers[:, 0].tolist()
    chosen = {q.question_id: (saved.answers or [])[row] for q, row in zip(questions, answers, strict=True)}
    return float(score_answers(questions, chosen)["score"])
