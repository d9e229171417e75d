"""Hold the engine against numbers recorded from the original code.

    python -m tests.parity tests/golden                  on the GPU if there is one; DS_ACCELERATOR=cpu stays on the CPU
    python -m tests.parity tests/golden --dtype fp16     1. alone, in fp16 or bf16

Prints a line per quantity, `name  largest error  tolerance`, and exits with 1 if any error is beyond its tolerance.
Exact quantities count their differences, tolerance 0. Where the tolerances come from is said beside them; those of
half precision are derived in tests/rounding.py. fp32 is fp32 here: TF32 stays off.

1. model_pretrain/  one forward and backward pass of each variant
2. trajectory/      12 optimiser steps through DeepSpeed ZeRO-2 with one rank
3. data/            answers, masking, grouping, geometry, pixels, tokens, whole batches
4. vqa/             answer head surgery, tokens, forward and backward passes of fine-tuning, scores
"""

import argparse
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from PIL import Image
from torch import Tensor

from engine.benchmark.recorded import (
    GRADIENT,
    LOSS,
    OUTPUT,
    Arrays,
    Quantity,
    RecordedPass,
    build_model,
    global_norm,
    gradients_of,
    largest_error,
    model_inputs,
    read_arrays,
    read_passes,
    recorded_images,
    to_device,
)
from engine.benchmark.step.original import label_all_words
from engine.checkpoint.answers import match_answers
from engine.checkpoint.formats.original import our_name, split_unused
from engine.checkpoint.saving import full_state
from engine.checkpoint.weights import HEAD, load_state
from engine.configuration.bert import Splitting, bert_tokenizer
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.data.annotations.answers import AnswerTable, normalise_answer
from engine.data.annotations.named import read_names
from engine.data.annotations.questions.file import read_questions
from engine.data.annotations.questions.vqa import VqaFile
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import SIZES_FILE, ImageFolder
from engine.data.images.lmdb_store import ImageStore
from engine.data.images.places import image_path
from engine.data.images.transforms import (
    aspect_ratio_bins,
    aspect_ratio_group,
    canvas_size,
    padding,
    resize_and_pad,
    resized_size,
    stack_images,
)
from engine.data.images.writer import write_image_store
from engine.data.loading import Collator
from engine.data.sampler import exhaustive_batches, grouped_batches
from engine.data.splits import read_split
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.ranks import Ranks
from engine.model.encoder import CLIP_STD, normalise_images
from engine.model.pretraining import ClipVilForPretraining
from engine.model.question_answering import ClipVilForQuestionAnswering
from engine.tasks.answering.scoring import score_answers
from engine.tasks.masking import mask_tokens
from engine.tasks.pretraining import PretrainingDataset, PretrainingOptions
from engine.training.engine import build_engine
from tests.rounding import DTYPES, half_precision

# As in engine/benchmark/recorded.py. A second recording differed over the trajectory by 1.5e-5 in the loss, 6e-5 in
# norms and 3e-7 in parameters.
TRAJECTORY_LOSS, TRAJECTORY_NORM, TRAJECTORY_PARAMETER = 2e-4, 5e-4, 2e-5
LR = 1e-12  # the same float64 formula, up to the order of its operations
PIXEL = 1e-6  # values up to 3 in fp32 after the same three operations: a few units in the last place of 2.4e-7
FILL = 0.5 / 255 / min(CLIP_STD)  # 0 after normalisation lies between two grey levels


