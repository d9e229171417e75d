"""python -m engine.benchmark.step: the numbers of the baseline and of every switch, what is counted, and bad flags."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from engine.benchmark.counting import Memory, Traffic, host_waits
from engine.benchmark.step import __main__ as program
from engine.benchmark.step import run as stages
from engine.benchmark.step.measuring import check
from engine.benchmark.step.original import float_images, in_the_original_way, label_all_words, sample_on_the_host
from engine.benchmark.step.ours import Ours, turn_over
from engine.benchmark.step.parts import PARTS, Recorder
from engine.benchmark.step.switches import SWITCHES, nothing
from engine.benchmark.step.workload import Workload
from engine.errors import UserError
from engine.model.activations import pass_bytes
from engine.model.metrics import NO_METRICS
from engine.training.preflight.memory import training_bytes
from engine.training.reports.metrics import Metrics
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "model_pretrain"
TINY = ["--device", "cpu", "--model", "tiny", "--layers", "1", "--hidden_size", "64", "--image_size", "64", "96"]
TINY += ["--sub_feat_num", "4", "--rounds", "1"]


def workload(**changed: object) -> Workload:
    sizes = {"backbone": "tiny", "layers": 1, "hidden_size": 64, "sub_feat_num": 4, "height": 64, "width": 96}
    return Workload(**{**sizes, "dtype": "fp32", **changed})  # type: ignore[arg-type]


def test_the_baseline_has_the_recorded_numbers() -> None:
    assert check("the baseline", in_the_original_way, GOLDEN, "cpu", passes=2) > 20


@pytest.mark.parametrize("name", ["device_sampling", "sdpa", "channels_last", "recomputed_gelu", "fused_norms"])
def test_a_switch_changes_no_number(name: str) -> None:
    assert check(name, partial(turn_over, names=[name]), GOLDEN, "cpu", passes=1) > 10


def test_what_is_around_a_step_is_entered_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By stand-ins for all that a step calls."""
    happened: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        happened.append("enter")
        yield
        happened.append("leave")

    def micro_step(engine: object, batch: object, at_boundary: bool) -> SimpleNamespace:
        happened.append("step")
        return SimpleNamespace(metrics=NO_METRICS)

    monkeypatch.setattr("engine.benchmark.step.ours.micro_step", micro_step)
    ours = object.__new__(Ours)
    ours.__dict__ |= {"batch": workload().batch(1), "device": torch.device("cpu"), "engine": None, "around": [around]}
    ours.recorder, ours.metrics = Recorder(ours.device), Metrics(ours.device)
    for _ in range(2):
        ours.step()
    assert happened == ["enter", "step", "leave"] * 2


def test_each_switch_turns_something_over() -> None:
    for name, switch in SWITCHES.items():
        functions = (switch.model, switch.settings, switch.engine)
        changes = any(function is not nothing for function in functions)
        assert changes or switch.around is not nullcontext or name in ("uint8_images", "packed_words")
    assert float_images(workload().batch(2)).inputs["images"].dtype == torch.float32
    packed, whole = workload().batch(2).inputs, label_all_words(workload().batch(2)).inputs
    assert whole["masked_lm_labels"].shape == whole["input_ids"].shape
    there = whole["masked_lm_labels"].flatten() >= 0
    places = packed["masked_positions"][packed["masked_lm_labels"] >= 0]
    assert torch.equal(there.nonzero()[:, 0], places)
    settings: dict = {"zero_optimization": {}}
    for name in ("small_buckets", "no_throughput_timer"):
        SWITCHES[name].settings(settings)
    assert settings["zero_optimization"] == {"reduce_bucket_size": 500_000_000}
    assert settings["timers"] == {"throughput": {"enabled": True}}


def test_a_change_of_numbers_is_found_and_named() -> None:
    def shift(model: nn.Module) -> None:
        sample_on_the_host(model)  # type: ignore[arg-type]
        with torch.no_grad():
            model.get_parameter("bert.encoder.visual_pos.x_position_embedding.weight").add_(1e-2)

    with pytest.raises(
        UserError, match=r"shifted is off the recorded numbers, so nothing is timed:\n.* loss .* BEYOND"
    ):
        check("shifted", shift, GOLDEN, "cpu", passes=1)


