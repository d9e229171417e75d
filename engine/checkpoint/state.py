"""Where a training goes on from: a checkpoint of this engine or of the original, as one kind of object."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from transformers import BertConfig

from engine.checkpoint.answers import known_answers, match_answers
from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.original import SUFFIX, read_original
from engine.checkpoint.formats.pretrained import CONFIG, ModelFolder, read_description
from engine.checkpoint.manifest import BEST, LAST, MANIFEST, best_or_newest, verify
from engine.checkpoint.shards import MODEL_STATES, Shards, load_shard
from engine.checkpoint.weights import HEAD, POSITION_TABLES, POSITIONS, LoadReport, State, load_state, resize_rows
from engine.commands import command
from engine.configuration.bert import Splitting, bert_tokenizer, read_bert
from engine.data.trained_on import TrainedOn
from engine.distributed.ranks import ALONE, Ranks
from engine.distributed.sharing import share_on_node
from engine.errors import UserError

CONTENT = "clipvil"  # our own entry beside DeepSpeed's
SHOWN_CHECKPOINTS = 8
# What a model of fewer parts leaves of a checkpoint, by the beginnings of names.
LEFT_OUT = {
    HEAD: "the answer head, as this training answers no questions and the file doesn't name the answers",
    POSITIONS: "the position tables, as --use_positional_embedding is off",
}


class SavedState(Protocol):
    """Weights, and what optimisers and schedules remember, by the names of parameters."""

    source: str
    scheduler: dict[str, Any] | None

    @property
    def description(self) -> ModelDescription | None: ...  # where it is known
    @property
    def answers(self) -> list[str] | None: ...  # of the head's rows, where it is known
    @property
    def trained_on(self) -> TrainedOn | None: ...  # where it is known
    @property
    def loss_scaler(self) -> Any: ...
    def weights(self) -> State: ...
    def moment_keys(self, name: str) -> set[str]: ...
    def moments(self, name: str) -> State: ...
    def steps(self, name: str) -> float | None: ...


class Checkpoint(Shards):
    """A checkpoint folder of this engine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = str(folder)
        self.content = content_of(self.model, folder)
        self.description = ModelDescription.from_dict(self.content["description"], self.source)
        self.scheduler: dict[str, Any] | None = self.model["lr_scheduler"]
        self.counters = {name: self.model[name] for name in ("global_steps", "skipped_steps", "global_samples")}

    @property
    def answers(self) -> list[str] | None:
        return self.description.answers

    @property
    def trained_on(self) -> TrainedOn | None:
        return TrainedOn.from_tensors(self.content.get("trained_on"))

    def weights(self) -> State:
        return {**super().weights(), **self.content.get("frozen_weights", {})}

    def unused(self) -> State:
        """What the original's files hold and no model here uses."""
        return dict(self.content.get("unused", {}))


