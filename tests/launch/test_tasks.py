"""GQA and visual entailment as a user runs them, on the small scenes: fine-tuned, resumed, predicted, handed in."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_pretrained
from engine.checkpoint.formats.original import write_original
from engine.checkpoint.manifest import complete_checkpoints, read_manifest
from engine.conversion.convert import convert
from engine.conversion.flags import parse_conversion
from engine.data.annotations.questions.named import QUESTION_FILES
from engine.data.annotations.questions.snli_ve import LABELS
from engine.data.preparation import QuestionFilesConfig
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.provenance.results import TIMES
from engine.tasks.answering import prediction
from engine.tasks.answering.flags import PredictConfig
from engine.tasks.named import TASKS, picked_task
from tests.conftest import launch, read_metrics

OFFICIAL = "gqa/questions1.2"


@pytest.fixture
def run(scenes: Path, tmp_path: Path) -> Callable[..., str]:
    """Start a program on one rank, see it end well, and get what it printed."""

    def start(program: str, task: str, *flags: str) -> str:
        found = launch(f"launch/{program}.py", ["--task", task, *flags], ranks=1, launcher="warm")
        assert found.code == 0, found.stderr[-3000:]
        return found.stdout

    return start


def flags_of(task: str, scenes: Path, output: Path) -> list[str]:
    common = ["--recipe", f"demo_{task}", "--data_root", str(scenes), "--bert", str(scenes / "bert"), "--fromScratch"]
    return [*common, "--load_lxmert_qa", "", "--load_lxmert", "", "--num_workers", "0", "--output", str(output)]


def test_gqa_from_fine_tuning_to_the_leaderboards_file(run: Callable[..., str], scenes: Path, tmp_path: Path) -> None:
    """80 questions in batches of 32, two epochs with a stop between them; testdev has 30 questions of 15 scenes."""
    output = tmp_path / "run"
    flags = flags_of("gqa", scenes, output)
    official = ["--official_questions", f"{scenes}/{OFFICIAL}/testdev_balanced_questions.json"]
    run("finetune", "gqa", *flags, *official, "--stop_after_epoch", "1")
    told = run("finetune", "gqa", *flags, *official, "--resume", "auto")
    assert "next: python launch/predict.py --task gqa" in told
    assert "--test submit" in told
    validations = read_metrics(output, "valid")
    assert [record["epoch"] for record in validations] == [1, 2]
    assert all(record["questions"] == 30 for record in validations)
    assert all(record["official"]["accuracy"] == record["score"] for record in validations)

    where = ["--load", str(output / "BEST"), "--data_root", str(scenes), "--num_workers", "0"]
    choices = ["--official_choices", f"{scenes}/{OFFICIAL}/testdev_choices.json"]
    told = run("predict", "gqa", *where, "--test", "testdev", *official, *choices, "--top_k", "2")
    assert "official measures" in told
    score = json.loads((output / "testdev_score.json").read_text())
    assert score["score"] == max(record["score"] for record in validations)
    asked = json.loads((scenes / OFFICIAL / "testdev_balanced_questions.json").read_text())
    # As GQA's evaluation loads the file: a mapping by id, which has to hold every balanced question.
    written = json.loads((output / "testdev_predict.json").read_text())
    assert all(set(entry) == {"questionId", "prediction"} for entry in written)
    predictions = {entry["questionId"]: entry["prediction"] for entry in written}
    assert predictions.keys() == asked.keys()
    assert len(written) == len(asked)
    right = [predictions[number] == question["answer"] for number, question in asked.items()]
    assert score["official"]["accuracy"] == pytest.approx(sum(right) / len(right))
    valid = json.loads((scenes / OFFICIAL / "testdev_choices.json").read_text())
    among = [predictions[number] in valid[number]["valid"] for number in asked]
    assert score["official"]["validity"] == pytest.approx(sum(among) / len(among))

    run("predict", "gqa", *where, "--test", "submit", "--output", str(tmp_path / "handed_in"))
    handed_in = json.loads((tmp_path / "handed_in" / "submit_predict.json").read_text())
    assert handed_in == written  # the drawn world's questions to hand in are those of testdev
    assert not (tmp_path / "handed_in" / "submit_score.json").exists()


def test_visual_entailment_from_fine_tuning_to_one_hypothesis(
    run: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    told = run("finetune", "snli_ve", *flags_of("snli_ve", scenes, output), "--epochs", "1")
    assert "next: python launch/predict.py --task snli_ve" in told
    model = load_pretrained(output / "BEST")
    assert json.loads((output / "BEST" / "config.json").read_text())["answers"] == list(LABELS)
    assert model.answer_head.logit_fc[3].out_features == 3
    [validation] = read_metrics(output, "valid")
    assert sum(sum(row.values()) for row in validation["confusion"].values()) == validation["questions"] == 21
    # Its loss is the mean cross entropy: about that of three labels that are alike, as nothing has been learnt yet.
    assert 0.5 < validation["qa_loss"] / math.log(3) < 2

    where = ["--load", str(output / "BEST"), "--data_root", str(scenes)]
    told = run("predict", "snli_ve", *where, "--test", "test", "--num_workers", "0", "--top_k", "3")
    assert "contradiction" in told
    lines = (scenes / "snli_ve" / "snli_ve_test.jsonl").read_text().splitlines()
    pairs = {line["pairID"]: line["gold_label"] for line in map(json.loads, lines)}
    written = {entry["pairID"]: entry["prediction"] for entry in json.loads((output / "test_predict.json").read_text())}
    assert written.keys() == pairs.keys()
    score = json.loads((output / "test_score.json").read_text())
    assert score["score"] == pytest.approx(sum(written[pair] == label for pair, label in pairs.items()) / len(pairs))
    ranked = json.loads((output / "test_top_k.json").read_text())
    for entry in ranked:  # shares of one; six decimals are written of each
        assert sum(answer["probability"] for answer in entry["answers"]) == pytest.approx(1, abs=2e-6)

    image = next((scenes / "flickr30k" / "flickr30k_images").iterdir())
    told = run("predict", "snli_ve", *where, "--question", "A RING .", "--image", str(image))
    shares = dict(reversed(line.split()) for line in told.splitlines() if line[:1].isdigit())
    assert shares.keys() == set(LABELS)
    assert sum(map(float, shares.values())) == pytest.approx(1, abs=2e-3)


def test_the_originals_entailment_model_becomes_a_folder_by_its_label_order(
    run: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run("finetune", "snli_ve", *flags_of("snli_ve", scenes, output), "--max_steps", "1")
    state = load_pretrained(output).state_dict()  # BEST
    write_original(tmp_path / "BEST.pth", state, architecture="question_answering")
    config = PredictConfig(load=str(tmp_path / "BEST"), test="dev", data_root=str(scenes))
    with pytest.raises(UserError, match=r"safetensors FOLDER --label_order entailment,neutral,contradiction \(or in"):
        prediction.open_model(TASKS["snli_ve"], config, ALONE)
    source = ["--from", "lxrt", str(tmp_path / "BEST.pth"), "--bert", str(scenes / "bert"), "--sub_feat_num", "0"]
    target = ["--to", "safetensors", str(tmp_path / "folder")]
    for flags, message in (
        ((), "or the labels of visual entailment with --label_order"),
        (("--label_order", "yes,no"), "--label_order yes,no: entailment, neutral, contradiction are needed"),
        (("--label_order", ",".join(LABELS), "--answers", "x"), "--answers and --label_order both say"),
    ):
        with pytest.raises(UserError, match=message):
            convert(parse_conversion([*source, *target, *flags]))
    order = ["contradiction", "neutral", "entailment"]
    convert(parse_conversion([*source, *target, "--label_order", ",".join(order)]))
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["answers"] == order
    assert torch.equal(
        load_pretrained(tmp_path / "folder").answer_head.logit_fc[3].weight, state["answer_head.logit_fc.3.weight"]
    )


# --- what is refused


@pytest.mark.parametrize("change", ["cut", "gone", "other"])
def test_broken_files_of_a_task_are_one_line(damaged: Path, tmp_path: Path, change: str) -> None:
    train = damaged / "snli_ve" / "snli_ve_train.jsonl"
    if change == "cut":
        train.write_bytes(train.read_bytes()[:-20])
    elif change == "gone":
        train.unlink()
    else:
        train.write_text(train.read_text().replace('"gold_label": "neutral"', '"gold_label": "undecided"', 1))
    refused = launch(
        "launch/finetune.py",
        ["--task", "snli_ve", *flags_of("snli_ve", damaged, tmp_path / "run")],
        ranks=1,
        launcher="warm",
    )
    assert refused.code == 2
    expected = {
        "cut": f"{train}, line 120, column",
        "gone": f"{train} is missing; {damaged}/snli_ve holds dev, test.",
        "other": "the gold_label 'undecided' is none of entailment, neutral, contradiction",
    }
    assert expected[change] in refused.errors[0]
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_task_and_other_official_files_are_refused(
    run: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    flags = [*flags_of("snli_ve", scenes, tmp_path / "run"), "--max_steps", "1"]
    run("finetune", "snli_ve", *flags)
    model = str(tmp_path / "run" / "LAST")
    assert_validated_once(run, flags, tmp_path / "run")
    config = PredictConfig(load=model, test="testdev", data_root=str(scenes))
    with pytest.raises(UserError, match=r"answers, which are not the 3 of .*give a model of --task gqa"):
        prediction.open_model(TASKS["gqa"], config, ALONE)
    gqa = TASKS["gqa"]
    questions = scenes / OFFICIAL / "val_balanced_questions.json"
    config = gqa.predict_class(load=model, test="testdev", official_questions=str(questions))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"balanced questions of .*val_balanced_questions\.json have no prediction"):
        gqa.scorer(config, list(gqa.files(scenes / "gqa" / "testdev.json").questions()), ())


def assert_validated_once(run: Callable[..., str], flags: list[str], output: Path) -> None:
    """A run that --max_steps has ended within an epoch; and again, as if it had been killed in its last validation."""
    told = read_metrics(output, "valid")
    assert [(record["step"], 0 < record["epoch"] < 1) for record in told] == [(1, True)]
    metrics = (output / "metrics.jsonl").read_text()
    saved = (output / "BEST").stat().st_mtime_ns
    run("finetune", "snli_ve", *flags, "--resume", "auto")
    assert (output / "metrics.jsonl").read_text() == metrics
    assert (output / "BEST").stat().st_mtime_ns == saved
    for name in ("BEST", "LAST"):
        shutil.rmtree(output / name)
    (output / "metrics.jsonl").write_text(metrics[:-10])
    run("finetune", "snli_ve", *flags, "--resume", "auto")
    again = read_metrics(output, "valid")
    assert [record | {name: told[0][name] for name in TIMES} for record in again] == told
    assert read_manifest(output / "BEST")["score"] == told[0]["score"]
    assert {path.name for path in complete_checkpoints(output)} == {"Step000001"}


def test_a_task_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert picked_task(["--local_rank=0", "--task", "gqa", "--lr", "1"], "") == (
        TASKS["gqa"],
        ["--local_rank=0", "--lr", "1"],
    )
    with pytest.raises(SystemExit):
        picked_task(["--help"], "how it is used")
    assert f"how it is used\nThe tasks: {', '.join(TASKS)}." in capsys.readouterr().out


def test_a_task_is_known_by_one_name_everywhere() -> None:
    """finetune.py and predict.py, prepare.py's files, prepare.py's flags."""
    flags = {field.name for field in fields(QuestionFilesConfig)}
    assert list(TASKS) == list(QUESTION_FILES)
    assert set(TASKS) <= flags
    assert all(task.files is QUESTION_FILES[name] for name, task in TASKS.items())
