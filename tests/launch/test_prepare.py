"""launch/prepare.py: each command on the small scenes, and what a user can get wrong. In this process, but for one."""

import json
import shlex
import shutil

import pytest
from PIL import Image

from engine.commands import program_name
from engine.data.images.folder import SIZES_FILE
from engine.data.images.places import image_path
from launch.prepare import main
from tests.conftest import launch, small_tmpfs

TRAIN = ["--train", "mscoco_train", "--valid", "mscoco_minival"]
VQA = ["--vqa", "train,nominival,minival,test"]
VQA_ALONE = ["--train", "", "--valid", "", *VQA]
TEST_IMAGE = "COCO_test2015_000000000001"


def prepare(command, root, *flags, code=0):
    """Run a command and give its summary."""
    summary = root / "summary.json"
    assert main([command, "--data_root", str(root), "--json", str(summary), *flags]) == code
    return json.loads(summary.read_text())


def verify(root, *flags, code=0):
    return prepare("verify", root, "--bert", str(root / "bert"), *TRAIN, *flags, code=code)


def error_of(capsys, *argv):
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"{program_name()} {argv[0]}: error: ")
    return lines[-1]


def first_image(root):
    return sorted((root / "mscoco" / "train2014").glob("*.jpg"))[0]


def change_items(root, change, name="lxmert/mscoco_train"):
    path = root / f"{name}.json"
    items = json.loads(path.read_text())
    change(items)
    path.write_text(json.dumps(items))


# --- annotations


def test_stores_are_those_that_a_training_opens(damaged):
    stores = prepare("annotations", damaged, "--bert", str(damaged / "bert"), *TRAIN)["stores"]
    assert (stores["mscoco_train"]["sentences"], stores["mscoco_minival"]["sentences"]) == (160, 60)
    files = {path.name: path.stat().st_mtime_ns for path in (damaged / "cache").iterdir()}
    assert len(files) == 2
    verify(damaged, "--decode", "false")
    assert {path.name: path.stat().st_mtime_ns for path in (damaged / "cache").glob("*.store")} == files
    verify(damaged, "--decode", "false", "--do_lower_case", "false")  # other words
    assert len(list((damaged / "cache").glob("*.store"))) == 4


def test_stores_of_vqa_are_built_beside_those_of_pre_training_or_alone(question_files):
    flags = ["--bert", str(question_files / "bert")]
    stores = prepare("annotations", question_files, *flags, *TRAIN, "--vqa", "test,nominival,minival,train")["stores"]
    counts = {name: (found["sentences"], found["images"]) for name, found in stores.items()}
    of_vqa = {"vqa/train,nominival": (90, 45), "vqa/test": (6, 3), "vqa/minival": (20, 10)}
    assert counts == {"mscoco_train": (160, 40), "mscoco_minival": (60, 15), **of_vqa}
    assert len(list((question_files / "cache").iterdir())) == 5
    (question_files / "lxmert" / "all_ans.json").unlink()  # which VQA doesn't need
    assert set(prepare("annotations", question_files, *flags, *VQA_ALONE)["stores"]) == set(of_vqa)
    assert len(list((question_files / "cache").iterdir())) == 5


# --- sizes


def test_sizes_are_written_in_the_originals_format(damaged):
    recorded = json.loads((damaged / SIZES_FILE).read_text())
    (damaged / SIZES_FILE).unlink()
    assert prepare("sizes", damaged)["images"] == 3 * len(recorded)  # GQA and Flickr30k show them, too
    assert json.loads((damaged / SIZES_FILE).read_text()) == recorded


def test_sizes_are_completed(damaged):
    recorded = json.loads((damaged / SIZES_FILE).read_text())
    first, second = sorted(recorded)[:2]
    part = {**recorded, first: [5, 7]}  # taken over: whoever has it from the original's authors may trust it
    del part[second]
    (damaged / SIZES_FILE).write_text(json.dumps(part))
    prepare("sizes", damaged)
    assert json.loads((damaged / SIZES_FILE).read_text()) == {**recorded, first: [5, 7]}


