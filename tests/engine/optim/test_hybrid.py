import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from transformers import BertConfig

from engine.model.clip_resnet import ResNetShape
from engine.model.encoder import VisualShape
from engine.model.pretraining import ClipVilForPretraining
from engine.optim.hybrid import HybridOptimizer, check_partition, parameter_groups
from engine.optim.schedules import hybrid_schedule

RATES = {
    "lr": 0.01,
    "weight_decay": 0.1,
    "adam_epsilon": 1e-6,
    "sgd_lr": 0.03,
    "sgd_momentum": 0.9,
    "sgd_weight_decay": 0.02,
}


class Small(nn.Module):
    """Something for each group."""

    def __init__(self):
        super().__init__()
        self.visual_model = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)
        self.LayerNorm = nn.LayerNorm(2)

    def forward(self, x):
        return self.LayerNorm(self.head(self.visual_model(x)))


def small():
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="module")
def clip_vil():
    """The real model with its real names, on the meta device."""
    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with torch.device("meta"):
        return ClipVilForPretraining(config, VisualShape(ResNetShape((1, 1, 1, 1), 2)), num_answers=3)


def names_by_group(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in parameter_groups(model, **RATES)}


def test_every_parameter_is_in_exactly_one_group(clip_vil):
    grouped = [name for names in names_by_group(clip_vil).values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in clip_vil.named_parameters())
    assert len(set(grouped)) == len(grouped)


def test_sgd_has_the_backbone_and_nothing_else(clip_vil):
    groups = names_by_group(clip_vil)
    backbone = [name for name, _ in clip_vil.bert.encoder.visual_model.named_parameters("bert.encoder.visual_model")]
    assert groups["sgd_backbone"] == backbone
    assert any(name.endswith("bn1.bias") for name in backbone)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("bert.embeddings.word_embeddings.weight", "adamw_decay"),
        ("bert.embeddings.LayerNorm.weight", "adamw_no_decay"),
        ("bert.embeddings.LayerNorm.bias", "adamw_no_decay"),
        ("bert.encoder.layer.0.attention.self.query.weight", "adamw_decay"),
        ("bert.encoder.layer.0.attention.self.query.bias", "adamw_no_decay"),
        ("bert.encoder.layer.0.output.LayerNorm.weight", "adamw_no_decay"),
        ("bert.encoder.visn_fc.visn_fc.bias", "adamw_no_decay"),
        ("bert.encoder.visn_fc.visn_layer_norm.weight", "adamw_decay"),  # as in the original, by its name
        ("bert.encoder.visual_pos.x_position_embedding.weight", "adamw_decay"),
        ("cls.predictions.bias", "adamw_no_decay"),
        ("answer_head.logit_fc.2.weight", "adamw_decay"),  # a LayerNorm, as in the original
        ("answer_head.logit_fc.2.bias", "adamw_no_decay"),
    ],
)
def test_decay_goes_by_name(clip_vil, name, group):
    assert name in names_by_group(clip_vil)[group]


def test_groups_carry_their_settings():
    decay, no_decay, sgd = parameter_groups(small(), **RATES)
    for group, weight_decay in ((decay, 0.1), (no_decay, 0.0)):
        settings = {name: group[name] for name in ("algorithm", "lr", "betas", "eps", "weight_decay")}
        assert settings == {
            "algorithm": "adamw",
            "lr": 0.01,
            "betas": (0.9, 0.999),
            "eps": 1e-6,
            "weight_decay": weight_decay,
        }
    settings = {name: sgd[name] for name in ("algorithm", "lr", "momentum", "weight_decay")}
    assert settings == {"algorithm": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 0.02}


def test_adamw_may_train_the_backbone_with_sgds_rate_and_schedule():
    model = small()
    groups = parameter_groups(model, **RATES, use_adam_for_visual=True)
    assert [group["name"] for group in groups[2:]] == ["adamw_backbone_decay", "adamw_backbone_no_decay"]
    weight, bias = model.visual_model.parameters()
    for group, parameter, weight_decay in zip(groups[2:], (weight, bias), (0.1, 0.0), strict=True):
        assert group["params"] == [parameter]
        settings = {name: group[name] for name in ("algorithm", "lr", "eps", "weight_decay", "schedule")}
        ours = {"algorithm": "adamw", "lr": 0.03, "eps": 1e-6, "weight_decay": weight_decay, "schedule": "milestones"}
        assert settings == ours
    assert [group["schedule"] for group in groups[:2]] == ["warmup"] * 2


def test_a_frozen_backbone_has_no_group():
    model = small()
    model.visual_model.requires_grad_(False)
    for adam in (False, True):
        groups = parameter_groups(model, **RATES, use_adam_for_visual=adam)
        assert [group["name"] for group in groups] == ["adamw_decay", "adamw_no_decay"]


def duplicated(model, groups):
    groups[1]["params"].append(model.head.weight)


def take_out(group, parameter):
    group["params"] = [each for each in group["params"] if each is not parameter]


def missing(model, groups):
    take_out(groups[1], model.head.bias)


def backbone_under_adamw(model, groups):
    take_out(groups[2], model.visual_model.bias)
    groups[1]["params"].append(model.visual_model.bias)


def head_under_sgd(model, groups):
    take_out(groups[1], model.head.bias)
    groups[2]["params"].append(model.head.bias)


