"""The model card: what a reader on a model hub wants to know, and nothing that isn't recorded."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.original import SUFFIX
from engine.checkpoint.manifest import read_manifest
from engine.checkpoint.weights import State
from engine.errors import UserError
from engine.provenance.compare import METRICS, read_metrics, read_run

SETTINGS = (  # flags of a training; none of them is a path
    *("epochs", "max_steps", "seed", "batch_size", "gradient_accumulation_steps", "global_batch_size", "lr", "sgd_lr"),
    *("weight_decay", "sgd_weight_decay", "warmup_ratio", "schedule", "max_grad_norm", "fp16", "bf16"),
    *("clip_model_name", "freeze_batch_norm", "sub_feat_num", "image_size_min", "image_size_max", "max_seq_length"),
)
NO_LICENSE = "No licence was named: whoever publishes this model has to choose one, as `license:` in the first lines."
USES = {
    "question_answering": """
    from PIL import Image
    from transformers import AutoModel, AutoProcessor
    model = AutoModel.from_pretrained({name}, trust_remote_code=True)
    inputs = AutoProcessor.from_pretrained({name}, trust_remote_code=True)(Image.open("photo.jpg"), "What is this?")
    print(model.config.id2label[model(**inputs).answer_scores.argmax().item()])
""",
    "pretraining": """
    from PIL import Image
    from transformers import AutoModel, AutoProcessor
    model = AutoModel.from_pretrained({name}, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained({name}, trust_remote_code=True)
    inputs = processor(Image.open("photo.jpg"), "a [MASK] on a sofa")
    masked = inputs["input_ids"] == processor.tokenizer.mask_token_id
    print(processor.decode(model(**inputs).lm_scores[masked].argmax(-1)))

After a training that learnt it (`--taskMatched`), `matched_scores` tell whether image and text belong together.
""",
}


def model_card(
    name: str, state: State, description: ModelDescription, sources: Sequence[tuple[str, str]], license: str | None
) -> str:
    """README.md of an exported folder. Paths of this machine don't get into it."""
    visual, reads = description.visual, description.preprocessing
    bert = {name: value for name, value in description.bert.items() if name != "transformers_version"}
    millions = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()) / 1e6
    task = "pipeline_tag: visual-question-answering\n" if description.architecture == "question_answering" else ""
    facts = {
        "from": ", ".join(f"{kind} {Path(path).name}" for kind, path in sources),
        "values": f"{millions:.1f} million, fp32",
        "backbone": f"ResNet {'-'.join(map(str, visual.backbone.layers))}, width {visual.backbone.width}",
        "cells read per image in training": "all" if visual.sub_feat_num is None else visual.sub_feat_num,
        "position tables": f"{visual.pos_num} rows" if visual.use_positional_embedding else "none",
        "BERT": f"`{json.dumps(bert)}`",
        "answer head": "none" if description.answers is None else f"{len(description.answers):,} answers",
        "images": f"short side {reads.image_size_min}, long side at most {reads.image_size_max} pixels, on black",
        "texts": f"{reads.max_seq_length} tokens",
    }
    return f"""---
library_name: transformers
{task}tags: [clip-vil, vision-and-language, custom_code]
{f"license: {license}" if license is not None else f"# {NO_LICENSE}"}
---

# {name}

CLIP-ViL ("How Much Can CLIP Benefit Vision-and-Language Tasks?", Shen et al., 2021): a CLIP ResNet and a BERT over one
sequence of words and grid cells. It needs torch, transformers 5.3 or newer, and Pillow.
{USES[description.architecture].format(name=json.dumps(name))}
{_cells(visual.sub_feat_num)}

{_table(facts)}

{_training(sources)}
## Licence

{license if license is not None else NO_LICENSE}
"""


def _cells(sub_feat_num: int | None) -> str:
    if sub_feat_num is None:
        return "The model reads all cells of an image's grid, as in its training."
    return f"""The model reads all cells of an image's grid unless it is told otherwise. Its training drew
{sub_feat_num} of them, and so do the engine's evaluations, but for those with `--no_sub_sampling_in_evaluation`. Given
`sampling_state=torch.tensor([seed, 0, place])`, the model draws the cells that these draw: `place` is that of the first
text in the evaluation, and the seed is 9595 unless another was asked for. `positions` names cells outright."""


def _training(sources: Sequence[tuple[str, str]]) -> str:
    """The figures of the first source that is a run's checkpoint, with the run's files beside it."""
    for _, path in sources:
        checkpoint = Path(path.removesuffix(SUFFIX))
        records = read_metrics(checkpoint.parent / METRICS)
        step = _step(checkpoint, records)
        try:
            about = read_run(checkpoint.parent).about if step else {}
        except UserError:
            continue
        if about:
            return _figures(step, records, about)
    return "How it was trained isn't recorded.\n"


def _step(checkpoint: Path, records: Sequence[Mapping[str, Any]]) -> int:
    """The optimiser step of a run's checkpoint; 0 for what is none, or doesn't say."""
    try:
        return int(read_manifest(checkpoint)["step"])
    except UserError:  # it was deleted, and the file with its weights kept
        found = re.fullmatch(r"(Epoch|Step)(\d+)", checkpoint.name)
    if found is None:
        return 0
    number = int(found[2])
    if found[1] == "Step":
        return number
    return next((int(each["step"]) for each in records if each["kind"] == "valid" and each["epoch"] == number), 0)


def _figures(step: int, records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    reports = [each for each in records if each["kind"] == "train" and each["step"] <= step]
    validations = [each for each in records if each["kind"] == "valid" and each["step"] == step]
    flags = about.get("configuration", {})
    facts: dict[str, Any] = {"optimiser step": f"{step:,}"}
    for use in ("train", "valid"):
        if flags.get(use):
            facts[{"train": "trained on", "valid": "validated on"}[use]] = ", ".join(
                Path(each).name for each in str(flags[use]).split(",")
            )
    for use, counts in about.get("data", {}).items():
        facts |= {f"{use}: {what}": f"{counts[what]:,}" for what in ("sentences", "images") if what in counts}
    if "hosts" in about:
        places = [gpu for host in about["hosts"].values() for gpu in host["gpus"] or [host["cpu"]] * len(host["ranks"])]
        facts["ranks"] = ", ".join(f"{places.count(each)} on {each}" for each in dict.fromkeys(places))
    facts |= {f"{name}, last report": value for name, value in _numbers(reports[-1:])}
    facts |= {f"{name}, validation": value for name, value in _numbers(validations[-1:])}
    facts |= {name: flags[name] for name in SETTINGS if flags.get(name) is not None}
    return f"## Training\n\n{_table(facts)}\n"


def _numbers(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Losses and scores of a report, if there is one; not what tells of its speed, or goes into tables."""
    quantities = ("loss", "accuracy", "score", "epoch", "questions")
    return [
        (name, f"{value:.6g}")
        for record in records
        for name, value in record.items()
        if name.endswith(quantities) and isinstance(value, int | float)
    ]


def _table(facts: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])