def test_unreadable_images_have_no_size_and_are_told(damaged):
    (damaged / SIZES_FILE).unlink()
    first_image(damaged).write_bytes(b"no image")
    summary = prepare("sizes", damaged, code=1)
    assert summary["problems"] == [f"{first_image(damaged)} is unreadable"]
    assert len(json.loads((damaged / SIZES_FILE).read_text())) == 54
    assert summary["images"] == 54 + 2 * 55  # GQA's and Flickr30k's


def test_a_folder_without_images_is_told(tmp_path, capsys):
    assert "there is no image in" in error_of(capsys, "sizes", "--data_root", str(tmp_path))


# --- answers


def test_answers_are_those_that_occur_often_enough(tmp_path):
    (tmp_path / "lxmert").mkdir()
    item = {
        "img_id": "1",
        "sentf": {"vqa": ["a", "b", "c"], "gqa": ["d"], "mscoco": ["e"]},
        "labelf": {"vqa": [{"The man": 1, "man": 0.3}, {"man.": 1}, {"two": 0.6, "yes": 1}], "gqa": [{"2": 1.0}]},
    }
    (tmp_path / "lxmert" / "a.json").write_text(json.dumps([item]))
    flags = ["--train", "a", "--valid", "", "--min_count", "2"]
    summary = prepare("answers", tmp_path, *flags)
    assert json.loads((tmp_path / "lxmert" / "all_ans.json").read_text()) == [
        {"ans": "2", "dsets": ["gqa", "vqa"]},
        {"ans": "man", "dsets": ["vqa"]},
    ]
    assert (summary["answers"], summary["different_answers"], summary["questions"]) == (2, 3, 4)
    assert summary["questions_with_these_answers"] == 4


def test_an_answer_table_is_not_replaced_unasked(damaged, capsys):
    before = (damaged / "lxmert" / "all_ans.json").read_bytes()
    flags = ["answers", "--data_root", str(damaged), *TRAIN]
    assert "all_ans.json is there already" in error_of(capsys, *flags)
    assert (damaged / "lxmert" / "all_ans.json").read_bytes() == before
    assert main([*flags, "--force"]) == 0
    assert (damaged / "lxmert" / "all_ans.json").read_bytes() != before


def test_too_rare_answers_are_told(damaged, capsys):
    flags = ["--data_root", str(damaged), *TRAIN, "--force", "--min_count", "1000"]
    assert "lower --min_count" in error_of(capsys, "answers", *flags)


def test_files_without_questions_make_no_answer_table(damaged, capsys):
    change_items(damaged, only_captions)
    told = error_of(capsys, "answers", "--data_root", str(damaged), "--train", "mscoco_train", "--force")
    assert told.endswith("no question of mscoco_train has an answer; pre-training needs a table with --taskQA alone")


@pytest.mark.parametrize("task", ["vqa", "gqa"])
def test_a_task_gets_the_list_of_its_answers_by_the_command_that_its_error_names(damaged, capsys, task):
    folder = damaged / "my task" / task
    items = [{"answers": ["Yes", "two"]}] * 9 + [{"answers": ["no"]}] * 10 + [{"answers": ["rare"]}, {"answers": []}]
    items = [
        {"question_id": f"q{n}", "img_id": "1", "sent": "Is it?", "label": dict.fromkeys(item["answers"], 1.0)}
        for n, item in enumerate(items)
    ]
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps(items))
    (folder / "test.json").write_text(json.dumps([{"question_id": "q", "img_id": "1", "sent": "What?"}]))
    files = ["--train", "", f"--{task}", "train,test"]
    told = error_of(capsys, "verify", "--data_root", str(folder.parent), *files, "--valid", "")
    assert f"{folder / 'trainval_label2ans.json'} is missing, the list of the answers that a model can give; " in told
    words = shlex.split(told.split("`")[1])
    argv = words[words.index("answers") :]
    assert argv == ["answers", "--task", task, "--data_root", str(folder.parent), "--train", "train,test"]

    assert main(argv) == 0
    assert "3 of 4 answers, each of at least 9 questions; 19 of 20 questions (95.0%) have" in capsys.readouterr().out
    assert json.loads((folder / "trainval_label2ans.json").read_text()) == ["no", "Yes", "two"]
    assert json.loads((folder / "trainval_ans2label.json").read_text()) == {"no": 0, "Yes": 1, "two": 2}
    more = ["--task", task, "--min_count", "1"]
    assert "trainval_label2ans.json is there already" in error_of(capsys, "answers", *argv[3:], *more)
    summary = prepare("answers", folder.parent, *more, "--force")
    assert (summary["answers"], summary["different_answers"]) == (4, 4)
    assert (summary["questions"], summary["questions_with_these_answers"]) == (20, 20)
    assert json.loads((folder / "trainval_ans2label.json").read_text())["rare"] == 3


