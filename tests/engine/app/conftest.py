"""Small models with random weights, and servers of their page in threads of this process."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import engine
from engine.app.command import listen
from engine.app.connection import build_server
from engine.app.flags import AppConfig
from engine.app.server import build_app
from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.configuration.bert import read_bert
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape

Serve = Callable[..., int]  # models and flags -> the port


def save_models(scenes: Path, root: Path) -> dict[str, Path]:
    """By architecture: `pretraining`, which does everything but answer, and `question_answering`."""
    bert, tokenizer = read_bert(str(scenes / "bert"))
    visual = VisualShape(SHAPES["tiny"], sub_feat_num=5, pos_num=3)
    reads = Preprocessing(image_size_min=64, image_size_max=96)
    answers = {
        "pretraining": None,
        "question_answering": json.loads((scenes / "vqa" / "trainval_label2ans.json").read_text()),
    }
    torch.manual_seed(3)
    for kind, known in answers.items():
        description = ModelDescription.of(bert, visual, known, tokenizer, kind, reads)
        save_pretrained(root / kind, description.build().state_dict(), {}, description, "a test")
    return {kind: root / kind for kind in answers}


@pytest.fixture(scope="session")
def models(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folders = save_models(scenes, tmp_path_factory.mktemp("models"))
    return {kind: engine.load_pretrained(folder, device="cpu") for kind, folder in folders.items()}


@contextmanager
def serving(models: list[Any], **flags: Any) -> Iterator[int]:
    """A server of these models, and its port."""
    config = AppConfig(load="a test's", **flags)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = build_server(build_app(config, models), config.max_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Servers until the test's end."""
    with ExitStack() as servers:
        yield lambda models, **flags: servers.enter_context(serving(models, **flags))
