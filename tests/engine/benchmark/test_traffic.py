"""Bytes that the backbone moves and keeps, counted on the meta device."""

import pytest
import torch
import torch.nn.functional as F

from engine.benchmark import traffic
from engine.benchmark.counting import Traffic
from kernels.batch_norm import Norm, batch_norm, batch_norm_add

TENSOR = 2 * 8 * 6 * 4 * 2  # bytes of the features below, in fp16
SMALL = 2 * 8 * 64  # bytes of all vectors of channels, at most


def features() -> torch.Tensor:
    return torch.randn(2, 8, 6, 4).half().contiguous(memory_format=torch.channels_last).requires_grad_()


def moved(compute, *gradients: torch.Tensor) -> list[int]:
    """Tensors of the features' size that forward and backward pass read and write."""
    with Traffic() as forward:
        results = compute()
    with Traffic() as backward:
        torch.autograd.backward(results, gradients)
    for counted in (forward.bytes, backward.bytes):
        assert counted % TENSOR < SMALL
    return [forward.bytes // TENSOR, backward.bytes // TENSOR]


def test_batch_norm_reads_its_features_twice() -> None:
    """By hand: statistics, then result; sums of gradients and features, then gradients."""
    x, y, z, shortcut = (features() for _ in range(4))  # each with its gradient, which is not added to another
    gradient = torch.ones(2, 8, 6, 4).half()
    scale, shift = torch.ones(8), torch.zeros(8)
    norm = Norm(scale, shift, torch.zeros(8), torch.ones(8), by_batch=True)
    operator = moved(lambda: [F.batch_norm(x, None, None, scale, shift, training=True)], gradient)
    assert operator == [2 + 1, 2 * 2 + 1]
    assert moved(lambda: [batch_norm(y, norm, relu=True)], gradient) == [2 + 1, 2 * 2 + 1]
    # Two terms of the gradient, result, features, g; then g, features, gradient.
    assert moved(lambda: batch_norm_add(z, shortcut, norm), gradient, gradient) == [2 + 1 + 1, 5 + 3]


@pytest.mark.slow
def test_ours_keeps_and_moves_less_than_operators() -> None:
    shape = ("tiny", torch.float16, 2, (64, 96))
    before, operators, compiled, ours = (found for _, found in traffic.ways(*shape))
    assert ours.convolutions == operators.convolutions == before.convolutions
    assert ours.kept < operators.kept < before.kept
    assert ours.others < operators.others < before.others
    # The same operators, so that the tensors between convolutions are kept, and fewer bytes are moved.
    assert compiled.kept == pytest.approx(operators.kept, rel=0.05)
    assert compiled.others < operators.others
    assert compiled.convolutions == pytest.approx(operators.convolutions, rel=0.05)


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--images", "0"], "--images has to be 1 or more"), (["--image_size", "64", "90"], "two multiples of 32")],
)
def test_wrong_flags_are_told(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        traffic.main(flags)
    assert told in capsys.readouterr().err


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "counted_compiled", lambda *shape: traffic.Counted(0, 0, 0))  # takes 12 s
    traffic.main(["--model", "tiny", "--images", "2", "--image_size", "64", "64"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: row[1:] for row in rows if row and row[0] in ("before", "operators", "compiled", "ours")}
    assert list(found) == ["before", "operators", "compiled", "ours"]
    assert found["before"][-1] == "1.00"
    assert float(found["ours"][-1]) < 0.5