# --- images


def test_images_go_to_a_store_that_verifies(damaged):
    summary = prepare("images", damaged, *TRAIN, "--workers", "0")
    assert (summary["written"], summary["there_already"], summary["problems"]) == (55, 0, [])
    assert prepare("images", damaged, *TRAIN, "--workers", "0")["there_already"] == 55
    shutil.rmtree(damaged / "mscoco" / "train2014")
    found = verify(damaged, "--image_store", str(damaged / "images.lmdb"))
    assert found["images"] == {"images": 55, "missing": 0, "unreadable": 0, "other_size": 0, "decoded_before": 0}


def test_images_of_vqa_join_those_of_pre_training_each_once(question_files):
    flags = [*TRAIN, *VQA, "--workers", "0"]
    assert prepare("images", question_files, *flags)["written"] == 55 + 3
    (question_files / image_path(TEST_IMAGE)).unlink()
    assert prepare("images", question_files, *flags)["there_already"] == 58
    store = question_files / "vqa.lmdb"
    flags = ["--train", "", "--valid", "", "--vqa", "minival,test", "--image_store", str(store), "--workers", "0"]
    summary = prepare("images", question_files, *flags, code=1)
    assert summary["written"] == 10 + 2
    assert len(summary["problems"]) == 1
    assert summary["problems"][0].startswith(f"{question_files / image_path(TEST_IMAGE)}: ")


def test_resized_images_of_several_processes(damaged):
    """As a program of its own: its processes import launch/prepare.py again."""
    store = damaged / "small.lmdb"
    flags = ["images", "--data_root", str(damaged), *TRAIN, "--resize", "48x80", "--image_store", str(store)]
    run = launch("launch/prepare.py", [*flags, "--workers", "2"], launcher="python")
    assert run.code == 0, run.stderr
    assert "55 images written" in run.stdout
    found = verify(damaged, "--image_store", str(store), "--image_size_min", "48", "--image_size_max", "80")
    assert found["images"]["unreadable"] == 0


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--resize", "384"], "--resize 384: short and long side are needed, as in 384x640"),
        (["--resize", "640x384"], "the short side comes first"),
        (["--resize", "384x640", "--quality", "0"], "--quality 0"),
        (["--workers", "-1"], "--workers -1"),
    ],
    ids=["one_side", "order", "quality", "workers"],
)
def test_bad_image_flags_are_told(damaged, capsys, flags, part):
    assert part in error_of(capsys, "images", "--data_root", str(damaged), *TRAIN, *flags)


# --- verify


def test_a_sound_data_set_has_no_problems(damaged):
    found = verify(damaged)
    assert found["problems"] == []
    assert found["splits"]["mscoco_train"] == {
        **{"sentences": 160, "questions": 80, "images": 40, "repeated_sentences": 0},
        "sources": {"mscoco_train": {"mscoco": 80, "vqa": 80}},
    }
    assert found["images"]["images"] == 55
    assert found["estimates"]["images_per_second"] > 0
    assert found["estimates"]["shm_mb_for_batches"] > 1000  # 32 workers of the real recipe


def test_words_that_a_training_would_lose_are_told_and_are_no_problem(damaged, capsys):
    change_items(damaged, lambda items: items[0]["sentf"]["mscoco"].__setitem__(0, "a zebra"))
    assert verify(damaged, "--decode", "false")["problems"] == []
    told = capsys.readouterr().out
    assert "note: mscoco_train: 1 of " in told
    assert "word pieces (0.1%) are unknown to the vocabulary ([UNK])" in told
    assert "note: mscoco_minival" not in told
    verify(damaged, "--decode", "false", "--max_seq_length", "3")
    assert "sentences (100.0%) are cut at --max_seq_length 3" in capsys.readouterr().out


