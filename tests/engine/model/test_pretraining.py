import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig

from engine.benchmark.counting import Traffic
from engine.errors import UserError
from engine.model.clip_resnet import ResNetShape
from engine.model.encoder import CLIP_MEAN, CLIP_STD, VisualShape, check_grid, normalise_images
from engine.model.pretraining import IGNORE, ClipVilForPretraining, cross_entropy

BACKBONE = ResNetShape((1, 1, 1, 1), 4)
STATE = torch.tensor([9595, 0, 0])


SMALL = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make(num_answers=None, **visual):
    config = BertConfig(**SMALL, max_position_embeddings=8)
    torch.manual_seed(0)
    visual = {"sub_feat_num": 4, "pos_num": 3, **visual}
    return ClipVilForPretraining(config, VisualShape(BACKBONE, **visual), num_answers)


def batch(**change):
    """Two captions of 5 tokens, the second padded by 2, with images of 2 x 3 cells."""
    noise = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.tensor([[2, 7, 8, 9, 3], [2, 10, 3, 0, 0]]),
        "token_type_ids": torch.zeros(2, 5, dtype=torch.int64),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "images": torch.randint(0, 256, (2, 3, 64, 96), generator=noise, dtype=torch.uint8),
        "masked_lm_labels": torch.tensor([[-1, 7, -1, 12, -1], [-1, -1, -1, -1, -1]]),
        "matched_label": torch.tensor([1, 0]),
        "ans": torch.tensor([5, -1]),
        "sampling_state": STATE,
        **change,
    }


def without_labels():
    ignored = {"masked_lm_labels": (2, 5), "matched_label": (2,), "ans": (2,)}
    return batch(**{name: torch.full(shape, IGNORE) for name, shape in ignored.items()})


def test_shapes_of_the_output():
    output = make(num_answers=6)(**batch())
    assert output.language.shape == (2, 5, 16)
    assert output.vision.shape == (2, 4, 16)
    assert output.pooled.shape == (2, 16)
    assert output.grid.shape == (2, BACKBONE.channels, 2, 3)
    assert output.lm_scores.shape == (2, 5, 30)
    assert output.matched_scores.shape == (2, 2)
    assert output.answer_scores.shape == (2, 6)


