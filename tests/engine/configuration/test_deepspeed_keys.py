"""Every key of DeepSpeed's configuration, from the table: it works, is filled in, or is refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.deepspeed_keys import KEYS, TOP_LEVEL, keys_of
from engine.configuration.flags import OptimizationConfig
from engine.errors import UserError
from engine.training.preflight.deepspeed import LEAST, configuration_problems
from tests.conftest import ROOT, launch

ZERO = "zero_optimization"
# A value for each key that is taken or filled in, and is no section. None: it needs the value that it has in any case.
TAKEN: dict[str, Any] = {
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1000.0,
    "fp16.enabled": True,
    "fp16.loss_scale": 128,
    "fp16.initial_scale_power": 8,
    "fp16.hysteresis": 2,
    "fp16.consecutive_hysteresis": True,
    "fp16.loss_scale_window": 100,
    "fp16.min_loss_scale": 2,
    "bf16.enabled": True,
    "bf16.check_grad_overflow": False,
    "data_types.grad_accum_dtype": "fp32",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    f"{ZERO}.stage": 1,
    f"{ZERO}.overlap_comm": True,
    f"{ZERO}.contiguous_gradients": True,
    f"{ZERO}.reduce_scatter": False,
    f"{ZERO}.reduce_bucket_size": 1000,
    f"{ZERO}.use_multi_rank_bucket_allreduce": True,
    f"{ZERO}.allgather_bucket_size": 1000,
    f"{ZERO}.compute_grad_norm": True,
    f"{ZERO}.offload_optimizer.device": "cpu",
    f"{ZERO}.offload_optimizer.pin_memory": False,
    f"{ZERO}.ignore_unused_parameters": True,
    f"{ZERO}.parameter_alignment": True,
    "prescale_gradients": True,
    "gradient_predivide_factor": 4,
    "communication_data_type": "fp32",
    "steps_per_print": 1,
    "log_level": "info",
    "wall_clock_breakdown": True,
    "memory_breakdown": True,
    "dump_state": True,
    "disable_python_gc": True,
    "comms_logger.enabled": True,
    "comms_logger.verbose": True,
    "comms_logger.prof_all": False,
    "comms_logger.prof_ops": ["all_reduce"],
    "comms_logger.debug": True,
    "flops_profiler.enabled": True,
    "flops_profiler.profile_step": 1,
    "flops_profiler.recompute_fwd_factor": 0.5,
    "flops_profiler.module_depth": 1,
    "flops_profiler.top_modules": 2,
    "flops_profiler.detailed": False,
    "flops_profiler.output_file": "profile.txt",
    "timers.throughput.enabled": True,
    "timers.throughput.synchronized": False,
}
ON = {"comms_logger": "enabled", "flops_profiler": "enabled"}  # without these, other keys of a section do nothing
MONITORS = {"tensorboard", "csv_monitor", "wandb", "comet"}  # taken out: tests/engine/configuration/test_deepspeed.py
NONSENSE: list[Any] = ["x", 0, -1, 0.5, True, [], {}, {"x": 1}, float("nan"), 10**30]


def with_key(name: str, value: Any) -> dict[str, Any]:
    """Settings in which one key has a value; the sections that it is in are there, and on."""
    *sections, last = name.split(".")
    settings: dict[str, Any] = {last: value}
    for depth, section in reversed(list(enumerate(sections))):
        if section in ON and not depth:
            settings = {ON[section]: True, **settings}
        settings = {section: settings}
    if name in ("prescale_gradients", "gradient_predivide_factor"):
        settings[ZERO] = {"reduce_scatter": False}
    return settings


def precision_of(name: str) -> str:
    section = name.split(".")[0]
    return section if section in ("fp16", "bf16") else "fp32"


class Asked(dict[str, Any]):
    """Settings that remember which keys somebody has asked for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self  # who looks whether a key is among these asks, too

    def __copy__(self) -> "Asked":
        return self


