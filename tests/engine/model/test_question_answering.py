import math

import pytest
import torch

ANSWERS = 5


@pytest.fixture
def model(answering_model):
    return answering_model


def inputs(target, is_labelled=None):
    batch = len(target)
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(1, 20, (batch, 6), generator=generator),
        "token_type_ids": torch.zeros(batch, 6, dtype=torch.long),
        "attention_mask": torch.ones(batch, 6, dtype=torch.long),
        "images": torch.randint(0, 256, (batch, 3, 64, 96), generator=generator, dtype=torch.uint8),
        "target": torch.tensor(target),
        "is_labelled": is_labelled,
    }


TARGET = [[1.0, 0.0, 0.3, 0.0, 0.0], [0.0, 0.6, 0.0, 0.0, 0.0], [0.0] * 5]


def test_the_loss_is_the_mean_times_the_number_of_answers(model):
    """-t log s(x) - (1 - t) log(1 - s(x)), summed here by hand; two float32 ways to the same sum of 15 terms differ by
    less than 1e-5 of it."""
    output = model(**inputs(TARGET))
    scores = output.answer_scores.double().tolist()
    total = 0.0
    for row, targets in zip(scores, TARGET, strict=True):
        for x, t in zip(row, targets, strict=True):
            total -= t * math.log(1 / (1 + math.exp(-x))) + (1 - t) * math.log(1 - 1 / (1 + math.exp(-x)))
    assert output.bce.item() == pytest.approx(total / 15, rel=1e-5)
    assert output.loss.item() == pytest.approx(total / 15 * ANSWERS, rel=1e-5)
    model.loss_scale = 500.0
    assert model(**inputs(TARGET)).loss.item() == pytest.approx(total / 15 * 500, rel=1e-5)


def test_the_best_answer_may_count_alone(model):
    """-log softmax(x)[best], as --mceLoss has it; the third question has no answer and so no best one."""
    model.best_answer_only = True
    output = model(**inputs(TARGET))
    scores = output.answer_scores.double()
    total = -sum(scores.log_softmax(1)[row, best].item() for row, best in ((0, 0), (1, 1)))
    assert output.loss.item() == pytest.approx(total / 2 * ANSWERS, rel=1e-5)
    assert output.metrics.by_name()["qa_loss"][1] == 2


def test_what_is_not_labelled_counts_nowhere(model):
    model.eval()  # else batch norm sees the others
    labelled = torch.tensor([True, False, True])
    output = model(**inputs(TARGET, labelled))
    spoilt = model(**inputs([TARGET[0], [9.0] * 5, TARGET[2]], labelled))
    assert torch.equal(output.loss, spoilt.loss)
    assert output.metrics.by_name()["qa_loss"][1] == output.metrics.by_name()["qa_score"][1] == 2
    nothing = model(**inputs(TARGET, torch.zeros(3, dtype=torch.bool)))
    assert nothing.loss == 0
    nothing.loss.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_the_score_is_that_of_the_likeliest_answer(model):
    output = model.eval()(**inputs(TARGET))
    expected = sum(TARGET[row][answer] for row, answer in enumerate(output.answer_scores.argmax(1).tolist()))
    assert output.metrics.by_name()["qa_score"][0].item() == pytest.approx(expected)


def test_without_a_target_there_are_scores_alone(model):
    output = model(**{**inputs(TARGET), "target": None})
    assert output.answer_scores.shape == (3, ANSWERS)
    assert output.loss is None
    assert output.metrics.names == ()


def test_every_parameter_takes_part(model):
    """One without a gradient would stall ZeRO-2. Position 0 and word 0 aside, as in pre-training."""
    model(**inputs(TARGET)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