def content_of(model: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Our own entry in a checkpoint's file of the model; UserError if there is none."""
    if CONTENT not in model:
        raise UserError(f"{folder} was not written by this engine")
    return dict(model[CONTENT])


def open_checkpoint(path: str, ranks: Ranks = ALONE, *, optimizers: bool = True, verified: bool = True) -> SavedState:
    """`snap/pretrain/NAME/Epoch09`, with or without `_LXRT.pth`: ours, verified, or the original's.

    A folder with a model will do, too, the `BEST.pth` of the original's VQA, and the folder of a run, `snap/vqa/NAME`:
    see best_or_newest.

    Args:
        ranks: local rank 0 finds and verifies it; those of a machine all call this, and open the same one.
        optimizers: whether the original's optimiser files are read, where there are any.
        verified: whether ours is compared with its hashes, which takes as long as reading all of it; else a first look
            compares sizes.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    first = ranks.rank == 0
    found = share_on_node(ranks, f"checkpoint {path}", lambda: find_checkpoint(path, hashes=verified, progress=first))
    if (found / CONFIG).exists():
        return ModelFolder(found)
    return Checkpoint(found) if found.is_dir() else read_original(found, optimizers=optimizers)


def describe(path: str) -> tuple[Path, ModelDescription] | None:
    """The checkpoint that a path names, and what it says of its model; None for the original's, which say nothing.

    A first look: bytes aren't compared with their hashes.

    Raises:
        UserError: if there is none, or it can't be read.
    """
    found = find_checkpoint(path, hashes=False)
    return (found, describe_folder(found)) if found.is_dir() else None


def describe_folder(folder: Path) -> ModelDescription:
    """What a checkpoint or model of ours says of itself; the optimisers' files, of each rank one, stay closed.

    Raises:
        UserError: if it can't be read.
    """
    if (folder / CONFIG).exists():
        return read_description(folder)
    content = content_of(load_shard(folder / MODEL_STATES), folder)
    return ModelDescription.from_dict(content["description"], str(folder))


def read_words(bert: str, do_lower_case: bool | None = None) -> tuple[BertConfig, Tokenizer]:
    """What --bert names: a checkpoint or model of ours, or see read_bert.

    Raises:
        UserError: if it can't be read, or a model of ours doesn't know its words.
    """
    if not (Path(bert) / MANIFEST).is_file():
        return read_bert(bert, do_lower_case)
    description = describe_folder(Path(bert))
    if description.vocabulary is None:
        raise UserError(f"{bert} has no vocabulary; give --bert the model that it was trained with")
    splitting = description.splitting or Splitting()
    if do_lower_case is not None:
        splitting = replace(splitting, do_lower_case=do_lower_case)
    return BertConfig.from_dict(description.bert), bert_tokenizer(description.vocabulary, splitting)


def find_checkpoint(path: str, *, hashes: bool = True, progress: bool = False) -> Path:
    """The folder or the original's file that a path names, ours verified.

    Args:
        hashes: see verify.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    folder = Path(path.removesuffix(SUFFIX).removesuffix(".pth"))
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"the folder {folder} can't be read (Permission denied); mend its rights, or name another one")
    if (folder / CONFIG).exists() and not (folder / MANIFEST).exists():
        raise UserError(
            f"{folder} has {CONFIG} but no {MANIFEST}: it is no checkpoint of this engine, or not a whole one; of a "
            "folder for transformers (--to hub), name the checkpoint that it was made from"
        )
    if (folder / MANIFEST).exists():
        verify(folder, hashes=hashes, progress=progress)
        return folder
    files = [Path(f"{folder}{SUFFIX}"), Path(f"{folder}.pth")]
    found = next((file for file in files if file.is_file()), None)
    if found is None and (found := best_or_newest(folder, hashes=hashes, progress=progress)) is None:
        raise no_checkpoint(folder, files)
    return found


def no_checkpoint(folder: Path, files: list[Path]) -> UserError:
    """What to say where none of the places has a checkpoint: what was looked for, and what is there instead."""
    if folder.is_dir():
        seen, place = folder, f"the folder {folder} has neither {MANIFEST} nor {CONFIG}"
    else:
        seen = next(parent for parent in folder.parents if parent.is_dir() or parent == parent.parent)
        place = f"there is no folder {folder} with {MANIFEST} or {CONFIG}"
    inside = seen.iterdir() if seen.is_dir() else []
    names = [path.name for path in inside if path.suffix == ".pth" or (path / MANIFEST).is_file()]
    found = sorted(names, key=lambda name: (name in (BEST, LAST), name))  # the last ones are shown
    if (seen / MANIFEST).exists():
        rest = f"the checkpoint is {seen} itself: name that folder"
    elif found:
        rest = f"{seen} holds {', '.join(found[-SHOWN_CHECKPOINTS:])}: name one of them"
    elif seen == folder:
        rest = "nor has a run left BEST, LAST or a checkpoint in it; check the path"
    else:
        rest = f"nor is there one in {seen}; check the path"
    return UserError(f"{place}, and neither {files[0].name} nor {files[1].name} is beside it; {rest}")


