"""From a folder of photos and a table of texts to a model that others load: what one does with data of one's own.

    make demo-own

1. draw the photos                 data/demo_own: photos/, captions.jsonl, and a small bert/
2. look at them                    launch/prepare.py inspect data/demo_own/captions.jsonl
3. make a table of the answers     launch/prepare.py answers --train data/demo_own/captions.jsonl
4. train                           deepspeed --num_gpus 2 launch/pretrain.py --train data/demo_own/captions.jsonl
5. evaluate, with the images and blind (every image grey)
6. export                          launch/convert.py --from deepspeed CHECKPOINT --to hub snap/demo_own/hub
7. ask the model about a photo, with transformers alone
8. print, and write snap/demo_own/summary.json
"""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported

# isort: split
from transformers.hf_argparser import HfArg

from engine.configuration.parsing import parse, parse_command
from engine.distributed.ranks import Ranks
from engine.synthetic.command import DrawingConfig, prepare_photos
from engine.synthetic.demo import VISUAL_WORDS
from engine.synthetic.held_out import evaluate_held_out
from engine.synthetic.photos import TABLE
from engine.tasks.pretraining import PretrainConfig
from engine.training.program import RECIPES
from launch.demo import run_program, run_python, training_flags, words

# Four texts share their image's pass through the backbone, and the model reads all cells, as it will elsewhere.
TRAINING = ["--recipe", "demo_stage_one", "--taskQA", "true", "--sub_sampling", "false", "--sentences_per_image", "4"]
READS = ["--max_seq_length", "14", "--image_size_min", "64", "--image_size_max", "96"]  # as the recipe says
ASK = """\
import sys
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder, photo, caption, question = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(Image.open(photo), caption)
masked = inputs["input_ids"] == processor.tokenizer.mask_token_id
print(caption, "->", processor.decode(model(**inputs).lm_scores[masked].argmax(-1)))
answer = model(**processor(Image.open(photo), question)).answer_scores.argmax().item()
print(question, "->", model.config.id2label[answer])
"""


@dataclass
class OwnDemoConfig(DrawingConfig):
    """The demo's own flags; the training's are in launch/recipes/demo_stage_one.yaml, or follow its command."""

    data_root: str = HfArg(default="data/demo_own", help="folder to draw the photos and their table into")
    train_scenes: int = HfArg(default=2000, help="photos to train on")
    valid_scenes: int = HfArg(default=200, help="held-out photos")
    sentences_per_scene: Literal[4, 8] = HfArg(default=8, help="half of them captions, half questions")
    output: str = HfArg(default="snap/demo_own", help="folder for the run, the model and summary.json")
    training: str = HfArg(default="", help="more flags for the training, in one string")


def train(config: OwnDemoConfig, table: str, answers: str, run: str) -> None:
    files = ["--train", table, "--valid", table, "--answers", answers]
    run_program("pretrain", [*TRAINING, *training_flags(config), *files, "--output", run, *config.training.split()])


def held_out_photo(table: Path) -> tuple[str, str, str]:
    """The last photo to validate on, a caption of it and a question about it."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "val"]
    rows = [row for row in rows if row["image"] == rows[-1]["image"]]
    caption, question = (next(row[name] for row in rows if name in row) for name in ("caption", "question"))
    return str(table.parent / rows[0]["image"]), caption, question


def ask_elsewhere(output: str, model: str, table: Path) -> None:
    """Fill in a word and answer a question in a process that finds the installed packages, but not this checkout."""
    photo, caption, question = held_out_photo(table)
    masked = next(word for word in caption.split() if word in VISUAL_WORDS)
    script = Path(output, "ask.py")
    script.write_text(ASK)
    print(f"\n{script}:\n\n{ASK}\n{photo} shows: {caption}")
    run_python(
        ["-S", str(script), model, photo, caption.replace(masked, "[MASK]", 1), question], variables=other_packages()
    )


def other_packages() -> dict[str, str]:
    """With `python -S`, which leaves out what an editable installation adds to the path."""
    return {"PYTHONPATH": os.pathsep.join(place for place in sys.path if Path(place).name.endswith("-packages"))}


@launch.program
def main() -> None:
    started = time.monotonic()
    config = parse_command(OwnDemoConfig, sys.argv[1:])
    Ranks.check_alone()
    output, table, answers = config.output, f"{config.data_root}/{TABLE}", f"{config.data_root}/answers.json"
    run, hub = f"{output}/run", f"{output}/hub"
    for earlier in (run, hub):
        shutil.rmtree(earlier, ignore_errors=True)  # an earlier demo's
    Path(output).mkdir(parents=True, exist_ok=True)
    prepare_photos(config)
    own = ["--data_root", config.data_root]
    found = ["--bert", f"{config.data_root}/bert", *READS, "--sheet", f"{output}/photos.jpg"]
    run_python([*words("prepare"), "inspect", table, *own, *found], may_end_with=1)  # it finds what is wrong
    kept = ["--train", table, "--valid", "", "--output", answers, "--force"]
    run_python([*words("prepare"), "answers", *own, *kept])
    train(config, table, answers, run)
    flags = ["--recipe", f"{run}/config.yaml", "--load", run]
    summary = evaluate_held_out(parse(PretrainConfig, flags, RECIPES)[0])
    run_python([*words("convert"), "--from", "deepspeed", run, "--to", "hub", hub])
    ask_elsewhere(output, hub, Path(table))
    summary["seconds"] = round(time.monotonic() - started, 1)
    Path(output, "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print("\non held-out photos     with images   blind")
    for name in ("masked_word_accuracy", "qa_accuracy"):
        print(f"{name:<22} {summary[name]:<13.3f} {summary[name + '_blind']:.3f}")
    print(f"{summary['seconds']:.0f} seconds; {hub} is the model, {output}/summary.json has these figures")


if __name__ == "__main__":
    main()
