"""python -m engine.benchmark.scaling: what it counts, and what follows from its assumptions."""

from dataclasses import replace

import pytest

from engine.benchmark.scaling import Assumptions, count, predict, ring_bytes, workload
from engine.configuration.parsing import parse
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig
from engine.training.program import RECIPES

ASSUMED = Assumptions(tflops=100.0, gpus_per_machine=8, machine_gb_per_s=200.0, network_gb_per_s=20.0, microseconds=0.0)


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    found, _ = parse(PretrainConfig, ["--recipe", "rn50_stage_one"], RECIPES)
    return replace(found, clip_model_name="tiny", image_size_min=64, image_size_max=96, sub_feat_num=5)


def test_a_ring_sends_gradients_once_per_micro_batch_and_weights_once() -> None:
    assert ring_bytes(1000, 4, accumulation=3) == (3 * 1500.0, 1500.0)
    assert ring_bytes(1000, 1, accumulation=2) == (0.0, 0.0)


def test_the_global_batch_is_the_recipe_s_on_any_number_of_gpus(config: PretrainConfig) -> None:
    for gpus in (1, 8, 64, 512):
        found = predict(config, gpus, 1, ASSUMED)
        assert gpus * found["batch"] * found["accumulation"] == 512
    assert predict(config, 8, 1, ASSUMED)["accumulation"] == 2
    with pytest.raises(UserError, match="512 samples a step can't be divided among 3 GPUs"):
        predict(config, 3, 1, ASSUMED)
    with pytest.raises(UserError, match="among 128 GPUs, 8 to an image"):
        predict(config, 128, 8, ASSUMED)


def test_a_batch_that_grows_leaves_each_gpu_what_it_has_on_eight(config: PretrainConfig) -> None:
    kept, grown = (predict(config, 512, 1, ASSUMED, grow=grow) for grow in (False, True))
    assert (kept["batch"], kept["accumulation"]) == (1, 1)
    assert (grown["batch"], grown["accumulation"]) == (32, 2)
    assert predict(config, 8, 1, ASSUMED, grow=True) == predict(config, 8, 1, ASSUMED)
    assert grown["efficiency"] > kept["efficiency"]


def test_one_gpu_sends_nothing_and_computes_all(config: PretrainConfig) -> None:
    found, counts = predict(config, 1, 1, ASSUMED), count(workload(config), 1)
    assert found["sent_mb"] == 0
    assert found["efficiency"] == 1
    assert found["step_ms"] == pytest.approx(1e3 * 512 * counts.flops / 100e12)
    hours = 9 * 9_180_000 / found["sentences_per_second"] / 3600
    assert found["gpu_hours"] == pytest.approx(hours)


def test_a_slow_network_shows_where_it_is_used(config: PretrainConfig) -> None:
    slow = replace(ASSUMED, network_gb_per_s=0.1)
    assert predict(config, 8, 1, slow) == predict(config, 8, 1, ASSUMED)
    assert predict(config, 64, 1, slow)["efficiency"] < predict(config, 64, 1, ASSUMED)["efficiency"] < 1


def test_sentences_that_share_images_take_fewer_operations_and_images(config: PretrainConfig) -> None:
    alone, shared = (predict(config, 8, number, ASSUMED) for number in (1, 8))
    assert shared["compute_ms"] < alone["compute_ms"]
    assert shared["memory_gb"] < alone["memory_gb"]
    assert shared["norm_images"] == alone["norm_images"] / 8
    assert shared["sent_mb"] == alone["sent_mb"]
