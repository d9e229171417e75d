"""Fine-tuning and prediction as a user runs them, on the small scenes."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.checkpoint import load_pretrained
from engine.checkpoint.description import ModelDescription, Preprocessing, word_pieces
from engine.checkpoint.formats.original import PREFIX, write_original
from engine.checkpoint.formats.pretrained import ModelFolder, save_pretrained
from engine.checkpoint.manifest import read_manifest
from engine.checkpoint.state import open_checkpoint
from engine.configuration.bert import read_bert
from engine.configuration.parsing import parse
from engine.data.annotations.questions.file import read_questions
from engine.data.annotations.questions.vqa import VqaFile
from engine.data.loading import evaluation_loader
from engine.data.trained_on import TrainedOn
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.provenance import known_draws, tested
from engine.provenance.history import read_starts
from engine.tasks.answering import prediction
from engine.tasks.answering.scoring import AnswerCollector
from engine.tasks.vqa import PredictVqaConfig, Vqa, VqaConfig
from engine.training.loop import evaluate
from engine.training.model import build_model, describe_model
from engine.training.preflight.checks import check_weights
from engine.training.program import RECIPES
from launch.prepare import main as prepare
from tests.conftest import launch, read_metrics

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pre-training with random weights, whose answers are in another order, and one is missing."""
    bert, tokenizer = read_bert(str(scenes / "bert"))
    answers = json.loads((scenes / "vqa" / "trainval_label2ans.json").read_text())[:0:-1]
    visual = VisualShape(SHAPES["tiny"], sub_feat_num=5, pos_num=3)
    description = ModelDescription(bert.to_diff_dict(), visual, answers, word_pieces(tokenizer))
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    save_pretrained(folder, description.build().state_dict(), {}, description, "a test")
    return folder