def differences(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    return abs(len(ours) - len(theirs)) + sum(a != b for a, b in zip(ours, theirs, strict=False))


# Model


def check_model(folder: Path, device: str) -> Iterator[Quantity]:
    passes = {each.name: each for each in read_passes(folder)}
    for name, each in passes.items():
        model = each.model(device)
        output = model(**each.inputs(device))
        output.loss.backward()
        yield from each.compare(output, gradients_of(model))
        yield _batch_norm(name, model, each.state, each.results)

        model = each.model(device).eval()
        with torch.no_grad():
            output = model(**each.inputs(device))
        yield Quantity(f"{name} evaluation loss", largest_error(output.loss, each.results["eval_loss"]), LOSS)
        losses = torch.stack(list(output.losses.values()))
        yield Quantity(f"{name} evaluation losses", largest_error(losses, each.results["eval_losses"]), LOSS)
        if output.answer_scores is not None:
            error = largest_error(output.answer_scores, each.results["eval_answer_score"], relative=True)
            yield Quantity(f"{name} evaluation answer scores", error, OUTPUT)
    yield from _missing_labels(passes, json.loads((folder / "config.json").read_text()), device)


def _batch_norm(name: str, model: ClipVilForPretraining, start: Arrays, recorded: Arrays) -> Quantity:
    """Running statistics after the pass. Some recordings hold those from before it (their counters say so): the
    distance is then for information, and the trajectory's final statistics are the check."""
    theirs = {key.removeprefix("bn_after/"): value for key, value in recorded.items() if key.startswith("bn_after/")}
    ours = model.state_dict()
    error = max(largest_error(ours[key], value, relative=True) for key, value in theirs.items())
    before = all(np.array_equal(theirs[key], start[key]) for key in theirs if key.endswith("num_batches_tracked"))
    return Quantity(f"{name} batch norm statistics", error, None if before else OUTPUT)


def _missing_labels(passes: dict[str, RecordedPass], description: dict[str, Any], device: str) -> Iterator[Quantity]:
    """A task without a label in the batch: the original's total is NaN, ours counts the others; gradients agree."""
    for case, field, term in (("all_ans_ignored", "ans", "qa"), ("no_masked_token", "masked_lm_labels", "mask_lm")):
        expected = description[case]
        each = passes[expected["variant"]]
        model = each.model(device)
        output = model(**each.inputs(device, **{field: np.full_like(each.batch[field], -1)}))
        output.loss.backward()
        norm = largest_error(global_norm(gradients_of(model)), expected["grad_global_norm"], relative=True)
        yield Quantity(f"{case} gradient norm", norm, GRADIENT)
        yield Quantity(f"{case} {term} loss is 0", abs(output.losses[term].item()), 0.0)
        for task in ("matched", "qa"):
            if f"{task}_loss" in expected:
                error = largest_error(output.losses[task], expected[f"{task}_loss"])
                yield Quantity(f"{case} {task} loss", error, LOSS)
        if case == "all_ans_ignored":
            gradients = [
                p.grad for n, p in model.named_parameters() if n.startswith("answer_head") and p.grad is not None
            ]
            yield Quantity(f"{case} answer head gradient", max(float(g.abs().max()) for g in gradients), 0.0)


# Trajectory


def check_trajectory(folder: Path) -> Iterator[Quantity]:
    description = json.loads((folder / "config.json").read_text())
    hyper = description["hyper"]
    batches = read_arrays(folder / "batches.npz")
    positions = read_arrays(folder / "positions.npz")["positions"]
    start = read_arrays(folder / "init_state.npz")
    recorded = read_arrays(folder / "result_torch_adamw.npz")
    older_rule = read_arrays(folder / "result_adamw331.npz")

    config = OptimizationConfig(
        batch_size=positions.shape[1],
        gradient_accumulation_steps=hyper["accumulation"],
        epochs=hyper["nominal_epochs"],
        lr=hyper["lr"],
        weight_decay=hyper["weight_decay"],
        adam_epsilon=hyper["eps"],
        warmup_ratio=hyper["warmup_ratio"],
        sgd_lr=hyper["sgd_lr"],
        sgd_momentum=hyper["sgd_momentum"],
        sgd_weight_decay=hyper["sgd_weight_decay"],
        schedule=",".join(map(str, hyper["milestones"])),
        max_grad_norm=hyper["max_grad_norm"],
    )
    variant = {
        "task_qa": True,
        "sub_sampling": True,
        "sub_feat_num": positions.shape[2],
        "use_positional_embedding": True,
    }
    model = build_model(description["config"], variant, start)
    ranks = Ranks.from_environment()
    pick_device(ranks)
    join()
    engine = build_engine(model, config, deepspeed_settings(config, world_size=1), hyper["batches_per_epoch"])

    losses: list[list[float]] = []
    norms: list[float] = []
    rates: list[list[float]] = []
    tracked: list[list[float]] = []
    kept = [name for name in description["tracked"] if name in model.state_dict()]
    engine.train()
    for number in range(len(positions)):
        at_boundary = (number + 1) % hyper["accumulation"] == 0
        inputs = model_inputs({name: array[number] for name, array in batches.items()}, positions[number])
        engine.set_gradient_accumulation_boundary(at_boundary)
        output = engine(**to_device(inputs, engine.device))
        losses.append([output.loss.item(), *(loss.item() for loss in output.losses.values())])
        engine.backward(output.loss)
        if at_boundary:
            rates.append([group["lr"] for group in engine.optimizer.param_groups])
        engine.step()
        if at_boundary:
            norms.append(float(engine.get_global_grad_norm()))
            state = full_state(engine)
            tracked.append([float(state[name].double().norm()) for name in kept])

    micro = np.array(losses)
    yield Quantity("trajectory losses", largest_error(micro[:, 0], recorded["micro_loss"]), TRAJECTORY_LOSS)
    yield Quantity("trajectory losses by task", largest_error(micro[:, 1:], recorded["micro_losses"]), TRAJECTORY_LOSS)
    norm = np.abs(np.array(norms) / recorded["grad_norm"] - 1).max()
    yield Quantity("trajectory gradient norms", float(norm), TRAJECTORY_NORM)
    yield Quantity("trajectory learning rates", largest_error(np.array(rates), recorded["lr"]), LR)
    yield from _final_parameters(full_state(engine), start, recorded, description["state_keys_sorted"])
    columns = [description["tracked"].index(name) for name in kept]
    sizes = np.array([start[name].size for name in kept])
    # |norm(a) - norm(b)| <= norm(a - b) <= tolerance of an entry x sqrt(entries)
    error = np.abs(np.array(tracked) - recorded["tracked_norms"][:, columns]) / np.sqrt(sizes)
    yield Quantity("trajectory norms after each step", float(error.max()), TRAJECTORY_PARAMETER)
    state = full_state(engine)
    older = [largest_error(state[k[6:]], v) for k, v in older_rule.items() if k.startswith("final/") and k[6:] in state]
    yield Quantity("distance from transformers 3.3.1's AdamW", max(older), None)


def _final_parameters(
    state: dict[str, Tensor], start: dict[str, np.ndarray], recorded: dict[str, np.ndarray], keys: list[str]
) -> Iterator[Quantity]:
    finals = {key.removeprefix("final/"): value for key, value in recorded.items() if key.startswith("final/")}
    error = max(largest_error(state[name], value) for name, value in finals.items() if name in state)
    yield Quantity("trajectory final parameters", error, TRAJECTORY_PARAMETER)
    worst = {"all_final_norms": 0.0, "all_delta_norms": 0.0}
    for number, key in enumerate(keys):
        if key not in state or start[key].dtype.kind != "f":
            continue
        final = np.asarray(state[key], dtype=np.float64)
        ours = {"all_final_norms": np.linalg.norm(final), "all_delta_norms": np.linalg.norm(final - start[key])}
        for name, value in ours.items():  # the same bound as for the norms after each step
            worst[name] = max(worst[name], abs(value - recorded[name][number]) / start[key].size ** 0.5)
    for name, error in worst.items():
        yield Quantity(f"trajectory {name}", error, TRAJECTORY_PARAMETER)


# Data


class Replay:
    """Gives out recorded draws in place of random ones."""

    def __init__(self, uniforms: list[float], indices: list[int], picks: list[int] | None = None) -> None:
        self.uniforms, self.indices, self.picks = iter(uniforms), iter(indices), iter(picks or [])

    def random(self) -> float:
        return next(self.uniforms)

    def randrange(self, stop: int) -> int:
        return next(self.indices)

    def choices(self, population: Sequence[Any], weights: Sequence[float]) -> list[Any]:
        return [population[next(self.picks)]]

    def left_over(self) -> int:
        return len([*self.uniforms, *self.indices, *self.picks])


def check_data(folder: Path, answers_file: Path) -> Iterator[Quantity]:
    data, arrays = json.loads((folder / "data.json").read_text()), read_arrays(folder / "data.npz")
    yield from _check_text(folder, data, answers_file)
    yield from _check_grouping(data)
    yield from _check_images(data, arrays)
    with tempfile.TemporaryDirectory() as scratch:
        yield from _check_batches(folder, Path(scratch), data, arrays, answers_file)


def _text_encoder(folder: Path) -> TextEncoder:
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return TextEncoder(bert_tokenizer(words, Splitting()))


def _check_text(folder: Path, data: dict[str, Any], answers_file: Path) -> Iterator[Quantity]:
    raw, normalised = zip(*data["convert_ans"], strict=True)
    yield Quantity("convert_ans", differences([normalise_answer(answer) for answer in raw], normalised), 0)
    for names, answers in data["answer_tables"].items():
        table = AnswerTable.read(answers_file, None if names == "all" else names.split(","))
        yield Quantity(f"answer table {names}", differences(table.answers, answers), 0)

    text = _text_encoder(folder)
    words = text.vocabulary
    ids = []
    for case in data["tokenize"]:
        length = case["max_seq_length"]
        tokens = [words.cls_id, *text(case["text"])[: length - 2], words.sep_id]
        ids.append(tokens + [words.pad_id] * (length - len(tokens)))
    yield Quantity("tokens", differences(ids, [case["input_ids"] for case in data["tokenize"]]), 0)

    def ids_of(token: str) -> int:
        found = text.tokenizer.token_to_id(token)
        return text.tokenizer.token_to_id("[UNK]") if found is None else found

    wrong = 0.0
    for case in data["random_word"]:
        tokens = [ids_of(token) for token in case["tokens"]]
        replay = Replay(case["uniforms"], case["choice_indices"])
        masked, labels = mask_tokens(tokens, replay, rate=case["rate"], mask_id=words.mask_id, vocab_size=words.size)
        wrong += differences(masked, [ids_of(token) for token in case["masked"]])
        wrong += differences(labels, case["labels"]) + replay.left_over()
    yield Quantity("masked words", wrong, 0)


def _check_grouping(data: dict[str, Any]) -> Iterator[Quantity]:
    recorded = data["aspect_groups"]
    for factor in sorted(int(key.removeprefix("group_k")) for key in recorded if key.startswith("group_k")):
        bins = aspect_ratio_bins(factor)
        yield Quantity(f"aspect ratio bins, factor {factor}", differences(bins, recorded[f"bins_k{factor}"]), 0)
        groups = [aspect_ratio_group(height / width, bins) for height, width in recorded["true_height_width"]]
        yield Quantity(f"aspect ratio groups, factor {factor}", differences(groups, recorded[f"group_k{factor}"]), 0)

    wrong = {"training": 0.0, "evaluation": 0.0}
    for case in data["grouped_batches"]:
        groups = np.array(case["group_ids"])
        order = np.array(case["order"], dtype=np.int64)
        if not case["exhaustive"]:
            batches = [batch.tolist() for batch in grouped_batches(order, groups, case["batch_size"])]
            wrong["training"] += differences(batches, case["batches"])
        else:
            # The original repeats items to fill batches; every item once is what evaluation wants.
            batches = [batch.tolist() for batch in exhaustive_batches(groups, case["batch_size"])]
            wrong["evaluation"] += differences(
                sorted(index for batch in batches for index in batch), list(range(len(groups)))
            )
            wrong["evaluation"] += sum(len(set(groups[batch])) != 1 for batch in batches)
    yield Quantity("grouped batches of training", wrong["training"], 0)
    yield Quantity("grouped batches of evaluation", wrong["evaluation"], 0)


def _check_images(data: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[Quantity]:
    geometry = data["geometry"]
    low, high = geometry["min_size"], geometry["max_size"]
    wrong, canvases = 0.0, []
    for width, height, *recorded in geometry["rows"]:
        size = resized_size((width, height), low, high)
        canvas = canvas_size(size[0] > size[1], low, high)
        canvases.append(canvas)
        wrong += differences([*size, *padding(size, canvas), *canvas], recorded)
    yield Quantity("resize and pad geometry", wrong, 0)

    shapes, expected = [], []
    for case in data["collate_shapes"]:
        images = [np.zeros((3, canvases[row][1], canvases[row][0]), dtype=np.uint8) for row in case["rows"]]
        shapes.append(list(stack_images(images).shape))
        expected.append(case["padded_fixed"])
    yield Quantity("collated shapes", differences(shapes, expected), 0)
    fixed = next(value for name, value in arrays.items() if name.startswith("collate_fixed_"))
    stacked = stack_images([arrays[f"collate_in_{number}"] for number in range(len(fixed))])
    yield Quantity("collated values", largest_error(stacked, fixed), 0)

    error = 0.0
    for case in data["images"]:
        pixels = _pixels(arrays, case["index"])
        error = max(error, largest_error(normalise_images(pixels[None])[0], arrays[f"pixels_{case['index']}"]))
    yield Quantity("pixels", error, PIXEL)


def _pixels(arrays: dict[str, np.ndarray], index: int) -> Tensor:
    shape = arrays[f"pixels_{index}"].shape[1:]
    image = Image.fromarray(arrays[f"image_{index}"])
    return torch.from_numpy(resize_and_pad(image, min(shape), max(shape), orient_after_resize=True))


def _check_batches(
    folder: Path, scratch: Path, data: dict[str, Any], arrays: dict[str, np.ndarray], answers_file: Path
) -> Iterator[Quantity]:
    """The annotation file read end to end, and its batches with the recorded draws."""
    recorded = data["dataset"]
    _lay_out(folder, scratch, data, arrays, answers_file)
    answers = AnswerTable.read(scratch / "lxmert" / "all_ans.json")
    shape = arrays["batch_0_visual_feats"].shape[2:]
    images = ImageFolder(scratch, ImageShape(min(shape), max(shape), orient_after_resize=True))
    text = _text_encoder(folder)
    source = AnnotationSource(read_names("tiny_train", scratch / "lxmert"), text, answers)
    split = read_split(source, images, scratch / "cache", allow_missing_images=True)
    # The store of training holds no texts; the one with them holds the sentences without an image, too.
    with_text = replace(source, with_text=True).open(scratch / "cache")
    missing = images.missing(with_text.image_ids)
    ours = [
        {
            "uid": s.uid,
            "img_id": s.img_id,
            "sent": s.text,
            "label": None if s.label is None else {answers.answers[number]: score for number, score in s.label.items()},
        }
        for s in with_text
        if s.img_id not in missing
    ]
    yield Quantity("annotations", differences(ours, recorded["flat"]), 0)

    present = [img_id for img_id in split.sentences.image_ids if img_id not in missing]
    write_image_store(scratch / "lmdb", present, scratch, resize=None, quality=95, workers=0, progress=False)
    stored = ImageStore(scratch / "lmdb", scratch, images.shape)
    wrong = sum(not np.array_equal(images.load(img_id), stored.load(img_id)) for img_id in present)
    yield Quantity("images that differ in an LMDB", wrong, 0)

    options = PretrainingOptions(
        max_seq_length=arrays["batch_0_input_ids"].shape[1], image_size_min=min(shape), image_size_max=max(shape)
    )
    dataset = PretrainingDataset(split, images, text.vocabulary, options)
    yield Quantity("aspect ratio groups of sentences", differences(dataset.groups().tolist(), recorded["groups_k5"]), 0)

    number = 0
    while f"batch_{number}" in recorded:
        case = recorded[f"batch_{number}"]
        picks = [entry["picked"] for entry in case["multinomial"]]
        replay = Replay(case["uniforms"], case["randints"] + case["mask_choice_indices"], picks)
        pairs = [dataset.pair(index, replay) for index in case["indices"]]
        examples = dataset.features(pairs, [replay] * len(pairs))
        for pair, example in zip(pairs, examples, strict=True):
            example.update(number=pair.number, epoch=0, position=0)
        batch = label_all_words(Collator(dataset)(examples))
        wrong = differences([split.sentences[n].uid for n in batch.numbers], case["uid"]) + replay.left_over()
        for name in ("input_ids", "token_type_ids", "attention_mask", "masked_lm_labels", "matched_label", "ans"):
            wrong += float((batch.inputs[name].numpy() != arrays[f"batch_{number}_{name}"]).sum())
        yield Quantity(f"batch {number} tokens and labels", wrong, 0)
        ours, theirs = normalise_images(batch.inputs["images"]).numpy(), arrays[f"batch_{number}_visual_feats"]
        filled = theirs == 0.0  # no uint8 pixel normalises to 0
        yield Quantity(f"batch {number} pixels", largest_error(ours[~filled], theirs[~filled]), PIXEL)
        yield Quantity(f"batch {number} fill", largest_error(ours[filled], theirs[filled]), FILL)
        number += 1


def _lay_out(
    folder: Path, scratch: Path, data: dict[str, Any], arrays: dict[str, np.ndarray], answers_file: Path
) -> None:
    """The recorded arrays as a data folder. PNG content under the JPEGs' names: no pixel may change."""
    (scratch / "lxmert").mkdir()
    (scratch / "lxmert" / "tiny_train.json").write_bytes((folder / "tiny_train.json").read_bytes())
    (scratch / "lxmert" / "all_ans.json").write_bytes(answers_file.read_bytes())
    for case in data["images"]:
        path = scratch / image_path(case["img_id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays[f"image_{case['index']}"]).save(path, format="PNG")
    for split in ("train2014", "val2014", "test2015"):
        (scratch / "mscoco" / split).mkdir(parents=True, exist_ok=True)
    (scratch / "vg_raw_images" / "VG_100K").mkdir(parents=True, exist_ok=True)
    (scratch / SIZES_FILE).write_bytes((folder / "width_heigths.json").read_bytes())


def recorded_scales(recorded: dict[str, np.ndarray]) -> list[str]:
    return sorted({key.split("/")[0] for key in recorded if key.startswith("loss_scale_")})


def check_vqa(folder: Path, device: str) -> Iterator[Quantity]:
    """The answer head from pre-training's, then fine-tuning's passes with it, and a score over all questions."""
    vqa, pretrained = folder / "vqa", folder / "model_pretrain"
    recorded, description = read_arrays(vqa / "vqa.npz"), json.loads((vqa / "config.json").read_text())
    labels = json.loads((vqa / "label2ans.json").read_text())
    table = AnswerTable.read(vqa / "all_ans.json").answers
    state = {key: torch.from_numpy(value) for key, value in read_arrays(pretrained / "state.npz").items()}
    used, _ = split_unused(state, "the recorded state")
    used = {key: tensor for key, tensor in used.items() if not key.startswith("cls.")}
    head = match_answers(used, table, labels)
    for layer in ("0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"):
        error = largest_error(head[f"{HEAD}logit_fc.{layer}"], recorded[f"logit_fc_after/{layer}"])
        yield Quantity(f"answer head {layer}", error, 0)

    text = _text_encoder(vqa)
    tokens = [text(sentence)[: description["max_seq_length"] - 2] for sentence in description["sentences"]]
    framed = [[text.vocabulary.cls_id, *ids, text.vocabulary.sep_id] for ids in tokens]
    padded = [ids + [text.vocabulary.pad_id] * (description["max_seq_length"] - len(ids)) for ids in framed]
    yield Quantity("tokens", differences(padded, recorded["input_ids"].tolist()), 0)

    inputs = {name: torch.from_numpy(recorded[name]) for name in ("input_ids", "token_type_ids", "attention_mask")}
    inputs |= {"images": recorded_images(recorded["images_u8"]), "target": torch.from_numpy(recorded["target"])}
    inputs = to_device(inputs, device)
    shape = {**description["config"], "num_answers": len(labels)}
    variant = {"sub_sampling": False, "use_positional_embedding": True, "task_qa": True}
    scales = {name: float(name.removeprefix("loss_scale_")) for name in recorded_scales(recorded)}
    for name, scale in {"num_answers": float(len(labels)), **scales}.items():
        model = build_model(shape, variant, {}, ClipVilForQuestionAnswering).to(device)
        load_state(model, head, "the recorded state")
        model.loss_scale = scale
        output = model(**inputs)
        output.loss.backward()
        yield Quantity(f"{name} mean loss", largest_error(output.bce, recorded["bce_mean"]), LOSS)
        yield Quantity(f"{name} loss", largest_error(output.loss, recorded[f"{name}/loss"]), LOSS * scale)
        norm = recorded[f"{name}/grad_global_norm"]
        yield Quantity(f"{name} gradient norm", abs(global_norm(gradients_of(model)) / float(norm) - 1), GRADIENT)
        if name == "num_answers":
            error = largest_error(output.answer_scores, recorded["logit"], relative=True)
            yield Quantity("answer scores", error, OUTPUT)
            parameters = dict(model.named_parameters())
            for key in (key.removeprefix("grad/") for key in recorded if key.startswith("grad/")):
                gradient = parameters[our_name(key)].grad
                yield Quantity(
                    f"gradient {key[-36:]}", largest_error(gradient, recorded[f"grad/{key}"], relative=True), GRADIENT
                )
    model = build_model(shape, variant, {}, ClipVilForQuestionAnswering).to(device).eval()
    load_state(model, head, "the recorded state")
    with torch.no_grad():
        scores = model(**inputs).answer_scores
    yield Quantity("evaluation answer scores", largest_error(scores, recorded["eval_logit"], relative=True), OUTPUT)
    yield Quantity("evaluation answers", differences(scores.argmax(1).tolist(), recorded["pred_label"].tolist()), 0)

    evaluator = json.loads((folder / "data" / "data.json").read_text())["vqa_evaluator"]
    predictions = {int(number): answer for number, answer in evaluator["predictions"].items()}
    questions = read_questions([VqaFile(folder / "data" / "tinyval.json")])
    score = score_answers(questions, predictions)["score"]
    # The original divides by the questions that were predicted, we by all.
    error = abs(score * len(questions) / len(predictions) - evaluator["score"])
    yield Quantity("score of the recorded answers", error, 1e-12)


def readable(folder: Path, quantities: Iterator[Quantity]) -> Iterator[Quantity]:
    """The quantities, or the program's end where a recorded file is missing, damaged or of another format."""
    try:
        yield from quantities
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
        print(f"parity: error: {folder} can't be read as recorded numbers ({error!r}); copy it again", file=sys.stderr)
        sys.exit(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recorded numbers, such as tests/golden")
    parser.add_argument("--passes", type=int, help="in half precision, only so many of the recorded ones")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", *DTYPES), default=["fp32"])
    options = parser.parse_args()
    folder: Path = options.folder
    device: str = get_accelerator().device_name()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = folder / "model_pretrain"
    checks: list[tuple[Path, Callable[[], Iterator[Quantity]]]] = []
    if "fp32" in options.dtype:
        checks += [
            (model, lambda: check_model(model, device)),
            (folder / "trajectory", lambda: check_trajectory(folder / "trajectory")),
            (folder / "data", lambda: check_data(folder / "data", folder / "vqa" / "all_ans.json")),
            (folder / "vqa", lambda: check_vqa(folder, device)),
        ]
    for dtype in (name for name in DTYPES if name in options.dtype):
        checks.append((model, partial(half_precision, model, device, dtype, options.passes)))
    for part, _ in checks:
        if not part.is_dir():
            print(f"parity: error: {part} is missing; give a folder of recorded numbers", file=sys.stderr)
            return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failures = 0
    for part, check in checks:
        for quantity in readable(part, check()):
            failures += quantity.is_beyond
            print(quantity, flush=True)
    print(f"{failures} quantities beyond their tolerance" if failures else "all within tolerance")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