def test_every_kind_of_problem_is_found(damaged):
    images = sorted((damaged / "mscoco" / "train2014").glob("*.jpg"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-200])
    Image.new("RGB", (30, 40)).save(images[2])
    change_items(damaged, lambda items: items.append(items[5]))
    found = verify(damaged, code=1)
    told = "\n".join(found["problems"])
    assert f"{images[0].stem} (looked for {images[0]} and {damaged}/images/{images[0].name}, with any" in told
    assert f" is not in the image folders of {damaged}" in told
    assert f"{images[1]}: " in told
    assert f"{images[2]} has 30 x 40 pixels, recorded are" in told
    assert f"mscoco_train: 4 sentences have the uid of another one, such as {images[5].stem}_mscoco_000" in told
    assert len(found["problems"]) == 4
    assert found["splits"]["mscoco_train"]["repeated_sentences"] == 4
    assert (found["images"]["missing"], found["images"]["unreadable"], found["images"]["other_size"]) == (1, 1, 1)


def only_captions(items):
    """No questions are left of LXMERT's items."""
    for item in items:
        item["sentf"].pop("vqa", None)
        item.pop("labelf", None)


def test_without_an_answer_table_questions_are_told_and_captions_not(damaged, capsys):
    (damaged / "lxmert" / "all_ans.json").unlink()
    change_items(damaged, only_captions)
    assert verify(damaged, "--decode", "false")["problems"] == []
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert told.startswith("note: mscoco_minival has 30 questions, and there is no answer table: a training reads them")
    assert "answers` makes" in told


def test_photos_of_ones_own_are_found_by_every_command(question_files, capsys):
    """In the folder `images`, by ids with and without a suffix, which isn't that of the file."""
    photo = first_image(question_files)
    (question_files / "images").mkdir()
    photo.rename(question_files / "images" / "IMG_0001.JPG")
    for name, img_id in {"lxmert/mscoco_train": "IMG_0001.jpg", "vqa/train": "IMG_0001"}.items():
        file = question_files / f"{name}.json"
        file.write_text(file.read_text().replace(f'"{photo.stem}"', f'"{img_id}"'))
    found = verify(question_files, *VQA)
    assert found["problems"] == []
    assert found["images"]["images"] == 59  # of 58 photos: one has two ids
    main(["inspect", "mscoco_train", "--data_root", str(question_files), "--bert", str(question_files / "bert")])
    assert "missing 0, unreadable 0" in capsys.readouterr().out
    assert prepare("images", question_files, *TRAIN, "--workers", "0")["written"] == 55
    (question_files / "images").rename(question_files / "elsewhere")
    store = ["--image_store", str(question_files / "images.lmdb"), "--vqa", "train,nominival,minival"]
    assert verify(question_files, *store)["problems"] == []


def test_foreign_answers_are_a_problem(damaged):
    (damaged / "lxmert" / "all_ans.json").write_text(json.dumps([{"ans": "zebra", "dsets": ["vqa"]}]))
    found = verify(damaged, "--decode", "false", code=1)
    assert len(found["problems"]) == 2
    assert "mscoco_train: no answer is in the answer table (the first is" in found["problems"][0]


def test_what_was_decoded_before_is_not_decoded_again(damaged):
    assert verify(damaged)["images"]["decoded_before"] == 0
    log = damaged / "cache" / "verified_images.tsv"
    log.write_text(log.read_text()[:-10])  # the last line was cut off by a kill
    changed = first_image(damaged)
    Image.open(changed).save(changed, quality=10)
    found = verify(damaged)["images"]
    assert found["decoded_before"] == 53
    damage = changed.read_bytes()[:-200]
    changed.write_bytes(damage)
    assert verify(damaged, code=1)["images"]["unreadable"] == 1


def test_too_small_shared_memory_is_a_problem(damaged, monkeypatch):
    with small_tmpfs(damaged / "shm", "16m"):
        monkeypatch.setattr("engine.data.shared_memory.SHARED_MEMORY", damaged / "shm")
        (problem,) = verify(damaged, "--decode", "false", code=1)["problems"]
    assert "16 MB free" in problem
    assert "--num_workers" in problem