def test_recorded_numbers_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=f"--golden {tmp_path} can't be read as recorded numbers"):
        check("ours", lambda model: None, tmp_path, "cpu")


def test_the_recorder_gives_each_moment_to_one_part() -> None:
    """In a pass that stands still at known places: the time there belongs to the part in which it does."""
    work = workload()
    model, inputs = work.model(), work.batch(2).inputs
    recorder = Recorder(torch.device("cpu"))
    recorder.attach(model)
    clock = iter(range(1000))
    recorder._now = lambda: next(clock)  # type: ignore[method-assign]
    recorder.start()
    recorder.begin("images to device")
    model(**inputs).loss.backward()
    names = [part for part, _ in recorder.moments]
    assert names == [
        *("images to device", "encoder", "backbone", "sub-sampling", "encoder", "heads", "host"),
        *("heads backward", "encoder backward", "sub-sampling backward", "backbone backward", "encoder backward"),
        "optimiser",
    ]
    assert recorder.stop() == {part: names.count(part) for part in PARTS}  # the clock ticks once a moment


def test_a_recorder_that_does_not_run_costs_no_moment() -> None:
    work = workload()
    model = work.model()
    recorder = Recorder(torch.device("cpu"))
    recorder.attach(model)
    model(**work.batch(1).inputs).loss.backward()
    assert recorder.moments == []


def test_traffic_counts_inputs_and_results_once_and_no_views() -> None:
    a, b = torch.ones(8, 4), torch.ones(4, 16)
    with Traffic() as traffic:
        a.t().t().reshape(8, 4) @ b
    assert (traffic.operators, traffic.bytes) == (1, 4 * (8 * 4 + 4 * 16 + 8 * 16))


def test_memory_is_what_is_kept_and_the_peak() -> None:
    with Memory("cpu") as memory:
        kept = torch.ones(1000)
        torch.ones(5000).sum()
    assert memory.kept == kept.nbytes
    assert 24000 <= memory.peak < 24200


def test_pass_bytes_count_what_lives_at_once() -> None:
    """Two linear layers on a batch: the first one's result is kept, the second's is freed with its gradient."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(100, 1000, bias=False), nn.Linear(1000, 10, bias=False)

        def forward(self, x: torch.Tensor) -> "Chain":
            self.loss = self.two(self.one(x)).sum()
            return self

    with torch.device("meta"):
        chain, x = Chain(), torch.empty(50, 100)
    # one(x) is kept; behind its gradient comes that of one's weight, while two's has left already.
    hidden, first, second = 50 * 1000 * 4, 100 * 1000 * 4, 1000 * 10 * 4
    gone = pass_bytes(chain, {"x": x})
    assert hidden + first <= gone <= 2 * hidden + first + 50 * 10 * 4 + 100
    assert pass_bytes(chain, {"x": x}, with_gradients=True) == gone + second
    assert chain.one.weight.grad is chain.two.weight.grad is None


def test_the_predicted_peak_has_its_parts() -> None:
    work = workload()
    settings = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True}}
    one, four = (training_bytes(*work.on_meta(images), settings, on_gpu=False) for images in (16, 64))
    model = work.model()
    backbone = sum(p.numel() for name, p in model.named_parameters() if "visual_model" in name)
    others = sum(p.numel() for p in model.parameters()) - backbone
    buffers, gradients = sum(buffer.nbytes for buffer in model.buffers()), 4 * (backbone + others)
    assert one["state"] == 4 * backbone + 12 * others + buffers
    assert one["buckets"] == 2 * 4 * 1000 + gradients
    assert one["peak"] == one["state"] + one["buckets"] + max(one["passes"], 4 * max(backbone, others))
    half = training_bytes(*replace(work, dtype="fp16").on_meta(16), settings, on_gpu=False)
    assert half["state"] == 6 * backbone + 14 * others + buffers
    accumulated = training_bytes(*work.on_meta(16), settings | {"gradient_accumulation_steps": 2}, on_gpu=False)
    assert accumulated["buckets"] == 2 * 4 * 1000 + 2 * gradients
    assert 3 < four["passes"] / one["passes"] < 4.1


def test_the_predicted_peak_where_gradients_stay_in_place() -> None:
    """In the passes; behind these, one optimiser's are copied."""
    work = workload()
    settings = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "contiguous_gradients": False}}
    gradients = sum(p.nbytes for p in work.model().parameters())
    backbone = sum(p.nbytes for name, p in work.model().named_parameters() if "visual_model" in name)
    one = training_bytes(*work.on_meta(16), settings, on_gpu=False)
    assert one["buckets"] == 4 * 1000
    assert one["passes"] == pass_bytes(*work.on_meta(16), on_gpu=False, with_gradients=True)
    copies = gradients + max(backbone, gradients - backbone)
    assert one["peak"] == one["state"] + one["buckets"] + max(one["passes"], copies)
    accumulated = training_bytes(*work.on_meta(16), settings | {"gradient_accumulation_steps": 2}, on_gpu=False)
    assert accumulated["buckets"] == 4 * 1000 + gradients