@pytest.fixture
def vqa_flags(scenes: Path, pretrained: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def build(*more: str) -> list[str]:
        common = ["--recipe", "demo_vqa", "--data_root", str(scenes), "--bert", str(scenes / "bert")]
        common += ["--load_lxmert_qa", str(pretrained), "--num_workers", "0", "--batch_size", "4"]
        return [*common, "--sub_sampling", "true", "--output", str(tmp_path / "run"), *more]

    return build


def make_task(flags: list[str]) -> Vqa:
    config, _ = parse(VqaConfig, flags, RECIPES)
    config.check(1)
    task = Vqa(config, read_bert(config.bert)[1], ALONE)
    task.read()
    return task


# --- the stores


def test_prepared_stores_are_those_that_fine_tuning_and_prediction_open(question_files: Path) -> None:
    flags = ["--data_root", str(question_files), "--bert", str(question_files / "bert")]
    assert prepare(["annotations", *flags, "--train", "", "--valid", "", "--vqa", "train,nominival,minival,test"]) == 0
    prepared = sorted((question_files / "cache").iterdir())
    assert len(prepared) == 3
    task = make_task(["--recipe", "demo_vqa", *flags, "--train", VqaConfig.train, "--valid", VqaConfig.valid])
    assert task.validation is not None
    assert (len(task.training), len(task.validation)) == (90, 20)
    bert, tokenizer = read_bert(str(question_files / "bert"))
    description = ModelDescription.of(bert, VisualShape(SHAPES["tiny"]), task.answers, tokenizer, task.architecture)
    model = SimpleNamespace(description=description, source="a model", trained_on=None)
    for test, questions in (("minival", 20), ("test", 6)):
        config = PredictVqaConfig(test=test, data_root=str(question_files))
        assert len(prediction.read_dataset(Vqa, config, model, ALONE)) == questions  # type: ignore[arg-type]
    assert sorted((question_files / "cache").iterdir()) == prepared


def test_questions_that_are_cut_are_told_by_trainings_and_predictions(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data_root", str(scenes), "--bert", str(scenes / "bert")]
    task = make_task(["--recipe", "demo_vqa", *flags, "--max_seq_length", "5"])
    bert, tokenizer = read_bert(str(scenes / "bert"))
    description = ModelDescription.of(bert, VisualShape(SHAPES["tiny"]), task.answers, tokenizer, task.architecture)
    model = SimpleNamespace(
        description=replace(description, preprocessing=Preprocessing(max_seq_length=5)), source="", trained_on=None
    )
    prediction.read_dataset(Vqa, PredictVqaConfig(test="minival", data_root=str(scenes)), model, ALONE)  # type: ignore[arg-type]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    words = "are cut at --max_seq_length 5, which a training may raise"
    assert told[0] == f"note: train: 80 of 80 sentences (100.0%) {words}"
    assert told[1] == told[-1] == f"note: minival: 30 of 30 sentences (100.0%) {words}"
    make_task(["--recipe", "demo_vqa", *flags])
    assert "note: " not in capsys.readouterr().out


def test_a_few_images_leave_as_many_questions_to_score(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As --tiny does, with fewer images than the scenes have."""
    monkeypatch.setattr(VqaConfig, "most_images", 5)
    task = make_task(["--recipe", "demo_vqa", "--data_root", str(scenes), "--bert", str(scenes / "bert"), "--tiny"])
    assert task.validation is not None
    assert 0 < len(task.validation) < len(read_questions([VqaFile(scenes / "vqa" / "minival.json")]))
    assert [
        question.question_id for question in task.judged.questions
    ] == task.validation.sentences.question_ids.tolist()
    assert len({question.img_id for question in task.judged.questions}) == 5


# --- a run


def test_fine_tune_resume_and_predict(
    vqa_flags: Callable[..., list[str]], scenes: Path, pretrained: Path, tmp_path: Path
) -> None:
    """80 questions in batches of 4 over 2 ranks: 10 steps an epoch. Within the first, --max_steps ends the run.

    It was to have one epoch, and goes on with three: rates that have fallen rise again.
    """
    output, flags = tmp_path / "run", vqa_flags("--epochs", "3", "--keep", "1", "--sgd_lr", "0.002")
    first = launch("launch/finetune_vqa.py", [*flags, "--max_steps", "3", "--epochs", "1"], launcher="warm")
    assert first.code == 0, first.stderr[-3000:]
    assert f"{pretrained}: " in first.stdout
    assert read_manifest(output / "BEST")["epoch"] == 0.3
    for told in ("\ntrains to step 3: ", "\ndone after step 3: "):
        assert f"{told}--max_steps 3 ends it, within the 10 steps of --epochs 1\n" in first.stdout
    assert f", after epoch 0.3\nin {output}: Step000003, BEST, LAST, " in first.stdout
    refused = launch("launch/finetune_vqa.py", flags, ranks=1, launcher="warm")
    assert refused.code == 2
    assert "holds a run, up to Step000003; add --resume auto" in refused.errors[0]
    run = launch("launch/finetune_vqa.py", [*flags, "--resume", "auto"], launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert run.left == []
    longer = "AdamW's rate goes from 0.0003889 to 0.0005 at once, and falls to 0 until step 30"
    assert f"--epochs has grown from 1 to 3: {longer}; the backbone's goes on by --schedule 2\n" in run.stdout
    assert "\ntrains to step 30: --epochs 3 ends it\n" in run.stdout
    names = {path.name for path in output.iterdir()}
    assert {"BEST", "LAST", "Epoch03", "config.yaml", "metrics.jsonl"} <= names
    assert not names & {"Epoch01", "Epoch02", "Epoch03_LXRT.pth"}  # --keep 1; the original has none of these

    validations = read_metrics(output, "valid")
    assert [record["epoch"] for record in validations] == [0.3, 1, 2, 3]
    assert [record["questions"] for record in validations] == [30] * 4
    assert {"qa_loss", "score", "answer_type", "question_type"} <= set(validations[0])
    # Labels of the drawn world have one answer of score 1, so the mean over batches is the score, too.
    assert [record["qa_score"] for record in validations] == pytest.approx([record["score"] for record in validations])
    scores = [record["score"] for record in validations]
    best = read_manifest(output / "BEST")
    best_validation = validations[len(scores) - 1 - scores[::-1].index(max(scores))]
    assert (best["score"], best["epoch"]) == (max(scores), best_validation["epoch"])
    starts = read_starts(output / "run.json")
    assert [start["exit"] for start in starts] == ["finished"] * 2  # the one that was refused left no trace
    told = [start["results"]["best"] for start in starts]
    assert [(record["score"], record["epoch"]) for record in told] == [(scores[0], 0.3), (best["score"], best["epoch"])]
    assert starts[1]["data"]["answers"] == starts[0]["data"]["answers"]

    # Prediction draws the same cells as validation did, on any number of ranks.
    where = ["--load", str(output), "--test", "minival", "--data_root", str(scenes), "--num_workers", "1"]
    two = launch("launch/predict_vqa.py", [*where, "--batch_size", "7", "--top_k", "3"], launcher="warm")
    assert two.code == 0, two.stderr[-3000:]
    assert two.left == []
    assert two.stdout.count(f"{output} holds a run: its best model is taken, BEST\n") == 1
    assert "30 questions in" in two.stdout
    assert json.loads((output / "minival_score.json").read_text())["score"] == max(scores)
    predicted = json.loads((output / "minival_predict.json").read_text())
    asked = [item["question_id"] for item in json.loads((scenes / "vqa" / "minival.json").read_text())]
    assert [item["question_id"] for item in predicted] == sorted(asked)
    assert all(set(item) == {"question_id", "answer"} for item in predicted)
    ranked = json.loads((output / "minival_top_k.json").read_text())
    assert [item["answers"][0]["answer"] for item in ranked] == [item["answer"] for item in predicted]
    assert all(len(item["answers"]) == 3 for item in ranked)
    assert all(
        [a["probability"] for a in item["answers"]] == sorted((a["probability"] for a in item["answers"]), reverse=True)
        for item in ranked
    )

    # One rank, in batches of 1, 7 and 32: the same answers; another seed draws other cells.
    asked_of = {
        size: answers_of(output / "BEST", scenes, batch_size=size)
        for size in (1, 7, 32)
    }  # fmt: skip
    by_id = dict(zip(asked, asked_of[1], strict=True))
    assert [by_id[item["question_id"]] for item in predicted] == [item["answer"] for item in predicted]
    assert asked_of[1] == asked_of[7] == asked_of[32]
    assert load_pretrained(output / "LAST").loss_scale == 15


def answers_of(model: Path, scenes: Path, *, batch_size: int = 8, **more: object) -> list[str]:
    """In this process, with one rank."""
    config = PredictVqaConfig(load=str(model), test="minival", data_root=str(scenes), batch_size=batch_size, **more)  # type: ignore[arg-type]
    saved = prediction.open_model(Vqa, config, ALONE)
    dataset = prediction.read_dataset(Vqa, config, saved, ALONE)
    collector = AnswerCollector()
    batches = evaluation_loader(dataset, batch_size, num_workers=0, rank=0, world_size=1)
    evaluate(prediction.build_model(saved, config, CPU), batches, on_batch=collector.see)
    assert saved.answers is not None
    return [saved.answers[row] for row in collector.gather(len(dataset)).answers[:, 0]]


# --- where the weights come from


def test_answer_rows_go_by_their_strings(vqa_flags: Callable[..., list[str]], scenes: Path, pretrained: Path) -> None:
    task = make_task(vqa_flags())
    bert, _ = read_bert(task.config.bert)
    description = describe_model(task.config, bert, task)
    start = task.pretrained()
    model = build_model(task.config, description, start, task)
    theirs = load_pretrained(pretrained)
    rows = {answer: row for row, answer in enumerate(open_checkpoint(str(pretrained)).answers or ())}
    head, old = model.answer_head.logit_fc, theirs.answer_head.logit_fc
    assert task.answers is not None
    for row, answer in enumerate(task.answers):
        expected = old[3].weight[rows[answer]] if answer in rows else torch.zeros_like(old[3].weight[0])
        assert torch.equal(head[3].weight[row], expected)
    assert not head[3].weight[0].any()  # the answer that pre-training didn't know
    assert torch.equal(head[0].weight, old[0].weight)
    assert torch.equal(model.bert.pooler.dense.weight, theirs.bert.pooler.dense.weight)


def test_the_trunk_alone_leaves_the_head_random(vqa_flags: Callable[..., list[str]], pretrained: Path) -> None:
    task = make_task(vqa_flags("--load_lxmert_qa", "", "--load_lxmert", str(pretrained)))
    bert, _ = read_bert(task.config.bert)
    model = build_model(task.config, describe_model(task.config, bert, task), task.pretrained(), task)
    theirs = load_pretrained(pretrained)
    assert torch.equal(model.bert.pooler.dense.weight, theirs.bert.pooler.dense.weight)
    assert not torch.equal(model.answer_head.logit_fc[0].weight, theirs.answer_head.logit_fc[0].weight)


def test_the_originals_files_go_by_the_table_on_disk(
    vqa_flags: Callable[..., list[str]], damaged: Path, pretrained: Path, tmp_path: Path
) -> None:
    """Whose files don't name their answers: all_ans.json does, and has to have as many."""
    write_original(tmp_path / "Epoch11_LXRT.pth", load_pretrained(pretrained).state_dict())
    flags = vqa_flags("--data_root", str(damaged), "--load_lxmert_qa", str(tmp_path / "Epoch11"))
    with pytest.raises(UserError, match=r"an answer head of 14 rows, .*all_ans.json 15 answers"):
        make_task(flags).pretrained()
    answers = open_checkpoint(str(pretrained)).answers or []
    (damaged / "lxmert" / "all_ans.json").write_text(json.dumps([{"ans": a, "dsets": ["vqa"]} for a in answers]))
    start = make_task(flags).pretrained()
    assert start is not None
    assert start.answers == answers


def test_the_originals_vqa_model_goes_to_a_folder_and_back(pretrained: Path, scenes: Path, tmp_path: Path) -> None:
    """BEST.pth names trunk and head in its own way."""
    convert = ["--from", "lxrt", str(tmp_path / "BEST.pth"), "--bert", str(scenes / "bert")]
    table = str(scenes / "vqa" / "trainval_label2ans.json")
    state = load_pretrained(pretrained).state_dict()
    state = {key: tensor for key, tensor in state.items() if not key.startswith("cls.")}
    state["answer_head.logit_fc.3.weight"] = torch.randn(15, 64)
    state["answer_head.logit_fc.3.bias"] = torch.randn(15)
    write_original(tmp_path / "BEST.pth", state, architecture="question_answering")
    written = torch.load(tmp_path / "BEST.pth", weights_only=True)
    assert {f"{PREFIX}logit_fc.3.weight", f"{PREFIX}lxrt_encoder.model.bert.pooler.dense.weight"} <= set(written)
    assert len(written) == len(state)

    config = PredictVqaConfig(load=str(tmp_path / "BEST"), test="minival", data_root=str(scenes))
    with pytest.raises(UserError, match=r"doesn't say what its answers and words are; python launch/convert\.py"):
        prediction.open_model(Vqa, config, ALONE)
    folder = ["--answers", table, "--to", "safetensors", str(tmp_path / "folder")]
    run = launch("launch/convert.py", [*convert, *folder], ranks=1, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    back = load_pretrained(tmp_path / "folder").state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    config.load = str(tmp_path / "folder")
    # Its file doesn't say how large the images were, and this tiny model's position tables are too small for the usual.
    with pytest.raises(UserError, match="a 384 x 640 image has a grid of 12 x 20 cells, the position tables have 3"):
        prediction.open_model(Vqa, config, ALONE)


# --- what is refused before the work starts


@pytest.fixture
def model(pretrained: Path, scenes: Path, tmp_path: Path) -> Path:
    """A fine-tuned model with random weights."""
    read = open_checkpoint(str(pretrained)).description  # type: ignore[attr-defined]
    answers = json.loads((scenes / "vqa" / "trainval_label2ans.json").read_text())
    values = {**read.to_dict(), "answers": answers, "architecture": "question_answering"}
    values["preprocessing"] = {"max_seq_length": 14, "image_size_min": 64, "image_size_max": 96}
    description = ModelDescription.from_dict(values, "a test")
    save_pretrained(tmp_path / "model", description.build().state_dict(), {}, description, "a test")
    return tmp_path / "model"


def test_another_seed_draws_other_cells_and_none_need_be_drawn(model: Path, scenes: Path) -> None:
    def scores(**more: object) -> list[str]:
        return answers_of(model, scenes, **more)

    torch.manual_seed(0)
    assert scores() == scores()
    whole = scores(sub_sampling_in_evaluation=False)
    assert whole == scores(sub_sampling_in_evaluation=False, seed=7)


def predict(model: Path, data_root: Path, **more: object) -> None:
    config = PredictVqaConfig(load=str(model), **{"test": "minival", "data_root": str(data_root), **more})  # type: ignore[arg-type]
    config.check()
    prediction.predict(Vqa, config, prediction.open_model(Vqa, config, ALONE), ALONE, CPU)


def edit(path: Path, change: Callable[[list[dict]], object]) -> None:
    items = json.loads(path.read_text())
    change(items)
    path.write_text(json.dumps(items))


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (lambda root: None, {"test": "mnival"}, r"mnival\.json is missing; .* holds minival, train"),
        (lambda root: (root / "mscoco/val2014").rename(root / "gone"), {}, "can't be read"),
        (
            lambda root: next((root / "mscoco" / "val2014").iterdir()).unlink(),
            {},
            "1 of 15 images of minival are not in",
        ),
        (
            lambda root: edit(root / "vqa/minival.json", lambda items: items.append(items[0])),
            {},
            "1 question ids of minival occur more than once, the first is 1000000000",
        ),
        (
            lambda root: edit(root / "vqa/trainval_label2ans.json", lambda items: items.pop()),
            {},
            "trainval_ans2label.json and .*trainval_label2ans.json disagree",
        ),
        (
            lambda root: (
                (root / "vqa/trainval_ans2label.json").unlink(),
                edit(root / "vqa/trainval_label2ans.json", lambda items: items.pop()),
            ),
            {},
            "has 14 answers, which are not the 15 of",
        ),
        (lambda root: (root / "vqa/minival.json").write_text("[]"), {}, "there is no question"),
        (lambda root: (root / "vqa/minival.json").write_text('[{"question_id": 1'), {}, "line 1, column"),
        (lambda root: (root / "file").write_text(""), {"output": "FILE"}, "can't be written"),
        (lambda root: None, {"human_answers": "gone.json"}, "gone.json is missing"),
    ],
    ids=[
        *("split", "folder", "image", "twice", "lists", "answers", "empty", "broken", "output", "human_answers"),
    ],
)
def test_bad_input_of_a_prediction_is_told_before_it_starts(
    model: Path,
    damaged: Path,
    change: Callable[[Path], object],
    more: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prediction, "join", lambda ranks: pytest.fail("the work started"))
    change(damaged)
    more = {name: str(damaged / "file" / "below") if value == "FILE" else value for name, value in more.items()}
    with pytest.raises(UserError, match=message):
        predict(model, damaged, **more)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"test": None}, "either --test SPLIT or --question TEXT --image FILE"),
        ({"question": "what ?"}, "either --test SPLIT or --question"),
        ({"test": None, "question": "what ?"}, "--question and --image go together"),
        ({"load": ""}, "which model"),
        ({"top_k": 0}, "--top_k 0: at least 1"),
        ({"batch_size": 0}, "--batch_size 0: at least 1"),
    ],
)
def test_flags_that_contradict_each_other(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictVqaConfig(**{"load": "x", "test": "minival", **values}).check()  # type: ignore[arg-type]


def test_what_was_trained_on_is_predicted_and_not_scored(
    vqa_flags: Callable[..., list[str]],
    model: Path,
    damaged: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ten human answers in the file are as good as labels to score by."""

    class StartedError(Exception):
        pass

    def start(meeting: object) -> None:
        raise StartedError

    seen = TrainedOn.of(make_task(vqa_flags("--data_root", str(damaged), "--train", "minival")).training.split)
    monkeypatch.setattr(ModelFolder, "trained_on", seen)
    monkeypatch.setattr(prediction, "join", start)
    with pytest.raises(UserError, match=r"^(\d+) of \1 questions and .* images of minival were trained on, so a score"):
        predict(model, damaged)
    with pytest.raises(StartedError):
        predict(model, damaged, allow_trained_on=True)
    assert "note:" not in capsys.readouterr().out
    edit(damaged / "vqa" / "minival.json", lambda items: [item.pop("label") for item in items])
    with pytest.raises(StartedError):
        predict(model, damaged)
    note = r"^note: (\d+) of \1 questions and .* images of minival were trained on$"
    assert re.search(note, capsys.readouterr().out, re.MULTILINE)
    edit(damaged / "vqa" / "minival.json", lambda items: [item.update(answers=["red"] * 10) for item in items])
    with pytest.raises(UserError, match="were trained on, so a score"):
        predict(model, damaged)


def test_a_prediction_looks_at_its_libraries_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SimpleNamespace(description=SimpleNamespace(visual=VisualShape(SHAPES["tiny"], sub_feat_num=4)))
    monkeypatch.setattr(prediction, "open_model", lambda *_: model)
    monkeypatch.setattr(tested, "TESTED", {"torch": ("1", "1.9")})
    monkeypatch.setattr(known_draws, "sample_cells", lambda *_: (torch.arange(8)[None], None))
    with pytest.raises(UserError, match=r"^torch .* gives \[0, 1, 2, .*\] for the drawn cells of 240, where"):
        prediction.run(Vqa, PredictVqaConfig(load="x", test="minival"), ALONE)
    assert capsys.readouterr().out.endswith(" is newer than 1.9, the newest that was tested\n")


def test_a_prediction_in_fp16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="--fp16 needs a GPU"):
        prediction.run(Vqa, PredictVqaConfig(load="x", test="minival", fp16=True), ALONE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load", "snap/x"], "--load and --load_lxmert_qa exclude each other"),
        (["--fromScratch"], "--load_lxmert_qa and --fromScratch exclude each other"),
        (["--loss_scale", "0"], "--loss_scale 0.0: a number above 0"),
        (["--valid", "minivla"], r"minivla\.json is missing; .* holds minival, train"),
        (["--train", "train,train"], "80 question ids of train,train occur more than once"),
        (["--valid", "", "--human_answers", "x.json"], "--human_answers are for the validation"),
    ],
)
def test_bad_input_of_a_fine_tuning(vqa_flags: Callable[..., list[str]], flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_task(vqa_flags(*flags))


def test_validation_on_what_was_trained_on_needs_a_flag(
    vqa_flags: Callable[..., list[str]], scenes: Path, model: Path
) -> None:
    task = make_task(vqa_flags("--valid", "train"))
    seen = TrainedOn.of(task.training.split)
    with pytest.raises(UserError, match="80 of 80 questions and 40 of 40 images of train were trained on"):
        task.check_start(seen)
    make_task(vqa_flags("--valid", "train", "--allow_trained_on")).check_start(seen)
    make_task(vqa_flags()).check_start(seen)


def test_a_fine_tuned_model_with_other_answers_is_refused(
    vqa_flags: Callable[..., list[str]], damaged: Path, model: Path
) -> None:
    (damaged / "vqa" / "trainval_ans2label.json").unlink()
    edit(damaged / "vqa" / "trainval_label2ans.json", lambda items: items.reverse())
    task = make_task(vqa_flags("--data_root", str(damaged), "--load_lxmert_qa", "", "--load", str(model)))
    with pytest.raises(UserError, match="answers with 15 answers that are not the 15 of"):
        task.check_answers(open_checkpoint(str(model)))


def test_a_model_without_optimisers_is_told_before_it_starts(
    vqa_flags: Callable[..., list[str]], model: Path, tmp_path: Path
) -> None:
    """The folder of a run stands for its BEST, which has weights alone."""
    (tmp_path / "earlier").mkdir()
    model.rename(tmp_path / "earlier" / "BEST")
    load = ["--load_lxmert_qa", "", "--load", str(tmp_path / "earlier")]
    for flags, message in (
        ([], r"--load .*earlier/BEST holds weights alone, .*; add --not_load_adam_optimizer --not_load_scheduler, or"),
        (["--not_load_scheduler"], "holds weights alone"),
        (["--not_load_scheduler", "--not_load_adam_optimizer"], None),
    ):
        task = make_task(vqa_flags(*load, *flags))
        description = describe_model(task.config, read_bert(task.config.bert)[0], task)
        with pytest.raises(UserError, match=message) if message else nullcontext():
            check_weights(task.config, task, description, tmp_path)


def test_a_model_of_pretraining_answers_no_questions(pretrained: Path, scenes: Path) -> None:
    with pytest.raises(
        UserError, match=r"model of pretraining; fine-tune it first, with python launch/finetune\.py --task vqa"
    ):
        predict(pretrained, scenes)


def test_one_question_in_the_terminal(model: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((scenes / "mscoco" / "val2014").iterdir())
    config = PredictVqaConfig(load=str(model), question="what color is the ring ?", image=str(image), top_k=4)
    prediction.answer_one(Vqa, config, prediction.open_model(Vqa, config, ALONE), CPU)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    probabilities = [float(line.split()[0]) for line in lines]
    assert probabilities == sorted(probabilities, reverse=True)
    config.image = str(scenes / "bert" / "vocab.txt")
    with pytest.raises(UserError, match=r"--image .*vocab\.txt can't be read"):
        prediction.answer_one(Vqa, config, prediction.open_model(Vqa, config, ALONE), CPU)


def test_a_damaged_model_is_named(model: Path, scenes: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        predict(model, scenes)
    shutil.rmtree(model)
    with pytest.raises(UserError, match=r"there is no folder .*model with manifest"):
        predict(model, scenes)