def test_sound_files_of_vqa_have_no_problems(question_files):
    found = verify(question_files, *VQA)
    assert found["problems"] == []
    assert list(found["splits"]) == [
        *("mscoco_train", "mscoco_minival"),
        *("vqa/train,nominival", "vqa/minival", "vqa/test"),
    ]
    assert found["splits"]["vqa/train,nominival"] == {
        **{"sentences": 90, "questions": 90, "images": 45, "repeated_sentences": 0},
        "sources": {"train": {"vqa": 80}, "nominival": {"vqa": 10}},
    }
    assert found["splits"]["vqa/test"]["questions"] == 6
    assert found["images"]["images"] == 58
    alone = verify(question_files, *VQA_ALONE)
    assert alone["images"] == {"images": 58, "missing": 0, "unreadable": 0, "other_size": 0, "decoded_before": 58}
    assert list(alone["splits"]) == ["vqa/train,nominival", "vqa/minival", "vqa/test"]


def test_sound_files_of_the_other_tasks_have_no_problems(damaged, capsys):
    """GQA asks the questions of testdev again in submit; the drawn splits are far smaller than the published ones."""
    tasks = ["--gqa", "train,valid,testdev,submit", "--snli_ve", "train,dev,test", "--train", "", "--valid", ""]
    found = verify(damaged, *tasks)
    assert found["problems"] == []
    sentences = {name: split["sentences"] for name, split in found["splits"].items()}
    assert sentences == {
        **{"gqa/train,valid": 80, "gqa/testdev": 30, "gqa/submit": 30},
        **{"snli_ve/train": 120, "snli_ve/dev": 21, "snli_ve/test": 24},
    }
    assert found["images"]["images"] == 2 * 55
    told = "note: snli_ve/dev has 21 items and 7 images, and as published it has about 17,850 and 1,000"
    assert told in capsys.readouterr().out
    stores = prepare("annotations", damaged, "--bert", str(damaged / "bert"), *tasks)["stores"]
    assert {name: store["sentences"] for name, store in stores.items()} == sentences
    assert prepare("images", damaged, *tasks)["written"] == 2 * 55
    change_items(damaged, lambda items: items.append({**items[0], "img_id": "n99"}), "gqa/testdev")
    problems = verify(damaged, *tasks, code=1)["problems"]
    first = json.loads((damaged / "gqa" / "testdev.json").read_text())[0]["question_id"]
    assert f"occur more than once, the first is {first};" in problems[0]
    assert problems[1] == (
        f"gqa:n99 (looked for {damaged}/gqa_raw_images/images/n99.jpg and {damaged}/images/n99.jpg, with any usual "
        f"suffix; the nearest names there are n9.jpg) is not in the image folders of {damaged}"
    )


def test_memory_is_that_of_the_larger_training(question_files, monkeypatch):
    """One opens the stores of pre-training or those of VQA."""
    seen = []

    def estimate(*_, store_bytes, sentences, **__):
        seen.append((store_bytes, sentences))
        return {"problems": []}

    monkeypatch.setattr("engine.data.verification.command.estimate", estimate)
    for flags in (VQA, VQA_ALONE, []):
        verify(question_files, "--decode", "false", *flags)
    both, vqa, pre_training = seen
    assert (vqa[1], pre_training[1]) == (90, 160)
    assert 0 < vqa[0] < pre_training[0]
    assert both == pre_training


def test_every_kind_of_problem_of_vqa_is_found(question_files):
    (question_files / image_path(TEST_IMAGE)).unlink()
    damaged_image = question_files / image_path("COCO_test2015_000000000002")
    damaged_image.write_bytes(damaged_image.read_bytes()[:-200])
    change_items(question_files, lambda items: items[0].update(label={"zebra": 1, "yes": 0.3}), "vqa/train")
    change_items(question_files, lambda items: items.append(items[3]), "vqa/nominival")
    change_items(question_files, lambda items: items[1].pop("label"), "vqa/minival")
    found = verify(question_files, *VQA_ALONE, code=1)
    told = found["problems"]
    table = question_files / "vqa" / "trainval_label2ans.json"
    assert told[:3] == [
        f"vqa/train,nominival: 1 labels have answers that {table} lacks, such as 'zebra'",
        "vqa/minival: 1 of 20 questions have no label, the first is 1000005001",
        "1 question ids of vqa/train,nominival and vqa/minival and vqa/test occur more than once, the first is "
        "1000001001; remove the repeats, or name each split once",
    ]
    assert told[3].startswith(f"{TEST_IMAGE} (looked for {question_files / image_path(TEST_IMAGE)} and ")
    assert told[3].endswith(f" is not in the image folders of {question_files}")
    assert told[4].startswith(f"{damaged_image}: ")
    assert len(told) == 5
    assert found["images"] == {"images": 58, "missing": 1, "unreadable": 1, "other_size": 0, "decoded_before": 0}