def load_weights(
    model: torch.nn.Module, saved: SavedState, answers: list[str] | None, *, without: Mapping[str, str] | None = None
) -> LoadReport:
    """Fill a freshly built model. The answer head may be new; rows of another table are matched by their answers.

    Position tables with another number of rows are interpolated.

    Args:
        without: what the model doesn't take: beginnings of names, each with what they are and why.
    """
    state, own, left_out = dict(saved.weights()), model.state_dict(), {}
    refused = without or {}
    for beginning, what in {**LEFT_OUT, **refused}.items():
        is_taken = beginning not in refused and any(key.startswith(beginning) for key in own)
        if not is_taken and (keys := [key for key in state if key.startswith(beginning)]):
            left_out[what] = keys
            state = {key: tensor for key, tensor in state.items() if not key.startswith(beginning)}
    notes = []
    if answers is not None and saved.answers is not None and any(key.startswith(HEAD) for key in state):
        state = match_answers(state, saved.answers, answers)
        notes.append(known_answers(saved.answers, answers))
    wanted = {key: len(tensor) for key, tensor in own.items() if key in POSITION_TABLES}
    rows = {(len(state[key]), number) for key, number in wanted.items() if key in state and len(state[key]) != number}
    state |= {key: resize_rows(state[key], number) for key, number in wanted.items() if key in state}
    report = load_state(model, state, saved.source, may_miss=(HEAD,))
    report.left_out, report.notes = left_out, notes
    if any(key.startswith(HEAD) for key in report.missing):
        report.notes.append("the answer head begins with random weights")
    told = "position tables: {} rows interpolated to {}, and so are their moments, if these are loaded"
    report.notes += [told.format(before, now) for before, now in sorted(rows)]
    return report


def build_network(saved: SavedState, device: torch.device, dtype: torch.dtype) -> Any:
    """The network of a checkpoint that describes itself, to compute with: one of engine.checkpoint.description.MODELS.

    Its weights are in `dtype`; batch norm's statistics stay fp32.
    """
    assert saved.description is not None
    network = saved.description.build()
    load_weights(network, saved, saved.answers)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network.to(device).eval()


def load_pretrained(folder: str | Path, *, sub_sampling: bool = True) -> Any:
    """The network in a folder: BEST, LAST, a checkpoint, a run's folder, or what `launch/convert.py --to safetensors`
    wrote.

    One of engine.checkpoint.description.MODELS, in fp32, on the CPU, in evaluation mode. It takes tensors;
    `engine.load_pretrained` gives one that takes images and sentences.

    Args:
        sub_sampling: whether cells are drawn, if the model was trained so: it then takes a `sampling_state`, int64
            (seed, step, number of the first image). If not, it reads all cells of an image.

    `read_description` gives the answers and the vocabulary of a folder with safetensors.

    Raises:
        UserError: if there is none, it is incomplete or damaged, or it doesn't say what model it is of.
    """
    saved = open_checkpoint(str(folder), optimizers=False)
    if saved.description is None:
        raise UserError(
            f"{saved.source} doesn't say what model it is of; {command('convert')} makes a folder that does"
        )
    network = build_network(saved, torch.device("cpu"), torch.float32)
    network.bert.encoder.sub_sampling_in_evaluation = sub_sampling
    return network


def check_words(saved: SavedState, description: ModelDescription) -> None:
    """Refuse weights whose rows of the word embeddings stand for other pieces, or that know words split otherwise.

    Pieces may have been added at the end.

    Raises:
        UserError: with the first difference.
    """
    if (theirs := saved.description) is None:
        return
    remedy = "words would silently become others; give --bert the model that it was trained with"
    for number, (before, now) in enumerate(zip(theirs.vocabulary or (), description.vocabulary or (), strict=False)):
        if before != now:
            raise UserError(
                f"{saved.source} has learnt {before!r} as number {number} of its vocabulary, which is {now!r} in that "
                f"of --bert; {remedy}"
            )
    known, given = theirs.splitting, description.splitting
    if known is not None and given is not None and known.resolved != given.resolved:
        raise UserError(
            f"{saved.source} was trained with {known}, --bert has {given}; {remedy}, and the same --do_lower_case"
        )
