"""Pre-train a tiny CLIP-ViL on drawn scenes, fine-tune it to answer questions, and test both on scenes it never saw.

    make demo

1. draw the data set               data/demo
2. stage one, stage two            deepspeed --num_gpus 2 launch/pretrain.py --recipe demo_stage_one (_two)
3. fine-tune                       deepspeed --num_gpus 2 launch/finetune_vqa.py --recipe demo_vqa
   and the same from random weights, to see what pre-training is good for
4. predict                         deepspeed --num_gpus 2 launch/predict_vqa.py --load snap/demo/vqa/BEST --test minival
5. evaluate, with the images and blind (every image grey)
6. print, and write snap/demo/summary.json
"""

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import torch
from deepspeed.accelerator import get_accelerator
from transformers.hf_argparser import HfArg

from engine.arguments import parse, parse_command
from engine.checkpoint.manifest import complete_checkpoints
from engine.checkpoint.state import open_checkpoint
from engine.checkpoint.weights import read_bert
from engine.config import PredictConfig, PretrainConfig
from engine.data.demo import VISUAL_WORDS, write_demo
from engine.data.loading import Batch, evaluation_loader
from engine.data.pretraining import PretrainingDataset
from engine.data.questions import read_questions
from engine.data.sampler import Sample
from engine.data.splits import annotation_files
from engine.distributed import Ranks, exit_with
from engine.errors import UserError
from engine.scoring import AnswerCollector, score_answers
from engine.trainer import evaluate
from engine.training import build_model, describe_model
from launch.predict_vqa import build_model as build_predictor
from launch.predict_vqa import open_model, read_dataset
from launch.pretrain import RECIPES, Pretraining

ROOT = Path(__file__).resolve().parent.parent
GREY = 128
SAMPLES_PER_STEP = 64  # on any number of ranks: two of them without accumulation, one with


@dataclass
class DemoConfig:
    """The demo's own flags; those of the training are in launch/recipes/demo_stage_{one,two}.yaml."""

    data_root: str = HfArg(default="data/demo", help="folder to draw the data set into")
    output: str = HfArg(default="snap/demo", help="folder for checkpoints and summary.json")
    train_scenes: int = HfArg(default=5000, help="scenes to train on")
    valid_scenes: int = HfArg(default=500, help="held-out scenes")
    seed: int = HfArg(default=9595, help="seed of the scenes")
    stage_one: str = HfArg(default="", help="more flags for stage one, in one string")
    stage_two: str = HfArg(default="", help="more flags for stage two, in one string")
    vqa: str = HfArg(default="", help="more flags for fine-tuning, in one string")


def run_program(name: str, flags: list[str]) -> None:
    """A program of launch/, under the launcher where two ranks run it, its output passed through.

    Raises:
        UserError: if it fails; its own message stands above.
    """
    accelerator = get_accelerator()
    ranks = 2 if accelerator.device_name() == "cpu" else min(2, accelerator.device_count())
    command = [*(launcher(ranks) if ranks > 1 else []), str(ROOT / "launch" / name), *flags]
    print("\n$ python " + " ".join(command), flush=True)
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code != 0:
        raise UserError(f"{name} ended with code {code}; the reason stands above")


def launcher(ranks: int) -> list[str]:
    """What `deepspeed` does, as a module: that script isn't everywhere where DeepSpeed can be imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(port)]


def training_flags(config: DemoConfig) -> list[str]:
    """What all of its trainings take beside their recipe."""
    data = ["--data_root", config.data_root, "--bert", f"{config.data_root}/bert"]
    return [*data, "--global_batch_size", str(SAMPLES_PER_STEP)]


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
    """Accuracies on the held-out scenes, each with its blind twin."""
    alone = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)
    bert, tokenizer = read_bert(config.bert)
    task = Pretraining(config, tokenizer, alone)
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
    tasks = {
        "mask_lm_accuracy": masked_words,
        "matched_accuracy": PretrainingDataset(split, images, words, whole),
        "qa_accuracy": PretrainingDataset(split, images, words, own_image),
    }
    summary = {}
    for metric, dataset in tasks.items():
        name = metric.replace("mask_lm", "masked_word")
        batches = evaluation_loader(dataset, config.batch_size, num_workers=0, rank=0, world_size=1)
        summary[name] = evaluate(model, batches)[metric]
        summary[f"{name}_blind"] = evaluate(model, blind(batches))[metric]
    return summary


def predict_held_out(model: str, data_root: str) -> float:
    """The score of a fine-tuned model on the held-out scenes' questions, by launch/predict_vqa.py."""
    run_program("predict_vqa.py", ["--load", model, "--test", "minival", "--data_root", data_root, "--num_workers=1"])
    return float(json.loads(Path(model).with_name("minival_score.json").read_text())["score"])


