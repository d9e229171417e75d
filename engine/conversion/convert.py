"""From one format of weights to another, with an account of every key.

A conversion reads one or more sources, the first that has a tensor gives it, holds the result against the model that it
describes, and writes one target.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import set_seed

from engine.checkpoint.answers import match_answers
from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.original import SUFFIX, write_original
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.checkpoint.restoring import restore_optimizers, restore_schedule
from engine.checkpoint.saving import Checkpoints
from engine.checkpoint.state import CONTENT, SavedState
from engine.checkpoint.weights import BACKBONE, UNUSED, LoadReport, State, compare, load_state
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.conversion.flags import TARGETS, ConvertConfig
from engine.conversion.hub.export import save_hub
from engine.conversion.onnx_file import check_onnx, save_onnx
from engine.conversion.sources import Source, describe, read_source
from engine.data.annotations.answers import AnswerTable
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.training.engine import build_engine


def merge(sources: Sequence[Source]) -> tuple[State, State, list[str]]:
    """Weights and unused parts, and a line for each source that says how much it gave."""
    weights: State = {}
    unused: State = {}
    lines = []
    for source in sources:
        new = [key for key in source.weights if key not in weights]
        new_unused = [key for key in source.unused if key not in unused]
        weights.update({key: source.weights[key] for key in new})
        unused.update({key: source.unused[key] for key in new_unused})
        lines.append(f"{source.name}: {len(new)} tensors, {len(new_unused)} that no model here uses")
    return weights, unused, lines


def table(report: LoadReport, unexpected: Sequence[str]) -> str:
    """What became of the keys, those first that need a look."""
    kinds = {
        "matched": report.matched,
        "missing": report.missing,
        "unexpected": [*report.unexpected, *unexpected],
        "mismatched": report.mismatched,
    }
    lines = [f"{name:<12}{len(keys):>7}" for name, keys in kinds.items()]
    lines += [f"{name}: {key}" for name, keys in kinds.items() if name != "matched" for key in keys]
    return "\n".join(lines)


def convert(config: ConvertConfig) -> None:
    """Read, compare, print, write.

    Raises:
        UserError: for keys that are missing, unexpected or of another shape and not allowed, and for what can't be read
            or written.
    """
    kind, path = config.to
    target = Path(f"{path}{SUFFIX}" if kind == "lxrt" and not path.endswith(".pth") else path)
    if kind not in TARGETS:
        raise UserError(f"--to {kind}: one of {', '.join(TARGETS)} is needed")
    if target.exists():
        raise UserError(f"--to {kind} {target} is there already; remove it or choose another place")
    if kind == "onnx":
        check_onnx()
    sources = [read_source(*source) for source in config.sources]
    places = [(source.kind, source.path) for source in sources]
    weights, unused, lines = merge(sources)
    description = describe(sources, config)
    if config.new_answers is not None and description.answers is not None:
        answers = AnswerTable.read(Path(config.new_answers)).answers
        weights = match_answers(weights, description.answers, answers)
        description = replace(description, answers=answers)
    if kind == "hub" and description.vocabulary is None:
        raise UserError("--to hub: no source says what the model's words are; name its BERT with --bert")
    set_seed(config.seed)
    model = description.build()
    report = compare(model, weights, "")
    unexpected = [key for source in sources for key in source.unexpected]
    print("\n".join([*lines, "", table(report, unexpected)]), flush=True)
    _check(report, unexpected, config)
    for key in (*report.unexpected, *(line.split(" ")[0] for line in report.mismatched)):
        del weights[key]
    load_state(model, weights, "the sources", may_miss=("",))
    state = {key: tensor for key, tensor in model.state_dict().items()}

    if kind == "lxrt":
        _write_lxrt(target, {**state, **unused}, config, description.architecture)
    elif kind == "safetensors":
        origins = ", ".join(f"{kind} {Path(path).name}" for kind, path in places)  # no paths of this machine
        trained_on = next((source.trained_on for source in sources if source.trained_on is not None), None)
        save_pretrained(target, state, unused, description, origins, trained_on=trained_on)
    elif kind == "hub":
        if config.license is None:
            print("no licence is in the model card; --license NAME puts one there, such as mit")
        save_hub(*(target, state, description, places), max_shard_size=config.max_shard_size, license=config.license)
    elif kind == "onnx":
        print("torch exports the model, which takes minutes for a large one", flush=True)
        save_onnx(target, state, description)
    else:
        training = next((source.training for source in sources if source.training is not None), None)
        _write_deepspeed(target, model, unused, description, training)
    print(f"wrote {target}")


def _check(report: LoadReport, unexpected: Sequence[str], config: ConvertConfig) -> None:
    counts = {
        "missing": len(report.missing),
        "unexpected": len(report.unexpected) + len(unexpected),
        "mismatched": len(report.mismatched),
    }
    refused = [name for name, count in counts.items() if count and not getattr(config, f"allow_{name}")]
    if refused:
        found = ", ".join(f"{counts[name]} {name}" for name in refused)
        flags = " ".join(f"--allow_{name}" for name in refused)
        raise UserError(f"{found} keys, listed above; nothing was written. {flags} takes the rest all the same")


def _write_lxrt(target: Path, state: State, config: ConvertConfig, architecture: str) -> None:
    lacking = [part for part in UNUSED if not any(key.startswith(part) for key in state)]
    if lacking:
        print(
            f"without {', '.join(part.removeprefix(BACKBONE) for part in lacking)}: the original's pre-training loads "
            "this, its VQA fine-tuning asks for them as well; another --from lxrt FILE or openai-clip FILE adds them"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_original(target, state, prefix=config.module_prefix, architecture=architecture)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{target} can't be written ({reason}); free space or choose another place") from None


def _write_deepspeed(
    target: Path,
    model: torch.nn.Module,
    unused: State,
    description: ModelDescription,
    training: SavedState | None,
) -> None:
    """A checkpoint as a run of one rank writes it, for --load."""
    pick_device(ALONE)
    join()
    config = OptimizationConfig()
    engine = build_engine(model, config, deepspeed_settings(config, 1), batches_per_epoch=1)
    if training is not None:
        names = [name for name, _ in engine.module.named_parameters()]
        adamw = [name for name in names if not name.startswith(BACKBONE)]
        found = {
            "adamw": all(training.moment_keys(name) for name in adamw),
            "sgd": any(training.moment_keys(name) for name in names if name.startswith(BACKBONE)),
            "schedule": training.scheduler is not None,
        }
        restore_optimizers(engine, training, [name for name in ("adamw", "sgd") if found[name]])
        if found["schedule"]:
            restore_schedule(engine, training)
        print("state of " + (", ".join(name for name in found if found[name]) or "no optimiser"))
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(engine, target.parent)
    content = {"description": description.to_dict(), "unused": unused}
    checkpoints.save(target.name, 0, {CONTENT: content}, weights_file=False)
    checkpoints.finish()
    torch.distributed.destroy_process_group()