def test_loss_is_the_plain_sum_of_mean_cross_entropies():
    output = make(num_answers=6)(**batch())
    expected = {
        "mask_lm": F.cross_entropy(output.lm_scores[0, [1, 3]], torch.tensor([7, 12])),
        "matched": F.cross_entropy(output.matched_scores, torch.tensor([1, 0])),
        "qa": F.cross_entropy(output.answer_scores[:1], torch.tensor([5])),
    }
    assert output.losses.keys() == expected.keys()
    for name, value in expected.items():
        # fp32 sums of at most 30 terms of similar size, in another order.
        torch.testing.assert_close(output.losses[name], value, rtol=1e-5, atol=0)
    torch.testing.assert_close(output.loss, sum(expected.values()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sentences_per_image", [4, 8])
@pytest.mark.parametrize("mode", ["drawn", "all_cells", "frozen_norms"])
def test_shared_images_give_the_gradients_of_repeated_ones(sentences_per_image, mode):
    """Repeated as often, images have the same mean and variance in each batch norm, so everything has to agree.

    In fp64. A gradient is a sum of products through about 2^6 operators, each with sums of at most 2^20 terms: in
    another order it may be off by 2^26 roundings of 2^-53 of its size, in the norm.
    """
    visual = {"drawn": {}, "all_cells": {"sub_feat_num": None}, "frozen_norms": {"freeze_batch_norm": True}}[mode]
    sentences, noise = 16, torch.Generator().manual_seed(1)
    images = torch.rand(sentences // sentences_per_image, 3, 64, 96, generator=noise, dtype=torch.float64)
    grid_of = torch.arange(sentences) // sentences_per_image
    words = torch.randint(4, 30, (sentences, 5), generator=noise)
    inputs = {
        "input_ids": words,
        "token_type_ids": torch.zeros_like(words),
        "attention_mask": torch.ones_like(words),
        "masked_lm_labels": torch.where(torch.arange(5) % 2 == 1, words, IGNORE),
        "matched_label": torch.arange(sentences) % 2,
        "ans": torch.arange(sentences) % 6,
        "sampling_state": STATE,
    }

    def gradients(**of_images):
        model = make(num_answers=6, **visual).double().train()
        output = model(**inputs, **of_images)
        output.loss.backward()
        return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    shared_output, shared = gradients(images=images, grid_of=grid_of)
    output, repeated = gradients(images=images[grid_of])
    assert shared_output.grid.shape[0] == sentences // sentences_per_image
    assert output.grid.shape[0] == sentences
    torch.testing.assert_close(shared_output.loss, output.loss, rtol=2.0**-27, atol=0)
    assert shared.keys() == repeated.keys()
    assert any(name.startswith("bert.encoder.visual_model") and grad.norm() > 0 for name, grad in shared.items())
    for name, gradient in shared.items():
        if name.endswith("key.bias"):
            continue  # which softmax doesn't see: its gradient is zero but for roundings
        assert (gradient - repeated[name]).norm() <= 2.0**-27 * repeated[name].norm(), name


def test_metrics_are_sums_with_counts():
    output = make(num_answers=6)(**batch())
    counts = {"mask_lm": 2, "matched": 2, "qa": 1}
    metrics = output.metrics.by_name()
    assert {name: int(count) for name, (_, count) in metrics.items()} == {
        f"{name}_{kind}": count for name, count in counts.items() for kind in ("loss", "accuracy")
    }
    for name, count in counts.items():
        torch.testing.assert_close(metrics[f"{name}_loss"][0], output.losses[name].detach() * count)
    assert not metrics["qa_loss"].requires_grad
    hits = (output.lm_scores[0, [1, 3]].argmax(1) == torch.tensor([7, 12])).sum()
    assert metrics["mask_lm_accuracy"][0] == hits


def test_correct_predictions_are_counted():
    model = make()
    with torch.no_grad():
        model.cls.predictions.bias[7] = 1e4
        model.cls.seq_relationship.bias.copy_(torch.tensor([0.0, 1e4]))
    metrics = model(**batch()).metrics.by_name()
    assert metrics["mask_lm_accuracy"][0] == 1
    assert metrics["matched_accuracy"][0] == 1


def packed(inputs, positions):
    """Labels at these places alone, as pre-training's batches have them."""
    places = torch.tensor(positions, dtype=torch.int64)
    labels = inputs["masked_lm_labels"].flatten()[places]
    return {**inputs, "masked_positions": places, "masked_lm_labels": labels}


@pytest.mark.parametrize(
    ("positions", "sentences"),
    [([1, 3] + [0] * 6, 2), ([1, 3], 2), (list(range(10)), 2), ([3, 1, 0], 1)],
    ids=["padded", "exact", "all", "one_sentence"],
)
def test_words_are_scored_where_they_are_masked_and_nothing_else_changes(positions, sentences):
    """Losses are sums of a few fp32 terms in another order; gradients, products over fewer rows."""
    inputs = {name: value if name == "sampling_state" else value[:sentences] for name, value in batch().items()}
    whole, few = make(num_answers=6), make(num_answers=6)
    expected, output = whole(**inputs), few(**packed(inputs, positions))
    assert output.lm_scores.shape == (len(positions), 30)
    torch.testing.assert_close(output.lm_scores, expected.lm_scores.flatten(0, 1)[positions], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(output.metrics.values, expected.metrics.values, rtol=1e-6, atol=0)
    expected.loss.backward()
    output.loss.backward()
    gradients = dict(whole.named_parameters())
    unit = max(parameter.grad.abs().max() for parameter in gradients.values())
    for name, parameter in few.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-5, atol=1e-6 * float(unit))


def test_no_masked_word_leaves_every_gradient():
    """A parameter without one would stall ZeRO-2."""
    model = make()
    output = model(**packed(without_labels(), [0] * 16))
    assert output.loss == 0
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.any()] == []


@pytest.mark.parametrize(("num_answers", "more"), [(None, 0), (6, 4 + 9)], ids=["without_answers", "with_answers"])
def test_heads_losses_and_metrics_take_few_operators(num_answers, more):
    """Places: copy, view, select. Heads: transform 3, decoder 1, matching 1. Each of two tasks: cross entropy 2, count
    2, mean 2, hits 3. Their sum 2, all metrics 1. The answers are one task more, with a head of 4."""
    model, inputs = make(num_answers), packed(batch(), [1, 3] + [0] * 6)
    names = ("input_ids", "token_type_ids", "attention_mask", "images", "sampling_state")
    with Traffic() as trunk:
        model.bert(**{name: inputs[name] for name in names})
    with Traffic() as whole:
        model(**inputs)
    assert whole.operators - trunk.operators == 3 + 5 + 2 * 9 + 2 + 1 + more


def test_batch_without_labels_has_loss_zero_and_zero_gradients():
    model = make(num_answers=6)
    output = model(**without_labels())
    assert output.loss == 0
    assert not output.metrics.values[:, 1].any()
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.parametrize("num_answers", [None, 6], ids=["without_answers", "with_answers"])
def test_every_parameter_gets_a_finite_gradient(num_answers):
    """ZeRO-2 waits for all of them."""
    model = make(num_answers)
    model(**batch()).loss.backward()
    wrong = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert wrong == []


def test_batch_without_answers_has_the_other_losses_gradients():
    unanswered, left_out = make(num_answers=6), make(num_answers=6)
    unanswered(**batch(ans=torch.tensor([-1, -1]))).loss.backward()
    output = left_out(**batch())
    (output.losses["mask_lm"] + output.losses["matched"]).backward()
    for (name, one), other in zip(unanswered.named_parameters(), left_out.parameters(), strict=True):
        if not name.startswith("answer_head."):
            # The same sums; a zero more is added where the answer head's gradient comes in, which is exact.
            assert torch.equal(one.grad, other.grad), name


def test_no_answer_head_unless_asked_for():
    model = make()
    assert not any("answer_head" in name for name in model.state_dict())
    output = model(**batch())
    assert output.answer_scores is None
    assert output.losses.keys() == {"mask_lm", "matched"}


def test_decoder_is_the_word_embedding_itself():
    model = make()
    predictions = model.cls.predictions
    assert {name for name, _ in predictions.named_parameters()} == {
        "transform.dense.weight",
        "transform.dense.bias",
        "transform.LayerNorm.weight",
        "transform.LayerNorm.bias",
        "bias",
    }
    output = model(**batch())
    words = model.bert.embeddings.word_embeddings.weight
    assert torch.equal(output.lm_scores, F.linear(predictions.transform(output.language), words, predictions.bias))
    output.losses["mask_lm"].backward()
    assert words.grad[20].any()  # a word that no caption holds learns through the decoder


def test_embeddings_of_padding_learn_through_the_decoder_alone():
    model = make()
    output = model(**batch())
    output.losses["matched"].backward(retain_graph=True)
    embeddings = model.bert.embeddings
    assert not embeddings.word_embeddings.weight.grad[0].any()
    assert not embeddings.position_embeddings.weight.grad[0].any()
    assert not embeddings.token_type_embeddings.weight.grad.any()
    assert embeddings.word_embeddings.weight.grad[2].any()
    assert embeddings.position_embeddings.weight.grad[1].any()
    output.losses["mask_lm"].backward()
    assert embeddings.word_embeddings.weight.grad[0].any()


def test_pooler_is_a_linear_layer_on_the_first_token():
    model = make()
    output = model(**batch())
    assert torch.equal(output.pooled, model.bert.pooler.dense(output.language[:, 0]))


def test_padding_is_not_attended():
    model = make().eval()
    changed = batch()["input_ids"]
    changed[1, 3:] = torch.tensor([11, 12])
    before, after = model(**batch()), model(**batch(input_ids=changed))
    # Exactly: a masked score is -inf, its weight 0.
    assert torch.equal(before.language[1, :3], after.language[1, :3])
    assert torch.equal(before.vision, after.vision)
    assert not torch.equal(before.language[1, 3:], after.language[1, 3:])


def test_words_attend_to_the_image():
    model = make().eval()
    darker = batch()["images"] // 2
    assert not torch.equal(model(**batch()).language, model(**batch(images=darker)).language)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_cells_are_sampled_by_the_state_also_in_evaluation(training):
    model = make().train(training)
    one, same, other = (
        model(**batch(sampling_state=torch.tensor([9595, step, 0]))).vision.detach() for step in (0, 0, 1)
    )
    assert one.shape[1] == 4
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_second_half_of_a_batch_sees_the_cells_of_the_whole():
    model = make().eval()
    half = {name: value[1:] for name, value in batch().items() if name != "sampling_state"}
    whole = model(**batch(sampling_state=torch.tensor([9595, 0, 8])))
    part = model(**half, sampling_state=torch.tensor([9595, 0, 9]))
    # Other matrix sizes may sum in another order: fp32 sums of up to 144 terms, over a dozen layers, of numbers near 1.
    torch.testing.assert_close(part.vision[0], whole.vision[1], rtol=0, atol=1e-4)
    elsewhere = model(**half, sampling_state=torch.tensor([9595, 0, 8]))
    assert (elsewhere.vision[0] - whole.vision[1]).abs().max() > 1e-3


def test_without_sub_sampling_all_cells_are_kept_and_no_state_is_needed():
    output = make(sub_feat_num=None)(**batch(sampling_state=None))
    assert output.vision.shape == (2, 6, 16)


def test_sub_sampling_without_a_state_is_refused():
    with pytest.raises(UserError, match=r"reads 4 of the 6 cells .* give sampling_state=torch\.tensor\(\[seed, 0, 0\]"):
        make()(**batch(sampling_state=None))


def test_scores_need_no_labels():
    model = make().eval()
    labels = ("masked_lm_labels", "matched_label", "ans")
    output = model(**{name: value for name, value in batch().items() if name not in labels})
    assert (output.loss, output.losses) == (None, {})
    assert torch.equal(output.matched_scores, model(**batch()).matched_scores)


def test_position_tables_are_built_only_when_used():
    names = [name for name in make(use_positional_embedding=False).state_dict() if "visual_pos" in name]
    assert names == []
    make(use_positional_embedding=False)(**batch())


def test_table_called_x_is_that_of_grid_rows():
    """The images have 2 rows and 3 columns: of 3 entries x uses 2, y all."""
    model = make(sub_feat_num=None)
    model(**batch()).loss.backward()
    tables = model.bert.encoder.visual_pos
    assert tables.x_position_embedding.weight.grad.any(dim=1).tolist() == [True, True, False]
    assert tables.y_position_embedding.weight.grad.any(dim=1).tolist() == [True, True, True]


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "free"])
def test_freeze_batch_norm_keeps_the_statistics_through_train(frozen):
    model = make(freeze_batch_norm=frozen)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "visual_model" in name}
    assert before
    model.eval()
    model.train()
    model(**batch()).loss.backward()
    kept = [torch.equal(buffer, model.get_buffer(name)) for name, buffer in before.items()]
    assert all(kept) if frozen else not any(kept)
    assert model.bert.encoder.layer.training
    assert model.bert.encoder.visual_model.visual.conv1.weight.grad is not None


