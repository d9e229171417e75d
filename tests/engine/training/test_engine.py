"""DeepSpeed's engine around our models: ZeRO's norm of all gradients, and what goes before a backward pass."""

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.runtime.engine
import pytest
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator
from transformers import BertConfig, set_seed

from engine.configuration.deepspeed import DS_CONFIGS, deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.data.loading import Batch
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.model.pretraining import ClipVilForPretraining
from engine.model.question_answering import ClipVilForQuestionAnswering
from engine.training import engine
from engine.training.engine import build_engine, measure_gradients_once, refusals_told
from engine.training.loop import micro_step

ROUNDING = 2.0**-24
ARCHITECTURES = {"pretraining": ClipVilForPretraining, "question_answering": ClipVilForQuestionAnswering}


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What measure_gradients_once needs of ZeRO, on one rank; one gradient is as large as the word embeddings'."""
    monkeypatch.setattr(engine.dist, "get_world_size", lambda group: 1)
    noise = torch.Generator().manual_seed(0)
    gradients = {0: [torch.randn(23_440_896, generator=noise)], 1: [torch.randn(1000, generator=noise)]}
    methods = {"check_overflow": None, "scaled_global_norm": None}
    return SimpleNamespace(
        compute_grad_norm=True, cpu_offload=False, averaged_gradients=gradients, dp_process_group=None, **methods
    )


def test_the_norm_loses_no_digits(zero: Any) -> None:
    """A sum in fp64 is off by far less than one rounding of fp32; one in fp32 loses 1e-3 on a CPU."""
    exact = torch.cat([gradient for group in zero.averaged_gradients.values() for gradient in group]).double().norm()
    measure_gradients_once(zero)
    assert abs(zero.scaled_global_norm() / exact - 1) < ROUNDING


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_infinity_makes_it_infinite(zero: Any, bad: float) -> None:
    zero.averaged_gradients[1][0][7] = bad
    measure_gradients_once(zero)
    assert not zero.scaled_global_norm().isfinite()


def batches(architecture: str, count: int) -> Iterator[Batch]:
    """Micro-batches of two examples, with labels for all heads of the model."""
    for number in range(count):
        words = torch.randint(1, 50, (2, 6))
        inputs = {
            "input_ids": words,
            "token_type_ids": torch.zeros_like(words),
            "attention_mask": torch.ones_like(words),
            "images": torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8),
            "sampling_state": torch.tensor([1, 0, number]),
        }
        if architecture == "pretraining":
            inputs |= {"masked_lm_labels": words, "matched_label": words[:, 0] % 2, "ans": words[:, 0] % 5}
        else:
            inputs |= {"target": torch.rand(2, 5)}
        yield Batch(inputs, [0, 1], [])


@dataclass
class Training:
    """With dropout; a step is two micro-batches."""

    engine: DeepSpeedEngine
    prologues: int = 0  # how often DeepSpeed prepared a backward pass
    numbers: list[Any] = field(default_factory=list)  # losses and gradient norms

    def run(self, batches: Iterator[Batch]) -> None:
        prologue = self.engine._backward_prologue

        def count() -> None:
            self.prologues += 1
            prologue()

        self.engine._backward_prologue = count
        self.engine.train()
        for number, batch in enumerate(batches):
            output = micro_step(self.engine, batch, at_boundary=number % 2 == 1)
            assert self.engine.optimizer._backward_active_depth == 0  # DeepSpeed has also seen its end
            self.numbers += [output.loss.item(), self.engine.get_global_grad_norm()]


def train(architecture: str, micro_batches: int, checkpointed: str = "none", **flags: Any) -> Training:
    config = OptimizationConfig(batch_size=2, gradient_accumulation_steps=2, warmup_ratio=0.0, **flags)
    set_seed(0)
    bert = BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=128)
    model = ARCHITECTURES[architecture](bert, VisualShape(SHAPES["tiny"], 4), num_answers=5)
    model.bert.encoder.activation_checkpointing = checkpointed
    training = Training(build_engine(model, config, deepspeed_settings(config, world_size=1), batches_per_epoch=100))
    training.run(batches(architecture, micro_batches))
    return training


@pytest.mark.parametrize("checkpointed", ["none", "all"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_deepspeed_prepares_each_backward_pass_once(
    architecture: str, precision: str, checkpointed: str, joined: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the outputs' tensors, and what it does then changes no digit of losses, gradients or weights."""
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    flags = {} if precision == "fp32" else {precision: True}
    seen = train(architecture, 4, checkpointed, **flags)
    assert seen.prologues == 4
    unseen = SimpleNamespace(hook_handles=[])
    monkeypatch.setattr(deepspeed.runtime.engine, "register_output_backward_hooks", lambda *_, **__: unseen)
    hidden = train(architecture, 4, checkpointed, **flags)
    assert hidden.prologues == 0
    assert seen.numbers == hidden.numbers
    weights = hidden.engine.module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in seen.engine.module.state_dict().items())


def test_deepspeed_tells_its_times_and_its_memory(
    joined: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # DeepSpeed calls it before each look at the memory, which takes long
    settings = json.loads((DS_CONFIGS / "zero2_fp32.json").read_text())
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**settings, "wall_clock_breakdown": True, "memory_breakdown": True}))
    train("pretraining", 2, deepspeed_config=str(own))
    told = capsys.readouterr().out
    assert told.count("| bwd_microstep: ") == 2
    assert told.count("| fwd: ") == told.count("| bwd: ") == told.count("| step: ") == 1
    assert told.count("Engine before backward") == told.count("Engine after backward") == 2


@pytest.mark.parametrize("told", ["stage 2 needs it", "stage 2 needs it\nin every group", ""])
def test_what_deepspeed_refuses_of_ones_own_file_is_one_line(told: str) -> None:
    """Where the settings are this engine's, a refusal is an error of its own, with all that Python says of it."""
    line = r"^DeepSpeed doesn't take own\.json: (stage 2 needs it|AssertionError\(''\)); change that key$"
    with pytest.raises(UserError, match=line), refusals_told("own.json"):
        raise AssertionError(told)
    with pytest.raises(AssertionError) as raised, refusals_told(None):
        raise AssertionError(told)
    assert str(raised.value) == told
