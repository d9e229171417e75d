"""The model as an ONNX file, run by ONNX Runtime beside the engine's."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.conversion import onnx_file
from engine.errors import UserError
from tests.conftest import small_tmpfs
from tests.engine.conversion.test_hub import ROUNDINGS, WORDS, describe, models, random_model, run  # noqa: F401


def batch(size: int, length: int, height: int, width: int) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(size)
    return {
        "input_ids": torch.randint(0, len(WORDS), (size, length), generator=draws),
        "token_type_ids": torch.randint(0, 2, (size, length), generator=draws),
        "attention_mask": (torch.arange(length) < torch.randint(3, length + 1, (size, 1), generator=draws)).long(),
        "images": torch.randint(0, 256, (size, 3, height, width), generator=draws, dtype=torch.uint8),
    }


@pytest.mark.slow
def test_onnx_runtime_gives_the_same(models: Path, tmp_path: Path) -> None:  # noqa: F811
    """For other numbers of texts, other lengths and other images than those that the file was made with.

    A model that answers questions has nothing that one of pre-training, with an answer head, hasn't.
    """
    pytest.importorskip("onnxscript", reason="torch's exporter needs it: pip install onnx onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="it runs the file: pip install onnxruntime")
    run("--from", "safetensors", models / "pretraining", "--to", "onnx", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = {each.name: each.shape for each in session.get_inputs()}
    texts = ["batch", "length"]
    assert shapes == {**dict.fromkeys(onnx_file.INPUTS[:3], texts), "images": ["batch", 3, "32*rows", "32*columns"]}
    names = [each.name for each in session.get_outputs()]
    assert names == list(onnx_file.OUTPUTS["pretraining"])
    config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    assert config["id2label"] == {"0": "yes", "1": "no", "2": "a dog"}
    model = random_model("pretraining")
    model.bert.encoder.sub_sampling_in_evaluation = False
    for sizes in ((1, 14, 64, 96), (3, 14, 96, 64), (5, 9, 128, 128), (2, 20, 32, 32)):
        inputs = batch(*sizes)
        none = torch.full((sizes[0],), -1)
        labels = {"masked_lm_labels": torch.full(sizes[:2], -1), "matched_label": none, "ans": none}
        with torch.no_grad():
            expected = vars(model(**inputs, **labels))
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for name, value in zip(names, found, strict=True):
            off = float((torch.from_numpy(value) - expected[name]).abs().max())
            assert off <= ROUNDINGS * 2**-24 * float(expected[name].abs().max()), (sizes, name)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    program = SimpleNamespace(save=lambda path, external_data: path.write_bytes(bytes(200_000)))
    with small_tmpfs(tmp_path / "disk", "100k"):
        with pytest.raises(UserError, match=r"x\.onnx can't be written \(the disk is full\)"):
            onnx_file.write_program(tmp_path / "disk" / "x.onnx", program)
        assert list((tmp_path / "disk").iterdir()) == []


def test_missing_packages_are_named_before_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engine.importing.find_spec", lambda name: None)
    with pytest.raises(UserError, match="run `pip install onnx onnxscript`"):
        run("--from", "safetensors", tmp_path / "missing", "--to", "onnx", tmp_path / "x.onnx")


def test_a_model_that_one_file_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="are more than the 2 GiB"):
        onnx_file.save_onnx(tmp_path / "x.onnx", {"a": torch.zeros(26)}, describe("pretraining"))