@pytest.mark.parametrize(
    ("really", "tried"), [(74, [74]), (69, [74, 70, 66]), pytest.param(0.5, [74, 70, 66, 62], marks=pytest.mark.slow)]
)
def test_the_largest_batch_is_looked_for_from_the_prediction_downwards(
    really: float, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 GB of state and buckets and 0.2 GB an image are predicted; in truth only so many fit."""
    options = program.parse([*TINY, "--batch", "largest", "--memory_gb", "15.9"])
    benchmark = stages.Benchmark(options, torch.device("cpu"))
    asked: list[int] = []

    def fits(limit: float) -> bool:
        assert limit == 15.9e9
        asked.append(benchmark.images)
        return benchmark.images <= really

    monkeypatch.setattr(benchmark, "fits", fits)
    predicted = {"state": 600_000_000, "buckets": 400_000_000}
    monkeypatch.setattr(benchmark, "predicted", lambda images: {**predicted, "passes": images * 200_000_000 + 10**8})
    found = benchmark.largest()
    assert asked[: len(tried)] == tried[: len(asked)]
    assert found == max(1, next((images for images in asked if images <= really), 1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "many"], "--batch many: a number of images, or `largest`"),
        (["--batch", "largest"], "say how much with --memory_gb"),
        (["--without", "compiled_backbone"], "--without compiled_backbone: no optimisation of this name is on here"),
        (["--with", "sdpa"], "--with sdpa: no optimisation of this name is off here; there are "),
        (["--dtype", "fp16"], "--dtype fp16 needs a GPU"),
        (["--sub_feat_num", "7"], "--sub_feat_num 7 is more than the 2 x 3 = 6 cells"),
        (["--image_size", "64", "100"], "multiples of 32 are needed"),
        (["--hidden_size", "100"], "a multiple of 64 is needed"),
        (["--rounds", "0"], "--rounds 0: more than 0 is needed"),
        (["--golden", "nowhere"], "--golden nowhere is missing"),
        (["--json", "nowhere/step.json"], "nowhere/step.json can't be written: No such file or directory"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str) -> None:
    def read() -> None:
        options = program.parse([*TINY, *flags])
        program.check_options(options)
        stages.Benchmark(options, torch.device("cpu"))

    with pytest.raises(UserError) as caught:
        read()
    assert message in str(caught.value)


def test_a_step_waits_for_the_device_once(joined: None) -> None:
    """Forward and backward pass, both optimisers, and metrics; DeepSpeed has to know whether gradients are finite."""
    work = workload()
    ours = Ours(work.model(), work.batch(2), work.config(2), torch.device("cpu"))
    ours.step()
    assert host_waits(ours.step, "cpu") == {"engine/training/engine.py, scaled_global_norm: cpu": 1}
    ours.close()


def test_host_waits_are_seen() -> None:
    def step() -> None:
        x = torch.ones(3)
        x.sum().item()
        if (x > 0).all():
            x.tolist()
        torch.tensor(1.0, device=x.device)
        on_host = (x * 2).cpu()
        assert float(on_host.sum()) == 6  # which is there already
        get_accelerator().synchronize()
        made = torch.tensor([1.0, 2.0])
        (made.to(x.device, non_blocking=True) + 1).sum()  # no wait
        made.to(x.device)
        x[x > 0].sum()

    kinds = Counter({place.rsplit(": ")[-1]: number for place, number in host_waits(step, "cpu").items()})
    waits = ["cpu", "index", "item, bool or float", "synchronize", "to", "tolist", "torch.tensor(device=...)"]
    assert kinds == {**dict.fromkeys(waits, 1), "item, bool or float": 2}