def test_images_are_normalised_once():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(1, 3, 1, 1)  # (1, 3, 1, 3)
    normalised = normalise_images(pixels)
    for channel in range(3):
        expected = [(value / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel] for value in (0, 51, 255)]
        # Three roundings of numbers below 3.
        torch.testing.assert_close(normalised[0, channel, 0], torch.tensor(expected), rtol=0, atol=1e-6)
    assert normalise_images(normalised) is normalised
    assert pixels.tolist()[0][0][0] == [0, 51, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_cross_entropy_is_computed_in_fp32(dtype):
    scores = torch.linspace(-20, 20, 60).view(3, 20).to(dtype)
    labels = torch.tensor([0, IGNORE, 19])
    total, count = cross_entropy(scores, labels)
    assert total.dtype == count.dtype == torch.float32
    assert count == 2
    # Two terms: the sum over two rows against the mean of two.
    torch.testing.assert_close(total / 2, F.cross_entropy(scores[[0, 2]].float(), labels[[0, 2]]), rtol=1e-6, atol=0)


def test_losses_of_a_bf16_model_are_fp32():
    model = make(num_answers=6).bfloat16()
    for norm in model.bert.encoder.visual_model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # as DeepSpeed leaves them
            norm.running_mean, norm.running_var = norm.running_mean.float(), norm.running_var.float()
    output = model(**batch())
    assert output.lm_scores.dtype == torch.bfloat16
    assert {loss.dtype for loss in (output.loss, *output.losses.values())} == {torch.float32}
    assert torch.isfinite(output.loss)


def test_new_weights_have_berts_spread_and_the_backbone_its_own():
    model = make(num_answers=6)
    projection = model.bert.encoder.visn_fc.visn_fc
    # Standard deviation of n = 128 x 16 normal draws: its own relative error is 1 / sqrt(2 n) = 1.6%; five of them.
    assert projection.weight.std().item() == pytest.approx(0.02, rel=0.08)
    assert not projection.bias.any()
    assert model.bert.embeddings.word_embeddings.weight[0].any()
    convolution = model.bert.encoder.visual_model.visual.conv1.weight
    # Kaiming-uniform of 27 inputs: within 1 / sqrt(27), and far wider than 0.02.
    assert convolution.abs().max() <= 27**-0.5
    assert convolution.std() > 0.08


SAMPLED = VisualShape(BACKBONE, sub_feat_num=100, pos_num=25)


def test_grid_with_enough_cells_and_table_rows_passes():
    check_grid(SAMPLED, 384, 640)
    check_grid(VisualShape(BACKBONE, sub_feat_num=240, pos_num=20), 384, 640)


def test_grid_with_too_few_cells_is_refused():
    with pytest.raises(UserError) as error:
        check_grid(SAMPLED, 288, 352)
    assert str(error.value) == (
        "--sub_feat_num 100 is more than the 9 x 11 = 99 cells of a 288 x 352 image; "
        "lower it or raise --image_size_min/--image_size_max"
    )


@pytest.mark.parametrize(("height", "width"), [(384, 832), (832, 384)], ids=["landscape", "portrait"])
def test_grid_longer_than_the_tables_is_refused(height, width):
    with pytest.raises(UserError) as error:
        check_grid(SAMPLED, height, width)
    assert str(error.value) == (
        f"a {height} x {width} image has a grid of {height // 32} x {width // 32} cells, the position tables have "
        "25 rows; raise --pos_num to 33, which is in proportion to the original's (26 at least), or lower "
        "--image_size_max"
    )


def test_an_image_without_a_cell_is_refused():
    with pytest.raises(UserError, match="a 30 x 640 image has no cell of 32 x 32; raise --image_size_min"):
        check_grid(VisualShape(BACKBONE, sub_feat_num=None), 30, 640)


@pytest.mark.parametrize("length", [512, 509])
def test_padding_to_the_longest_sequence_changes_nothing(length):
    """Each caption's 5 tokens come out as they do without it, and so do losses: what is padded has weight 0.

    Sums over more keys are split otherwise, so results differ by fp32's rounding, 2^-24 each of some dozens.
    """
    config = BertConfig(**SMALL, max_position_embeddings=512)
    torch.manual_seed(0)
    model = ClipVilForPretraining(config, VisualShape(BACKBONE, sub_feat_num=4, pos_num=3), None).eval()
    short = batch(ans=None)
    long = {
        name: F.pad(value, (0, length - 5), value=IGNORE if name == "masked_lm_labels" else 0)
        if name in ("input_ids", "token_type_ids", "attention_mask", "masked_lm_labels")
        else value
        for name, value in short.items()
    }
    ours, theirs = model(**long), model(**short)
    assert ours.language.shape == (2, length, 16)
    torch.testing.assert_close(ours.language[:, :5], theirs.language, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.vision, theirs.vision, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    ours.loss.backward()


def test_grid_without_sampling_or_tables_is_free():
    check_grid(VisualShape(BACKBONE, sub_feat_num=None, use_positional_embedding=False), 32, 3200)