def test_the_table_has_every_key_that_deepspeed_asks_for() -> None:
    """A newer DeepSpeed may have others: decide what becomes of each, and add it to the table."""
    sections = {name: Asked({}) for name in ("data_types", "flops_profiler", "timers")}
    settings = Asked({**LEAST, **sections})
    DeepSpeedConfig(settings)
    assert len(settings.names) > 50  # else this test looks at the wrong place
    assert settings.names <= set(TOP_LEVEL)
    for name, section in sections.items():
        assert section.names == set(keys_of(name))
    assert vars(DeepSpeedFlopsProfilerConfig({})).keys() == set(keys_of("flops_profiler"))
    assert DeepSpeedThroughputTimerConfig.model_fields.keys() == set(keys_of("timers.throughput"))


@pytest.mark.parametrize(
    ("section", "model"),
    [(ZERO, DeepSpeedZeroConfig), (f"{ZERO}.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig)],
)
def test_every_key_of_zero_is_decided(section: str, model: Any) -> None:
    names = {name for field, about in model.model_fields.items() for name in (field, about.alias or field)}
    ours = {
        name.removeprefix(f"{section}.").split(".")[0] for name in [*KEYS, *TAKEN] if name.startswith(f"{section}.")
    }
    assert ours == names


def test_the_page_has_the_same_table() -> None:
    page = (ROOT / "docs" / "deepspeed.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (taken|filled in|refused) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(name, key.fate, key.why) for name, key in KEYS.items()]


REFUSED = [name for name, key in KEYS.items() if key.fate == "refused"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_in_one_line_with_the_remedy(name: str, tmp_path: Path) -> None:
    key, path = KEYS[name], tmp_path / "own.json"
    value = next(value for value in (True, False, {"a": 1}) if not key.values.fit(value))
    path.write_text(json.dumps(with_key(name, value)))
    with pytest.raises(UserError) as error:
        deepspeed_settings(OptimizationConfig(deepspeed_config=str(path), **on(precision_of(name))), 1)
    assert str(error.value) == f"{path} has {name} {json.dumps(value)}: {key.why}"
    assert re.search("remove it|write|drop", key.why)


def on(precision: str) -> dict[str, Any]:
    return {} if precision == "fp32" else {precision: True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation, which DeepSpeed doesn't know; did you mean zero_optimization?"),
        ({"train_batch": 1, "notes": ""}, "1. train_batch, which DeepSpeed doesn't know; did you mean train_batch_si"),
        ({"notes": "mine"}, "notes, which DeepSpeed doesn't know; remove it"),
        (
            {"flops_profiler": {"profile_steps": 3}},
            "flops_profiler.profile_steps, which DeepSpeed doesn't know; did you",
        ),
        (
            {"timers": {"throughput": {"enable": True}}},
            "timers.throughput.enable, which DeepSpeed doesn't know; did you",
        ),
        ({"data_types": {"x": 1}}, "data_types.x, which DeepSpeed doesn't know; remove it"),
    ],
)
def test_a_misspelt_key_is_told_with_the_right_one(settings: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError) as error:
        deepspeed_settings(OptimizationConfig(deepspeed_config=str(path)), 1)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({ZERO: {"stage": 2, "overlap_comm": 3}}, [f"{ZERO}.overlap_comm 3: Input should be a valid boolean"]),
        (
            {ZERO: {"stage": 2, "reduce_scater": True, "offload_optimizer": {"device": "cpu", "pin_memry": 1}}},
            [
                f"{ZERO}.offload_optimizer.pin_memry, which DeepSpeed doesn't know; did you mean pin_memory?",
                f"{ZERO}.reduce_scater, which DeepSpeed doesn't know; did you mean reduce_scatter?",
            ],
        ),
        (
            {"comms_logger": {"enabled": "perhaps"}, "fp16": {"loss_scale": -1, "los_scale": 1}},
            [
                'comms_logger.enabled "perhaps": Input should be a valid boolean, unable to interpret input',
                "fp16.loss_scale -1: Value error, fp16.loss_scale must be >= 0 (0 enables dynamic loss scaling)",
                "fp16.los_scale, which DeepSpeed doesn't know; did you mean loss_scale?",
            ],
        ),
        (
            {"comms_logger": [1]},
            ["comms_logger [1]: deepspeed.comm.config.CommsLoggerConfig() argument after ** must be"],
        ),
    ],
    ids=["value", "misspelt", "two sections", "no object"],
)
def test_what_deepspeeds_classes_say_is_told_in_a_line_each(settings: dict[str, Any], told: list[str]) -> None:
    found = list(configuration_problems(settings))
    assert len(found) == len(told)
    for line, beginning in zip(found, told, strict=True):
        assert line.startswith(beginning)
        assert "\n" not in line


def train(folder: Path, configurations: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Train with configurations, by the names of their files; what came of each."""
    files = [folder / f"{name}.json" for name in configurations]
    for file, settings in zip(files, configurations.values(), strict=True):
        file.write_text(json.dumps(settings))
    report = folder / "report.json"
    flags = [str(report), *map(str, files)]
    run = launch("tests/workers/settings.py", flags, ranks=ranks, launcher="warm", folder=folder)
    assert run.code == 0, run.stderr[-3000:]
    first, *others = json.loads(report.read_text())
    assert all(other[file].keys() == first[file].keys() for other in others for file in first)
    return {Path(file).stem: result for file, result in first.items()}


PLAIN = {"fp32_plain": {}, "bf16_plain": {}, "fp16_plain": {"fp16": {"initial_scale_power": 8}}}
SENT = [
    name for name in TAKEN if name.startswith(ZERO) or "gradient" in name or "comm" in name
]  # what several ranks do


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = {f"fp32_{name}": with_key(name, TAKEN[name]) for name in SENT}
    return train(tmp_path_factory.mktemp("two"), PLAIN | settings, 2)


@pytest.fixture(scope="module")
def on_one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = {f"{precision_of(name)}_{name}": with_key(name, TAKEN[name]) for name in TAKEN if name not in SENT}
    names = [*(name for name, key in KEYS.items() if key.fate != "refused" and name not in MONITORS), *TAKEN]
    nonsense = {
        f"{precision_of(name)}_nonsense_{number}_{name}": with_key(name, value)
        for name in dict.fromkeys(names)
        for number, value in enumerate(NONSENSE)
    }
    return train(tmp_path_factory.mktemp("one"), PLAIN | settings | nonsense, 1)


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_trains_as_without_it(name: str, request: pytest.FixtureRequest) -> None:
    """Where it is about what ranks send, on two. With accumulation, losses and weights are the same up to rounding:
    that of 8 bits in half precision, in which a section may change how losses are scaled."""
    results = request.getfixturevalue("on_two_ranks" if name in SENT else "on_one_rank")
    precision = precision_of(name)
    result, plain = results[f"{precision}_{name}"], results[f"{precision}_plain"]
    assert result.keys() == {"losses", "weights"}, result
    error = 1e-6 if precision == "fp32" else 2.0**-8
    assert result["losses"] == pytest.approx(plain["losses"], rel=error)
    for parameter, values in plain["weights"].items():
        assert torch.allclose(torch.tensor(result["weights"][parameter]), torch.tensor(values), rtol=error, atol=error)


def test_nonsense_is_refused_or_works(on_one_rank: dict[str, Any]) -> None:
    """Each key with values of each kind: never an error of Python's."""
    results = {name: result for name, result in on_one_rank.items() if "nonsense" in name}
    errors = {name: result["error"] for name, result in results.items() if "error" in result}
    assert not errors, "\n".join(errors.values())
    refusals = [result["refused"] for result in results.values() if "refused" in result]
    assert len(refusals) > len(results) / 2
    assert not [line for line in refusals if "\n" in line]