def test_a_question_of_two_splits_of_vqa_is_a_problem(question_files):
    shared = json.loads((question_files / "vqa" / "train.json").read_text())[7]
    change_items(question_files, lambda items: items.append(shared), "vqa/minival")
    (problem,) = verify(question_files, *VQA_ALONE, "--decode", "false", code=1)["problems"]
    assert f"occur more than once, the first is {shared['question_id']};" in problem


def test_what_keeps_a_fine_tuning_from_starting_is_told(question_files, capsys):
    flags = ["verify", "--data_root", str(question_files), "--bert", str(question_files / "bert"), *VQA_ALONE]
    change_items(question_files, lambda rows: rows.update(red=14), "vqa/trainval_ans2label")
    assert "trainval_label2ans.json disagree, first on 'red'; both" in error_of(capsys, *flags)
    (question_files / "vqa" / "trainval_ans2label.json").unlink()  # it is optional
    shutil.rmtree(question_files / "mscoco" / "test2015")
    assert "mscoco/test2015 can't be read (No such file or directory), and COCO_test2015_" in error_of(capsys, *flags)
    assert "tets.json is missing; " in error_of(capsys, *flags, "--vqa", "tets")


# --- the program itself


def test_demo_draws_the_data_set(tmp_path):
    prepare("demo", tmp_path, "--train_scenes", "3", "--valid_scenes", "2")
    assert len(list((tmp_path / "mscoco" / "train2014").iterdir())) == 3


def test_downloads_are_listed_without_fetching(tmp_path, capsys):
    files = prepare("download", tmp_path, "--dry-run")["files"]
    assert files["train2014"]["bytes"] == 13510573713
    assert {entry["state"] for entry in files.values()} == {"absent"}
    assert all(entry["url"] in capsys.readouterr().out or True for entry in files.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.json"]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["anotations"], "there is no command anotations; choose one of download, sizes, answers, gqa, annotations"),
        (["sizes", "--datroot", "x"], "unknown flag --datroot; did you mean --data_root?"),
        (["answers", "--min_count", "many"], "invalid int value: 'many'"),
        (["download", "--only", "coco"], "coco"),
        (["sizes", "--json", "/proc/none/x.json"], "/proc/none/x.json can't be written"),
        (["verify", "--data_root", "nowhere"], "mscoco_train.json is missing; there is no folder nowhere. "),
        (["verify", "--data_root", "nowhere", *VQA_ALONE], "there is no folder nowhere; name with --data_root"),
        (
            ["images", *VQA_ALONE, "--vqa", ""],
            "no annotation file is named; give --train or --valid or --vqa",
        ),
        (["answers", *VQA], "unknown flag --vqa"),
        (["answers", "--data_root", "nowhere"], "nowhere/lxmert/mscoco_train.json is missing"),
        (["answers", "--data_root", "nowhere", "--task", "vqa"], "nowhere/vqa/train.json is missing"),
        (["answers", "--task", "snli_ve"], "--task snli_ve: visual entailment has three labels, and needs no list"),
        (["answers", "--task", "vaq"], "--task vaq: choose one of vqa, gqa"),
        (["answers", "--task", "gqa", "--output", "x"], "--task gqa writes data/gqa/trainval_label2ans.json"),
    ],
    ids=[
        *("command", "flag", "value", "name", "json", "root", "vqa_root", "no_file", "no_vqa", "no_answers"),
        *("no_questions", "labels", "task", "output"),
    ],
)
def test_bad_calls_are_one_line(capsys, argv, part):
    assert part in error_of(capsys, *argv)


def test_without_a_command_the_usage_is_shown():
    run = launch("launch/prepare.py", [], launcher="python")
    assert run.code == 2
    assert "prepare.py verify" in run.stdout


def test_help_tells_the_flags_of_a_command():
    run = launch("launch/prepare.py", ["images", "--help"], launcher="python")
    assert run.code == 0
    assert "--resize" in run.stdout
