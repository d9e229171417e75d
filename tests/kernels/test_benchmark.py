"""python -m kernels.benchmark, on a small grid of this machine's CPU."""

import itertools
import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from kernels.benchmark import __main__ as benchmark
from kernels.benchmark import batch_norm, grid_subsample
from kernels.benchmark.shapes import Implementation, Shape
from tests.conftest import ROOT

COMPILER = shutil.which("g++")  # torch.compile needs one on a CPU; without, the benchmark leaves it out
SMALL = [
    "--device",
    "cpu",
    "--model",
    "RN50",
    "--batch",
    "2",
    "--grid",
    "2",
    "3",
    "--samples",
    "4",
    "6",
    "--rounds",
    "2",
]
COLUMNS = {
    *("model", "layout", "dtype", "batch", "direction", "implementation", "microseconds", "gb_per_s"),
    *(
        "percent_of_copy",
        "ratio_to_original",
        "ratio_to_gather_first",
        "ratio_to_compiled",
        "peak_mib",
        "device",
        "date",
    ),
}


def run(*flags):
    command = [sys.executable, "-m", "kernels.benchmark", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Rows of a small run, what it printed, and its plot."""
    folder = tmp_path_factory.mktemp("benchmark")
    result = run(*SMALL, "--json", folder / "rows.json", "--plot", folder / "plot.png")
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "rows.json").read_text()), result.stdout, folder / "plot.png"


@pytest.mark.slow
def test_there_is_a_row_for_everything_that_is_compared(finished):
    rows, stdout, plot = finished
    assert all(row.keys() >= COLUMNS for row in rows)
    keys = [tuple(row[name] for name in ("layout", "samples", "direction", "implementation")) for row in rows]
    names = {"ours", "original", "gather_first", *(["compiled"] if COMPILER else [])}
    assert {row["implementation"] for row in rows} == names
    assert len(set(keys)) == len(keys) == 2 * 2 * 3 * len(names)
    assert all(f"{row['microseconds']:.1f}" in stdout for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_derived_columns_follow_from_the_times(finished):
    rows, _, _ = finished
    for row in rows:
        shape = Shape("RN50", row["layout"], "fp32", 2, 2, 3, row["samples"])
        assert row["gb_per_s"] == pytest.approx(
            grid_subsample.fewest_bytes(shape, row["direction"]) / row["microseconds"] / 1e3
        )
        assert row["percent_of_copy"] == pytest.approx(100 * row["gb_per_s"] / row["copy_gb_per_s"])
        same = [other for other in rows if all(other[name] == row[name] for name in ("layout", "samples", "direction"))]
        times = {other["implementation"]: other["microseconds"] for other in same}
        for name in {"original", "gather_first", "compiled"} & times.keys():
            assert row[f"ratio_to_{name}"] == pytest.approx(times[name] / row["microseconds"])


@pytest.mark.parametrize(("layout", "forward"), [("channels_last", 26.42), ("nchw", 44.77)])
def test_fewest_bytes_are_those_of_the_design(layout, forward):
    """32 x 100 sampled, 32 x 240 cells, of 2048 channels in fp16, and two tables of 25 entries."""
    shape = Shape("RN50", layout, "fp16", 32, 12, 20, 100)
    bytes_of = {direction: grid_subsample.fewest_bytes(shape, direction) for direction in benchmark.DIRECTIONS}
    assert bytes_of["forward"] / 1e6 == pytest.approx(forward, abs=0.01)
    assert bytes_of["backward"] / 1e6 == pytest.approx(44.77, abs=0.01)
    assert bytes_of["both"] == bytes_of["forward"] + bytes_of["backward"]


def wrong(change):
    """Our operator with its tokens changed: something that the check has to find."""

    def compute(inputs, drawn):
        tokens, positions = grid_subsample.ours(inputs, drawn)
        return change(tokens), positions

    return Implementation(compute)


WRONG = {
    "one_token": lambda tokens: tokens + torch.zeros_like(tokens).index_fill_(1, torch.tensor([1]), 0.01),
    "no_gradient_for_a_token": lambda tokens: torch.cat([tokens[:, :1].detach(), tokens[:, 1:]], dim=1),
    "too_few": lambda tokens: tokens[:, 1:],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_result_is_found_before_anything_is_timed(change, monkeypatch, capsys):
    shape = Shape("RN50", "nchw", "fp32", 2, 2, 3, 4)
    monkeypatch.setattr(grid_subsample, "implementations", lambda shape: {"ours": wrong(change)})
    with pytest.raises(SystemExit, match="error: ours is wrong, so nothing is timed"):
        benchmark.measure(shape, benchmark.parse(SMALL))


def test_more_shapes_are_compiled_than_torch_compiles_of_one_function(monkeypatch):
    """It gives up at the ninth; here at the second, to be quick."""
    options, all_of = benchmark.parse([*SMALL, "--rounds", "1"]), grid_subsample.implementations
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(grid_subsample, "implementations", lambda shape: {"compiled": all_of(shape)["compiled"]})
    with torch._dynamo.config.patch(recompile_limit=1):
        for batch in (1, 2):
            subjects = benchmark.measure(Shape("RN50", "nchw", "fp32", batch, 2, 3, 4), options)
            assert len(subjects) == len(benchmark.DIRECTIONS)


@pytest.mark.parametrize(("batch", "number"), [(1, 8), (32, 2)])
def test_a_tiny_shape_has_eight_sets_of_inputs_at_most(batch, number, monkeypatch):
    """A large one as many as twice this machine's cache takes, of 64 MB by assumption."""
    made = []
    monkeypatch.setattr(grid_subsample, "Inputs", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(grid_subsample, "implementations", lambda shape: {})
    shape = Shape("RN50", "nchw", "fp32", batch, *((2, 3, 4) if batch == 1 else (12, 20, 100)))
    benchmark.measure(shape, benchmark.parse(SMALL))
    assert len(made) == number


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_implementations_pass_the_check_in_every_dtype(dtype, layout):
    inputs = grid_subsample.Inputs(Shape("RN50x4", layout, dtype, 3, 4, 5, 7), "cpu", seed=1)
    passed = []
    for name in ("ours", "original", "gather_first"):
        grid_subsample.check(grid_subsample.implementations(inputs.shape)[name], inputs)  # raises where it differs
        passed.append(name)
    assert passed == ["ours", "original", "gather_first"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "RN101"], "invalid choice"),
        (["--batch", "0"], "have to be 1 or more"),
        (["--rounds", "-1"], "have to be 1 or more"),
        (["--grid", "26", "2"], "at most 25 rows and columns"),
        (["--samples", "241"], "at most 25 rows and columns, and their cells"),
        (["--json", "nowhere/rows.json"], "nowhere/rows.json can't be written: No such file or directory"),
        pytest.param(
            ["--device", "cuda"],
            "torch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.parse(["--device", "cpu", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_full_disk_is_one_line_after_the_numbers():
    result = run(*SMALL, "--layout", "nchw", "--samples", "6", "--json", "/dev/full")
    assert result.returncode == 1
    assert "backward ours" in result.stdout
    assert result.stderr.splitlines()[-1] == "error: /dev/full can't be written: No space left on device"


def test_kernels_that_cannot_run_are_one_line(monkeypatch, capsys):
    monkeypatch.setenv("KERNELS_BACKEND", "fast")
    with pytest.raises(SystemExit):
        benchmark.parse(SMALL)
    assert "KERNELS_BACKEND=fast is none of auto, triton, torch" in capsys.readouterr().err


def test_batch_norm(tmp_path, capsys):
    """On the smallest shape of RN50, one image."""
    path = tmp_path / "batch_norm.json"
    batch_norm.main(["--device", "cpu", "--images", "1", "--shapes", "1", "--rounds", "1", "--json", str(path)])
    rows = {(row["implementation"], row["direction"]): row for row in json.loads(path.read_text())}
    implementations = ["ours", "operators"] + (["compiled"] if COMPILER else [])
    assert rows.keys() == set(itertools.product(implementations, ["forward", "backward", "both"]))
    assert "stage 4, shortcut, both" in capsys.readouterr().out
    forward, theirs = rows["ours", "forward"], rows["operators", "forward"]
    size = 2048 * 12 * 20 * 4
    assert forward["gb_per_s"] == pytest.approx(4 * size / forward["microseconds"] / 1e3)
    assert forward["ratio_to_operators"] == theirs["microseconds"] / forward["microseconds"]


def test_batch_norm_that_is_wrong_is_not_timed():
    inputs = batch_norm.Inputs(batch_norm.SHAPES[-1], 1, torch.float32, "cpu", seed=0)

    def off(inputs, _):
        out, again = batch_norm.ours(inputs, None)
        return out * (1 + 1e-3), again

    with pytest.raises(AssertionError, match=r"result is off by 1\.0e-03"):
        batch_norm.check(Implementation(off), inputs)
