"""prepare.py demo, and what the second demo draws."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.hf_argparser import HfArg

from engine.data.preparation import PrepareConfig, Summary
from engine.synthetic.demo import write_demo
from engine.synthetic.photos import write_photos


@dataclass
class DrawingConfig:
    """Which data set to draw for the demo, and where."""

    data_root: str = HfArg(default="data/demo", help="folder to draw the data set into")
    train_scenes: int = HfArg(default=5000, help="scenes to train on")
    valid_scenes: int = HfArg(default=500, help="held-out scenes")
    sentences_per_scene: Literal[4, 8] = HfArg(default=4, help="half of them captions, half questions")
    seed: int = HfArg(default=9595, help="seed of the scenes")


@dataclass
class PrepareDemo(DrawingConfig, PrepareConfig):
    """Draw the demo's small data set."""


def prepare_demo(config: DrawingConfig) -> Summary:
    """The demo's data set."""
    return draw(config, write_demo)


def prepare_photos(config: DrawingConfig) -> Summary:
    """The same world as one's own photos."""
    return draw(config, write_photos)


def draw(config: DrawingConfig, write: Callable[..., None]) -> Summary:
    write(
        Path(config.data_root),
        train_scenes=config.train_scenes,
        valid_scenes=config.valid_scenes,
        seed=config.seed,
        sentences_per_scene=config.sentences_per_scene,
        progress=True,
    )
    scenes = f"{config.train_scenes:,} scenes to train on and {config.valid_scenes:,} held out"
    print(f"{config.data_root} has {scenes}", flush=True)
    return {"data_root": config.data_root, "train_scenes": config.train_scenes, "valid_scenes": config.valid_scenes}
