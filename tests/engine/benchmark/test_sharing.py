"""python -m engine.benchmark.sharing: batches that share images, what follows from times, and bad flags."""

import pytest
import torch

from engine.benchmark import sharing
from engine.benchmark.sharing import Shared, row_of
from engine.benchmark.step.measuring import Samples
from engine.benchmark.step.ours import Ours
from engine.benchmark.step.parts import Recorder
from engine.errors import UserError
from tests.engine.benchmark.test_step import workload


def shared(sentences_per_image: int) -> dict[str, torch.Tensor]:
    ours = object.__new__(Ours)
    ours.device = torch.device("cpu")
    ours.recorder = Recorder(ours.device)
    return Shared(ours, workload().batch(8, sentences_per_image)).batch.inputs


def test_a_batch_has_as_many_sentences_of_fewer_images() -> None:
    alone, four = shared(1), shared(4)
    assert "grid_of" not in alone
    assert four["grid_of"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(four["images"], alone["images"][[0, 4]])
    for name in alone.keys() - {"images"}:
        assert torch.equal(four[name], alone[name])
    output, repeated = (
        workload().model().eval()(**{**inputs, "images": images})
        for inputs, images in ((four, four["images"]), (alone, four["images"][four["grid_of"]]))
    )
    # In evaluation each sentence is by itself; products of other shapes sum otherwise, through some ten operators.
    torch.testing.assert_close(output.loss, repeated.loss, rtol=1e-5, atol=0)


def test_speed_and_memory_are_compared_with_what_the_backbone_allows() -> None:
    samples = {1: Samples(seconds=[4.0, 8.0, 4.4]), 4: Samples(seconds=[2.0, 4.0, 2.0])}
    for number, forward, backward in ((1, 1.0, 3.0), (4, 0.2, 0.7)):
        samples[number].parts = {"backbone": [forward], "backbone backward": [backward]}
    row = row_of(4, samples, {1: 1000, 4: 700}, share=0.8, memory_share=0.4, sentences=16)
    assert row["speed_up"] == 2.0  # of the rounds' 2, 2 and 2.2
    assert row["sentences_per_second"] == 8.0
    assert row["bound"] == pytest.approx(1 / (0.2 + 0.2))
    assert row["share_of_bound"] == pytest.approx(0.8)
    assert row["backbone_per_image"] == pytest.approx(0.9)
    assert row["memory"] == 0.7
    assert row["memory_bound"] == pytest.approx(0.6 + 0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "12", "--sentences_per_image", "8"], r"\[1, 8\]: each has to divide the --batch of 12 sentences"),
        (["--sentences_per_image", "0"], r"\[0, 1\]: each has to divide"),
        (["--rounds", "0"], "--rounds 0: 1 or more is needed"),
        (["--image_size", "100", "640"], r"\[100, 640\]: multiples of 32 are needed"),
        (["--hidden_size", "100"], "--hidden_size 100: a multiple of 64 is needed"),
        (["--dtype", "fp16"], "--dtype fp16 needs a GPU"),
        (["--json", "/nowhere/sharing.json"], "/nowhere/sharing.json can't be written: No such file or directory"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sharing.check_options(sharing.parse(["--device", "cpu", *flags]))
