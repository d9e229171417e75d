"""--micro_batch_size auto: what is counted, what is chosen, and by which run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig

from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import AUTO
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.model.activations import cast_parameters
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.tasks.pretraining import PretrainConfig
from engine.training import start
from engine.training.preflight import memory
from engine.training.preflight.memory import (
    answer,
    device_memory,
    inputs_on_meta,
    largest_micro_batch,
    optimizer_groups,
    reduced_values,
    training_bytes,
)
from tests.conftest import launch

CPU = torch.device("cpu")
AS_USUAL = {"checkpointing": "none", "freeze_clip": False, "use_adam_for_visual": False, "sentences_per_pass": 1.0}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
AS_USUAL |= {"sgd_momentum": False, "world_size": 1}


def description(architecture: str = "pretraining") -> ModelDescription:
    bert = BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=128)
    visual = VisualShape(SHAPES["tiny"], sub_feat_num=4)
    sizes = Preprocessing(max_seq_length=6, image_size_min=64, image_size_max=96)
    return ModelDescription.of(bert, visual, ["yes", "no", "red"], None, architecture, sizes)


def left_open(global_batch_size: int, world_size: int) -> tuple[PretrainConfig, dict[str, Any]]:
    """Flags with --micro_batch_size auto, and DeepSpeed's settings while the number is still open."""
    config = PretrainConfig(batch_size=AUTO, global_batch_size=global_batch_size)
    return config, deepspeed_settings(config, world_size)


def peak(
    model: Any, samples: int, shape: ModelDescription, settings: dict[str, Any], accumulation: int, world_size: int = 1
) -> int:
    settled = {**settings, "gradient_accumulation_steps": accumulation}
    return training_bytes(model, inputs_on_meta(shape, samples), settled, world_size=world_size)["peak"]


@pytest.mark.parametrize("architecture", ["pretraining", "question_answering"])
def test_the_largest_choice_within_the_limit_is_found(architecture: str) -> None:
    shape, (_, settings) = description(architecture), left_open(448, 1)
    with torch.device("meta"):
        model = shape.build()
    peaks = [peak(model, 96, shape, settings, 2) for _ in range(2)]
    exactly = min(peaks)  # only the first has CLIP's statistics among what is new
    question = {
        "description": shape.to_dict(),
        "dtype": "float32",
        **AS_USUAL,
        "settings": settings,
        "choices": [1, 32, 64, 96, 112, 448],
    }
    assert answer({**question, "limit": exactly}) == 96
    assert answer({**question, "limit": exactly - 1}) == 64
    assert answer({**question, "limit": 1}) == 0
    assert answer({**question, "limit": exactly, "checkpointing": "all"}) > 96
    assert answer({**question, "limit": exactly, "dtype": "float16"}) > 96
    assert answer({**question, "limit": exactly, "freeze_clip": True}) > 96
    assert answer({**question, "limit": exactly, "sentences_per_pass": 4.0}) > 96
    assert answer({**question, "limit": exactly, "use_adam_for_visual": True}) == 64


def test_a_whole_share_may_fit_where_its_half_does_not() -> None:
    """Of 2 samples, 1 and its accumulated gradients take more than both at once."""
    shape, (_, settings) = description(), left_open(2, 1)
    with torch.device("meta"):
        model = shape.build()
    question = {"description": shape.to_dict(), "dtype": "float32", **AS_USUAL, "settings": settings}
    limit = max(peak(model, 2, shape, settings, 1) for _ in range(2))
    assert limit < peak(model, 1, shape, settings, 2)
    assert answer({**question, "choices": [1, 2], "limit": limit}) == 2
    assert answer({**question, "choices": [1], "limit": limit}) == 1