def emptied(model, groups):
    groups[0]["params"].clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (duplicated, "a parameter is in both adamw_decay and adamw_no_decay"),
        (missing, "head.bias is in no parameter group"),
        (backbone_under_adamw, "visual_model.bias is in the group adamw_no_decay"),
        (head_under_sgd, "head.bias is in the group sgd_backbone"),
        (emptied, "no parameter of the model belongs to the group adamw_decay"),
    ],
)
def test_wrong_partition_is_refused(change, message):
    model = small()
    groups = parameter_groups(model, **RATES)
    check_partition(model, groups)
    change(model, groups)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_partition(model, groups)


def test_model_without_a_backbone_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no parameter of the model belongs to the group sgd_backbone"):
        parameter_groups(model, **RATES)


def backward(model, step):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    model(x).pow(3).sum().backward()


def step_whole(optimizer):
    optimizer.step()


def step_group_by_group(optimizer):
    """As ZeRO-2 does."""
    groups = optimizer.param_groups
    for group in groups:
        optimizer.param_groups = [group]
        optimizer.step()
    optimizer.param_groups = groups


def separate_optimizers(model):
    head = AdamW(
        [
            {"params": [model.head.weight], "weight_decay": 0.1},
            {"params": [model.head.bias, model.LayerNorm.weight, model.LayerNorm.bias], "weight_decay": 0.0},
        ],
        lr=0.01,
        eps=1e-6,
        fused=True,
    )
    return head, SGD(model.visual_model.parameters(), lr=0.03, momentum=0.9, weight_decay=0.02, fused=True)


def assert_equal_weights(model, other):
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("step", [step_whole, step_group_by_group])
def test_equals_separate_adamw_and_sgd_exactly(step):
    model, reference = small(), small()
    start = copy.deepcopy(model)
    optimizer, separate = HybridOptimizer(parameter_groups(model, **RATES)), separate_optimizers(reference)
    for number in range(5):
        backward(model, number)
        step(optimizer)
        backward(reference, number)
        for each in separate:
            each.step()
        assert_equal_weights(model, reference)
    assert not any(torch.equal(one, two) for one, two in zip(model.parameters(), start.parameters(), strict=True))


def test_a_changed_rate_counts_in_the_next_step():
    model, reference = small(), small()
    optimizer, separate = HybridOptimizer(parameter_groups(model, **RATES)), separate_optimizers(reference)
    for group in (*optimizer.param_groups[:2], *separate[0].param_groups):
        group["lr"] = 0.5
    backward(model, 0)
    optimizer.step()
    backward(reference, 0)
    for each in separate:
        each.step()
    assert_equal_weights(model, reference)


def test_state_dict_round_trip_continues_the_run():
    model = small()
    optimizer = HybridOptimizer(parameter_groups(model, **RATES))
    for number in range(3):
        backward(model, number)
        optimizer.step()
    resumed = copy.deepcopy(model)
    again = HybridOptimizer(parameter_groups(resumed, **RATES))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(3, 5):
        for each, its_model in ((optimizer, model), (again, resumed)):
            backward(its_model, number)
            each.step()
    assert_equal_weights(model, resumed)


def test_state_holds_what_each_algorithm_remembers():
    model = small()
    optimizer = HybridOptimizer(parameter_groups(model, **RATES))
    backward(model, 0)
    optimizer.step()
    assert set(optimizer.state[model.head.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(optimizer.state[model.visual_model.weight]) == {"momentum_buffer"}
    assert set(optimizer.state) == set(model.parameters())


def test_parameter_without_gradient_stays():
    model = small()
    optimizer = HybridOptimizer(parameter_groups(model, **RATES))
    backward(model, 0)
    model.head.weight.grad = None
    before = model.head.weight.clone()
    optimizer.step()
    assert torch.equal(model.head.weight, before)


def test_closure_is_refused():
    optimizer = HybridOptimizer(parameter_groups(small(), **RATES))
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)


def test_schedule_moves_adamw_and_sgd_each_their_way():
    model = small()
    optimizer = HybridOptimizer(parameter_groups(model, **RATES))
    schedule = hybrid_schedule(optimizer, warmup_steps=2.5, total_steps=10, steps_per_epoch=2, milestones=[1, 3])
    rates = []
    for number in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        backward(model, number)
        optimizer.step()
        schedule.step()
    decay, no_decay, sgd = zip(*rates, strict=True)
    assert decay == no_decay
    factors = [0, 1 / 2.5, 2 / 2.5, 7 / 7.5, 6 / 7.5, 5 / 7.5, 4 / 7.5, 3 / 7.5, 2 / 7.5, 1 / 7.5]
    # Products and powers of the same few floats: one rounding each.
    assert decay == pytest.approx([0.01 * factor for factor in factors], rel=1e-15)
    assert sgd == pytest.approx([0.03] * 2 + [0.003] * 4 + [0.0003] * 4, rel=1e-15)


def test_first_step_leaves_adamws_weights_and_moves_the_backbone():
    model = small()
    start = copy.deepcopy(model)
    optimizer = HybridOptimizer(parameter_groups(model, **RATES))
    hybrid_schedule(optimizer, warmup_steps=2.5, total_steps=10, steps_per_epoch=2, milestones=[])
    backward(model, 0)
    optimizer.step()
    assert torch.equal(model.head.weight, start.head.weight)
    assert not torch.equal(model.visual_model.weight, start.visual_model.weight)