def predict_blind(model: str, data_root: str) -> float:
    """The same without seeing them."""
    config = PredictConfig(load=model, test="minival", data_root=data_root)
    alone = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)
    files = annotation_files(Path(data_root, "vqa"), "minival")
    saved = open_model(config, alone)
    dataset = read_dataset(config, saved, files, alone)
    network = build_predictor(saved, config, torch.device(get_accelerator().device_name()))
    collector = AnswerCollector()
    batches = evaluation_loader(dataset, config.batch_size, num_workers=0, rank=0, world_size=1)
    evaluate(network, blind(batches), on_batch=collector.see)
    questions, answers = read_questions(files), collector.gather(len(dataset)).answers[:, 0].tolist()
    chosen = {q.question_id: (saved.answers or [])[row] for q, row in zip(questions, answers, strict=True)}
    return float(score_answers(questions, chosen)["score"])


def main() -> None:
    started = time.monotonic()
    try:
        config = parse_command(DemoConfig, "demo.py", sys.argv[1:])
        common = training_flags(config)
        write_demo(
            Path(config.data_root),
            train_scenes=config.train_scenes,
            valid_scenes=config.valid_scenes,
            seed=config.seed,
            progress=True,
        )
        names = ("stage_one", "stage_two", "vqa", "vqa_from_scratch")
        stage_one, stage_two, vqa, from_scratch = (f"{config.output}/{name}" for name in names)
        for stage in (stage_one, stage_two, vqa, from_scratch):
            shutil.rmtree(stage, ignore_errors=True)  # an earlier demo's
        first = ["--recipe", "demo_stage_one", *common, "--output", stage_one, *config.stage_one.split()]
        run_program("pretrain.py", first)
        second = ["--recipe", "demo_stage_two", *common, "--load", last_checkpoint(stage_one), "--output", stage_two]
        run_program("pretrain.py", [*second, *config.stage_two.split()])
        flags = ["--recipe", f"{stage_two}/config.yaml", "--load", last_checkpoint(stage_two)]
        summary = evaluate_held_out(parse(PretrainConfig, flags, RECIPES)[0])

        pretrained = time.monotonic()
        for output, start in (
            (vqa, ["--load_lxmert_qa", last_checkpoint(stage_two)]),
            (from_scratch, ["--load_lxmert_qa", "", "--fromScratch"]),
        ):
            recipe = ["--recipe", "demo_vqa", *common, *start, "--output", output]
            run_program("finetune_vqa.py", [*recipe, *config.vqa.split()])
        summary["vqa_accuracy"] = predict_held_out(f"{vqa}/BEST", config.data_root)
        summary["vqa_accuracy_blind"] = predict_blind(f"{vqa}/BEST", config.data_root)
        summary["vqa_accuracy_from_scratch"] = predict_held_out(f"{from_scratch}/BEST", config.data_root)
        summary["vqa_seconds"] = round(time.monotonic() - pretrained, 1)
    except UserError as error:
        exit_with(error)
    summary["seconds"] = round(time.monotonic() - started, 1)
    Path(config.output, "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print("\non held-out scenes     with images   blind")
    for name in ("masked_word_accuracy", "matched_accuracy", "qa_accuracy", "vqa_accuracy"):
        print(f"{name:<22} {summary[name]:<13.3f} {summary[name + '_blind']:.3f}")
    print(f"vqa_accuracy without pre-training: {summary['vqa_accuracy_from_scratch']:.3f}")
    print(f"{summary['seconds']:.0f} seconds; {config.output}/summary.json")


def last_checkpoint(folder: str) -> str:
    return str(complete_checkpoints(Path(folder))[0])


if __name__ == "__main__":
    main()