def test_ranks_share_the_state_and_stages_differ_by_gradients() -> None:
    """In fp16: 8 bytes of moments and 4 of fp32 weights a value, of AdamW's share; SGD has 4 less, without momentum."""
    with torch.device("meta"):
        model = description().build()
    cast_parameters(model, torch.float16)
    groups = optimizer_groups(model, use_adam_for_visual=False)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    shares = {name: -(-sum(sizes) // 4) for name, sizes in groups.items()}
    reduced, gradients = 2 * reduced_values(list(groups.values()), 4), 2 * sum(map(sum, groups.values()))
    largest = max(map(max, groups.values()))

    def counted(stage: int, accumulation: int, world_size: int = 4, **own: Any) -> dict[str, int]:
        zero = {"stage": stage, "reduce_bucket_size": 1000, "overlap_comm": world_size > 1, **own}
        settings = {"zero_optimization": zero, "gradient_accumulation_steps": accumulation}
        inputs = inputs_on_meta(description(), 2)
        return training_bytes(model, inputs, settings, world_size=world_size, sgd_momentum=True)

    for stage in (1, 2):
        assert counted(stage, 1)["state"] == weights + 12 * sum(shares.values()) - 4 * shares["sgd_backbone"]
        assert counted(stage, 1, **OFFLOAD)["state"] == weights
    assert [counted(stage, 1)["buckets"] for stage in (1, 2)] == 2 * [4000 + reduced]
    assert [counted(stage, 2)["buckets"] for stage in (1, 2)] == [4000 + gradients + reduced, 4000 + 2 * reduced]
    offloaded = [counted(stage, 2, **OFFLOAD)["buckets"] for stage in (1, 2)]
    assert offloaded == [4000 + gradients + 10 * largest, 4000 + 10 * largest]
    for found in (counted(1, 2, contiguous_gradients=False), counted(1, 2)):  # passes add to gradients in place
        assert found["passes"] == counted(2, 2)["passes"]
    assert counted(1, 1, overlap_comm=False)["passes"] > counted(1, 1)["passes"]


def test_a_parameter_that_crosses_a_border_is_kept_by_both_ranks() -> None:
    """Of 6 values each: 4 and a part of 5, the rest of it and 3; the other group adds 1 to the first rank."""
    assert reduced_values([[4, 5, 3], [1, 1]], 2) == 4 + 5 + 1
    assert reduced_values([[4, 5, 3], [1, 1]], 1) == 14
    assert reduced_values([[1]], 4) == 1


@pytest.mark.slow
def test_what_four_ranks_keep_is_what_was_counted(tmp_path: Path) -> None:
    """In bf16. Not counted are padding, of a few values, and small tensors that come and go: below 1 % even of this
    tiny model."""
    report = tmp_path / "report.json"
    run = launch("tests/workers/memory.py", [str(report)], ranks=4, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    everywhere = json.loads(report.read_text())
    for stage in ("stage 1", "stage 2"):
        for part in ("state", "gradients"):
            counted, most = everywhere[0][stage][part][0], max(found[stage][part][1] for found in everywhere)
            assert most == pytest.approx(counted, rel=0.01), (stage, part)


@pytest.mark.slow
def test_the_micro_batch_divides_what_was_asked() -> None:
    """Really counted, in a process of its own: of 3 x 64 samples on two ranks, 96, 48, 32 and so on are choices."""
    shape, (config, settings) = description(), left_open(192, 2)
    with torch.device("meta"):
        model = shape.build()
    limit = peak(model, 95, shape, settings, 1, world_size=2) / (1 - memory.RESERVE)
    assert largest_micro_batch(config, shape, settings, 2, limit) == 48
    with pytest.raises(UserError, match=r"not even 1 sample fits into 0\.0 GB with --activation_checkpointing none"):
        largest_micro_batch(config, shape, settings, 2, 1.0)


def test_the_device_s_memory_or_the_flag_in_its_place() -> None:
    assert device_memory(PretrainConfig(memory_limit=24.0), CPU) == 24e9
    with pytest.raises(UserError, match=r"there is no GPU .* --memory_limit GB"):
        device_memory(PretrainConfig(), CPU)


def test_the_choice_keeps_the_global_batch_and_a_resumed_run_its_own(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(start, "largest_micro_batch", lambda *_: 24)

    def settled(**changed: Any) -> tuple[int, int]:
        config = PretrainConfig(
            batch_size=AUTO, global_batch_size=96, memory_limit=8.0, output=str(tmp_path), **changed
        )
        start.settle_micro_batch(config, description(), deepspeed_settings(config, 1), ALONE, CPU)
        return config.batch_size, config.gradient_accumulation_steps

    assert settled() == (24, 4)
    assert settled(resume="auto") == (24, 4)  # nothing is there to go on from
    monkeypatch.setattr(start, "complete_checkpoints", lambda folder: [folder / "Epoch01"])
    (tmp_path / "config.yaml").write_text("batch_size: 16\n")
    assert settled(resume="auto") == (16, 6)
    assert settled() == (24, 4)


def test_settings_wait_for_the_choice() -> None:
    _, settings = left_open(96, 2)
    names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    assert [settings[name] for name in names] == ["auto", "auto", 96]


def test_machines_that_chose_otherwise_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[Any], mine: Any) -> None:
        found[:] = [mine, (mine[0], 32, {**mine[2], "labels": "a"})]

    monkeypatch.setattr(start, "dist", SimpleNamespace(all_gather_object=gather, get_world_size=lambda: 2))
    digests = dict.fromkeys(start.DIGESTED, "a")
    start.check_agreement(None, 32, digests)
    with pytest.raises(UserError, match=r"came to 24 and 32 on machines with other GPUs; give --micro_batch_size 24"):
        start.check_agreement(None, 24, digests)
    with pytest.raises(UserError, match=r"^machines have data that differ in the annotations' answers; copy"):
        start.check_agreement(None, 32, digests | {"labels": "b"})
