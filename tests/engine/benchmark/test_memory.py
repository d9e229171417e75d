"""python -m engine.benchmark.memory: which flags it takes, and that what it calls the largest is the largest."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.benchmark import memory
from engine.benchmark.memory import GB, answers_of, count, largest, read_flags, report
from engine.configuration.bert import SPECIAL_TOKENS
from engine.errors import UserError
from engine.tasks.gqa import Gqa
from engine.tasks.pretraining import Pretraining
from engine.tasks.snli_ve import LABELS, VisualEntailment
from engine.training.preflight.memory import RESERVE

SMALL = ["--clip_model_name", "tiny", "--image_size_min", "64", "--image_size_max", "96", "--pos_num", "3"]
SMALL += ["--sub_sampling", "true", "--sub_feat_num", "4", "--bf16"]


def test_a_recipe_and_the_flags_over_it_count() -> None:
    flags = ["--recipe", "rn50_stage_one", "--batch_size", "16", "--max_seq_length=40", "--global_batch_size", "512"]
    task, config, gpus = read_flags([*flags, "--gpus", "8"])
    assert (task, gpus, config.batch_size, config.max_seq_length) == (Pretraining, 8, 16, 40)
    assert (config.sub_feat_num, config.fp16, config.gradient_accumulation_steps) == (100, True, 4)
    task, config, gpus = read_flags(["--task", "gqa", "--recipe", "gqa_rn50"])
    assert (task, gpus, config.batch_size, config.gradient_accumulation_steps) == (Gqa, 1, 8, 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_sise", "8"], "unknown flag --batch_sise; did you mean --batch_size"),
        (["--recipe", "rn50"], "there is no recipe rn50; choose one of"),
        (["--recipe", "vqa_rn50"], "unknown setting load_lxmert"),
        (["--task", "vqa", "--task_qa"], "unknown flag --task_qa"),
        (["--task", "nlvr"], "--task nlvr: there is no such task; give one of vqa, gqa, snli_ve"),
        (["--batch_size", "0"], "--batch_size 0: at least 1 is needed"),
        (["--gpus", "0"], "--gpus 0: at least 1 is needed"),
        (["--gpus", "9" * 20], "--gpus 9+: 65,536 at most are counted"),
        (["--batch_size", "99999999999"], "--batch_size 9+: 16,384 samples at most are counted"),
        (["--load", "gone"], "there is no folder gone with manifest.json or config.json"),
        (["--micro_batch_size", "auto"], "--micro_batch_size auto takes what is counted here; give a number"),
        (["--dry_run"], "--dry_run belongs to the training's own program"),
        (["--print_config"], "--print_config belongs to the training's own program"),
    ],
)
def test_bad_flags_are_told_as_in_the_programs(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_flags(flags)


def test_a_checkpoint_to_start_from_says_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """As it does for the training."""
    run = Path(__file__).parents[2] / "earlier" / "run"
    task, config, gpus = read_flags(["--load", str(run / "Step000006"), "--batch_size", "4"])
    assert (config.clip_model_name, config.image_size_max, config.bert) == ("tiny", 96, str(run / "Step000006"))
    assert f"from {run / 'Step000006'}: --clip_model_name tiny" in capsys.readouterr().out
    assert count(task, config, gpus)(4) < 0.1 * GB


def test_heads_have_as_many_answers_as_the_published_data() -> None:
    for flags, rows in (
        ([], 0),
        (["--taskQA"], 9500),
        (["--task", "vqa"], 3129),
        (["--task", "gqa"], 1842),
        (["--task", "snli_ve"], len(LABELS)),
    ):
        task, config, _ = read_flags(flags)
        assert answers_of(task, config) == rows
    assert VisualEntailment.files.usual_answers == len(VisualEntailment.files.answers(memory.RECIPES))


def steps(samples: int) -> int:
    """As a head that packs its labels may take: a plateau, then more in proportion, by eights."""
    return max(5000, 1000 + 100 * (-(-samples // 8) * 8))


@pytest.mark.parametrize("peak", [lambda samples: 300 + 10 * samples, steps], ids=["in proportion", "by steps"])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_the_largest_number_is_found(peak: Callable[[int], int], step: int) -> None:
    choices = range(step, memory.MOST + 1, step)
    for limit in (1, 310, 319, 4999, 5000, 5001, 9321, 100_000, 163_999, 10**9):
        fitting = [samples for samples in choices if peak(samples) <= limit]
        assert largest(peak, limit, step) == (fitting[-1] if fitting else 0)


@pytest.fixture
def bert(tmp_path: Path) -> list[str]:
    """Two layers, which are counted more quickly than BERT's twelve."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 50, **sizes}))
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS))
    return ["--bert", str(tmp_path)]


def test_a_line_for_each_choice_says_what_fits(
    bert: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "DEVICES", (2, 4))
    task, config, gpus = read_flags(["--task", "vqa", *SMALL, *bert, "--batch_size", "8"])
    report(task, config, gpus)
    line = r"^(none|early|backbone|all) +([\d.]+) +([\d,]+) +([\d,]+)$"
    lines = re.findall(line, capsys.readouterr().out, re.MULTILINE)
    assert [found[0] for found in lines] == ["none", "early", "backbone", "all"]
    peak = count(task, config, gpus)
    assert float(lines[0][1]) == pytest.approx(peak(8) / GB, abs=0.005)
    fitting = [[int(number.replace(",", "")) for number in found[2:]] for found in lines]
    for most, device in zip(fitting[0], (2, 4), strict=True):
        assert peak(most) <= (1 - RESERVE) * device * GB < peak(most + 1)
    assert fitting[3][0] > fitting[0][0]


def test_more_gpus_divide_the_state_of_the_usual_bert_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16: 8 bytes of AdamW's moments and 4 of fp32 weights, of 110 million values and more."""
    monkeypatch.setattr("engine.checkpoint.state.read_words", lambda *_: pytest.fail("it was asked"))
    task, config, _ = read_flags(SMALL)
    alone, among_four = (count(task, config, gpus)(64) for gpus in (1, 4))
    assert alone > 110e6 * (2 + 12)
    assert among_four < alone


def test_an_answer_head_takes_memory(bert: list[str]) -> None:
    def peak(*flags: str) -> int:
        task, config, gpus = read_flags([*SMALL, *bert, *flags])
        return count(task, config, gpus)(64)

    assert peak("--task", "vqa") > peak("--task", "gqa") > peak("--task", "snli_ve")
    assert peak("--taskQA") > peak()
