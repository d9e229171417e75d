"""Tables, shards and saved datasets: what they give, and what is said of those that can't be read."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.formats.table import Columns, places_of
from engine.data.annotations.named import read_names, short_name
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import ImageFolder
from engine.data.images.places import image_path
from engine.data.images.writer import write_image_store
from engine.data.loading import training_loader
from engine.data.sampler import Weights
from engine.data.splits import open_images, read_split
from engine.distributed.workers import end_workers
from engine.errors import UserError
from engine.synthetic import tables
from engine.tasks.pretraining import PretrainingDataset, PretrainingOptions
from tests.engine.tasks.test_pretraining import tokenizer

SHAPE = ImageShape(12, 20)
ANSWERS = AnswerTable(["yes", "no"])
IMG_IDS = [f"COCO_train2014_{number:012d}" for number in range(1, 8)]


def make_items() -> list[dict]:
    """Captions and questions about seven images, as LXMERT's files have them."""
    return [
        {
            "img_id": img_id,
            "sentf": {
                "mscoco": [f"word{4 * n + k} word{k} word{n}" for k in range(3)],
                "vqa": [f"word{n} word{30 + k}" for k in range(2)],
            },
            "labelf": {"vqa": [{"yes": 1.0}, {"no": 0.6, "yes": 0.3}]},
        }
        for n, img_id in enumerate(IMG_IDS)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The same data in all forms, under names that give the split the same name."""
    noise = np.random.default_rng(0)
    for number, img_id in enumerate(IMG_IDS):
        path = tmp_path / image_path(img_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (24, 16, 3) if number % 3 else (16, 24, 3)
        Image.fromarray(noise.integers(0, 256, size, dtype=np.uint8)).save(path)
    (tmp_path / "lxmert").mkdir()
    (tmp_path / "lxmert" / "data.json").write_text(json.dumps(make_items()))

    def rows():
        return tables.rows_of(make_items(), path_of=lambda img_id: image_path(img_id).as_posix())

    tables.write_jsonl(tmp_path / "data.jsonl", rows())
    tables.write_parquet(tmp_path / "data.parquet", rows())
    tables.write_shards(tmp_path / "data", rows(), tmp_path, 3)
    tables.write_dataset(tmp_path / "saved" / "data", rows(), tmp_path)
    return tmp_path


NAMES = {
    "lxmert": "data",
    "lxmert by path": "{}/lxmert/data.json",
    "jsonl": "{}/data.jsonl",
    "parquet": "{}/data.parquet",
    "tar": "{}/data-{{00000..00002}}.tar",
    "tar by pattern": "{}/data-*.tar",
    "dataset": "{}/saved/data",
}


def read(root: Path, names: str, columns: Columns | None = None, split: str = "train", image_store=None, **options):
    """A split and its images."""
    parts = read_names(names, root / "lxmert", columns=columns or Columns(), split=split)
    source = AnnotationSource(parts, TextEncoder(tokenizer()), ANSWERS)
    images = open_images(root, image_store, SHAPE, "pillow", places_of(source.files))
    return read_split(source, images, root / "cache", **options), images


def batches(
    root: Path,
    names: str,
    epoch: int = 0,
    done: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    **options,
):
    """A rank's batches of the rest of an epoch."""
    split, images = read(root, names, **options)
    sizes = {"image_size_min": 12, "image_size_max": 20, "aspect_ratio_group_factor": 0, "max_seq_length": 8}
    dataset = PretrainingDataset(split, images, TextEncoder(tokenizer()).vocabulary, PretrainingOptions(**sizes))
    shares = {"accumulation": 1, "num_workers": workers, "same_order": False, "rank": rank, "world_size": world_size}
    loader = training_loader(dataset, 4, **shares)
    loader.batch_sampler.set_epoch(epoch, done)
    return list(loader)


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        list(one.inputs) == list(other.inputs)
        and all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("form", list(NAMES)[1:])
def test_all_forms_give_the_same_batches(root, form):
    """Bit for bit; of both ranks, and from the middle of an epoch, which lies in the middle of a shard."""
    for place in ({}, {"rank": 1, "world_size": 2}, {"epoch": 1, "done": 3}):
        expected = batches(root, "data", **place)
        assert len(expected) >= 4
        assert same(batches(root, NAMES[form].format(root), **place), expected)


@pytest.mark.parametrize("form", ["jsonl", "tar", "dataset"])
def test_digests_are_those_of_any_folder(root, form):
    """All but the images' names, which each form gives in its way, are those of LXMERT's JSON, too."""
    expected, before = (read(root, names)[0].sentences.digests() for names in ("data", NAMES[form].format(root)))
    assert [expected[kind] == before[kind] for kind in ("texts", "images", "labels")] == [True, False, True]
    elsewhere = shutil.copytree(root, root / "else" / "where", ignore=shutil.ignore_patterns("else", "cache"))
    assert read(elsewhere, NAMES[form].format(elsewhere))[0].sentences.digests() == before


def test_digests_of_shards_are_those_of_shards_packed_anew(root):
    names = NAMES["tar"].format(root)
    before = read(root, names)[0].sentences.digests()
    for path in root.glob("data-*.tar"):
        with tarfile.open(path) as shard:
            files = [(member.name, shard.extractfile(member).read()) for member in shard]
        with tarfile.open(path, "w") as shard:
            for name, data in [("README.md", b"more"), *files]:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    split = read(root, names)[0]
    assert split.sentences.digests() == before


@pytest.mark.parametrize("form", ["tar", "dataset"])
def test_workers_open_shards_and_datasets_for_themselves(root, form):
    try:
        assert same(batches(root, NAMES[form].format(root), workers=2), batches(root, "data"))
    finally:
        end_workers()


def test_another_epoch_has_other_batches(root):
    """Else the test above could not fail."""
    assert not same(batches(root, "data", epoch=1), batches(root, "data"))


@pytest.mark.parametrize("form", ["jsonl", "tar", "dataset"])
def test_an_lmdb_of_ones_own_images_gives_the_same_batches(root, form):
    names = NAMES[form].format(root)
    parts = read_names(names, root / "lxmert", columns=Columns())
    files = [file for part in parts for file in part.files]
    img_ids = list(dict.fromkeys(texts.img_id for file in files for texts in file.texts()))
    written = write_image_store(
        *(root / "lmdb", img_ids, root), places=places_of(files), resize=None, quality=95, workers=0, progress=False
    )
    assert (written.written, written.unreadable) == (7, [])
    assert same(batches(root, names, image_store=str(root / "lmdb")), batches(root, "data"))


def test_csv_holds_captions_and_plain_answers(root):
    rows = list(tables.rows_of(make_items(), path_of=lambda img_id: image_path(img_id).as_posix()))
    tables.write_csv(root / "data.csv", rows)
    tables.write_csv(root / "data.tsv", rows, delimiter="\t")
    expected, _ = read(root, "data")
    for name in ("data.csv", "data.tsv"):
        split, _ = read(root, str(root / name))
        found = split.sentences.take(range(35))
        assert found.token_ids == expected.sentences.take(range(35)).token_ids
        assert found.labels[:5] == [None, None, None, {0: 1.0}, {1: 1.0}]  # one answer each, the best


def write_rows(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def texts_of(path: str, **columns):
    split = columns.pop("split", "train")
    [part] = read_names(path, Path("none"), columns=Columns(**columns), split=split)
    found = [texts for file in part.files for texts in file.texts()]
    return found, part.files[0].dropped


def test_what_a_row_may_hold(tmp_path):
    """Usual names, several texts, entities, empty ones, questions with one, several and weighted answers."""
    path = write_rows(
        tmp_path / "t.jsonl",
        {"file_name": "./a b.JPG", "captions": ["one &amp; two", " ", "מילה", None]},
        {"img": "ü.png", "text": "café", "id": 7},
        {"img": "ü.png", "text": ""},
        {"img": "ü.png", "text": None},
        {"img": None, "text": "no image"},
        {"image": "/elsewhere/c.png", "question": "what?", "answer": "yes"},
        {"image": "c.png", "question": ["q1", "q2"], "answers": [["yes", "yes", "no", "no"], {"no": 0.3}]},
        "",
        {"image": "c.png", "question": "unanswered?"},
    )
    found, dropped = texts_of(path)
    name = tmp_path.name
    assert [(texts.img_id, texts.texts, texts.labels) for texts in found] == [
        (f"{name}/a b.JPG", ["one & two", "מילה"], None),
        (f"{name}/ü.png", ["café"], None),
        (f"{name}//elsewhere/c.png", ["what?"], [{"yes": 1.0}]),
        (f"{name}/c.png", ["q1", "q2"], [{"yes": 0.5, "no": 0.5}, {"no": 0.3}]),
        (f"{name}/c.png", ["unanswered?"], [{}]),
    ]
    assert dropped == {"without words": 4, "without an image": 1}


def test_columns_can_be_named(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", {"image": "wrong", "caption": "wrong", "foto": "a.jpg", "satz": "right"})
    [texts], _ = texts_of(path, image="foto", text="satz")
    assert (texts.img_id, texts.texts) == (f"{tmp_path.name}/a.jpg", ["right"])


def test_a_column_of_splits_chooses_the_rows(tmp_path):
    rows = [{"image": "a", "caption": split, "split": split} for split in ("train", "val", "test", "restval")]
    path = write_rows(tmp_path / "t.jsonl", *rows)
    assert [texts.texts for texts in texts_of(path)[0]] == [["train"], ["restval"]]
    found, dropped = texts_of(path, split="valid")
    assert [texts.texts for texts in found] == [["val"]]
    assert dropped == {"of another split": 3}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"image": "a", "caption": "b"}', '{"image": "a", 3}'], "line 2, column 16: not valid JSON"),
        (["[", '{"image": "a", "caption": "b"},', "]"], "line 1: an object in each line was expected, found list"),
        (['[{"image": "a", "caption": "b"}]'], "line 1: an object in each line was expected, found list"),
        (["3"], "line 1: an object in each line was expected, found int"),
        (
            [{"picture": "a", "caption": "b"}],
            "line 1: none of the columns 'picture', 'caption' has a usual name for the image",
        ),
        ([{"image": "a", "words": "b"}], "has a usual name for the text; name it with --text_column"),
        ([{"image": 3, "caption": "b"}], "'image' is int, and the path of an image file is needed"),
        ([{"image": "https://a/b.jpg", "caption": "b"}], "fetch the images first"),
        ([{"image": "a", "caption": 3}], "'caption' holds int, and text is needed"),
        ([{"image": "a", "question": ["b", "c"], "answer": ["d"]}], "there are 2 questions, and 1 in 'answer'"),
        ([{"image": "a", "question": "b", "answer": 3}], "an answer, a list of answers, or answers with scores"),
        (
            [{"image": "a", "question": "b", "answer": {"c": True}}],
            "an answer, a list of answers, or answers with scores",
        ),
        (
            [{"image": "a", "caption": "b", "split": "test"}],
            "its splits are test, and restval, train, training are looked",
        ),
        ([{"image": "a", "caption": ""}], "has no row with an image and a text (1 without words)"),
        ([], "has no row with an image and a text"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, rows, message):
    path = write_rows(tmp_path / "t.jsonl", *rows)
    with pytest.raises(UserError) as told:
        texts_of(path)
    assert message in str(told.value)
    assert str(told.value).startswith(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,caption\na.jpg,b,c\n", "line 2: 2 values were expected, found 3"),
        ("t.csv", b'image,caption\na.jpg,"b\n', "line 2: unexpected end of data"),
        ("t.csv", b"image,image\n", "line 1: two columns are called 'image'"),
        ("t.csv", b"", "has no row"),
        (
            "t.csv",
            b"image;caption\na.jpg;b\n",
            "line 1: there are semicolons between the columns, and .csv is read with commas; save the table with ",
        ),
        ("t.csv", b"image\tcaption\n", "line 1: there are tabs between the columns, and .csv is read with commas"),
        ("t.tsv", b"image,caption\na.jpg,b\n", "line 1: there are commas between the columns, and .tsv is read with"),
        ("t.csv", b'"image,caption"\n', "line 1: none of the columns 'image,caption' has a usual name for the image"),
        ("t.csv", b"picture,caption\na.jpg,b\n", "line 1: none of the columns 'picture', 'caption' has a usual name"),
        ("t.tsv", b"image\tcaption\na.jpg\t\xff\n", "line 2: not UTF-8"),
        ("t.parquet", b"PAR1", "can't be read as Parquet"),
        ("t.tar", b"no tar", "can't be read as an uncompressed tar file"),
        ("t.txt", b"", "'.txt' isn't the ending of a known format"),
        ("t.jsonl", None, "t.jsonl is missing; relative paths start from"),
        ("t-{0..2}.tar", None, "t-0.tar is missing, and 2 more of 3"),
        ("t-*.tar", None, "no file is called like"),
        ("t.jsonl:0", b"", "a weight above 0"),
    ],
)
def test_files_that_cant_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name.partition(":")[0]).write_bytes(content)
    with pytest.raises(UserError) as told:
        texts_of(str(tmp_path / name))
    assert message in str(told.value)


def test_images_in_parquet_are_refused_with_a_way_out(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": [b"bytes"], "caption": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="holds binary, and paths of image files are needed"):
        texts_of(str(tmp_path / "t.parquet"))


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    """20 MB of texts in one group; what is read ahead is a buffer of 1 MiB and a page of about as much per column."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"{number:0200d}" for number in range(100_000)]
    table = pyarrow.table({"image": ["a.jpg"] * len(texts), "caption": texts})
    parquet.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    del table
    before = pyarrow.total_allocated_bytes()
    [part] = read_names(str(tmp_path / "t.parquet"), Path("none"), columns=Columns())
    rows = part.files[0].rows(None)
    assert next(rows) == {"image": "a.jpg", "caption": texts[0]}
    assert pyarrow.total_allocated_bytes() - before < 10e6
    rows.close()


def test_a_truncated_shard_names_its_last_sample(root):
    """Nothing behind it is trained on without a word."""
    shard = root / "data-00001.tar"
    data = shard.read_bytes()
    for size in (len(data) // 2, 700):
        shard.write_bytes(data[:size])
        with pytest.raises(
            UserError, match=r"data-00001.tar can't be read as an uncompressed tar file \(.*\) behind sample"
        ):
            read(root, NAMES["tar"].format(root))


def test_a_shard_that_is_written_anew_is_read_anew(root):
    names = NAMES["tar"].format(root)
    before = len(read(root, names)[0].sentences)
    with tarfile.open(root / "data-00002.tar", "a") as shard:
        for member in ("more.jpg", "more.txt"):
            (root / member).write_bytes((root / image_path(IMG_IDS[0])).read_bytes() if ".jpg" in member else b"word1")
            shard.add(root / member, member)
    assert len(read(root, names)[0].sentences) == before + 1


def test_a_shard_may_be_empty_but_not_all_of_them(root):
    (root / "data-00003.tar").write_bytes(bytes(10240))  # as tar ends
    assert len(read(root, NAMES["tar by pattern"].format(root))[0].sentences) == 35
    for number in range(3):
        (root / f"data-{number:05d}.tar").write_bytes(bytes(10240))
    with pytest.raises(UserError, match=r"data-00003.tar has no row with an image and a text"):
        read(root, NAMES["tar by pattern"].format(root))


def test_a_dataset_with_splits(root):
    datasets = pytest.importorskip("datasets")
    plain = datasets.load_from_disk(str(root / "saved" / "data"))
    parts = {"train": plain.select(range(4)), "validation": plain.select(range(4, 7))}
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved" / "both"))
    for split, images in (("train", 4), ("valid", 3)):
        assert read(root, str(root / "saved" / "both"), split=split)[0].num_images == images
    datasets.DatasetDict({"test": plain}).save_to_disk(str(root / "saved" / "test"))
    with pytest.raises(UserError, match=r"has the splits test, and one of .* is needed"):
        read(root, str(root / "saved" / "test"))


def test_a_validation_has_no_weights(root):
    with pytest.raises(UserError, match="data:2: a validation takes each sentence once"):
        read(root, "data:2", split="valid")


def test_two_folders_of_one_name_are_refused(tmp_path):
    for parent in "ab":
        (tmp_path / parent / "own").mkdir(parents=True)
        write_rows(tmp_path / parent / "own" / "t.jsonl", {"image": "a", "caption": "b"})
    parts = read_names(f"{tmp_path}/a/own/t.jsonl,{tmp_path}/b/own/t.jsonl", Path("none"), columns=Columns())
    with pytest.raises(UserError, match="have the same name, which the ids of their images begin with"):
        places_of(file for part in parts for file in part.files)
    (tmp_path / "other").symlink_to(tmp_path / "b" / "own")
    parts = read_names(f"{tmp_path}/a/own/t.jsonl,{tmp_path}/other/t.jsonl", Path("none"), columns=Columns())
    assert list(places_of(file for part in parts for file in part.files)) == ["own", "other"]


def test_images_that_are_missing_are_counted(root):
    names = write_rows(
        root / "t.jsonl", {"image": "gone.jpg", "caption": "word1"}, *map(json.loads, (root / "data.jsonl").open())
    )
    with pytest.raises(UserError, match=rf"1 of 8 images of t are not in {root}, the first is {root.name}/gone.jpg"):
        read(root, names)
    split, _ = read(root, names, allow_missing_images=True)
    assert len(split.sentences) == 35
    assert "1 image without a file left out" in split.summary


def test_sizes_are_measured_once(root, monkeypatch):
    """And again when images have changed; those that couldn't be read are tried at each start."""
    names = NAMES["jsonl"].format(root)
    (root / image_path(IMG_IDS[0])).write_bytes(b"none")
    first, _ = read(root, names)
    measured = []
    measure = ImageFolder.measure
    monkeypatch.setattr(ImageFolder, "measure", lambda self, img_id: measured.append(img_id) or measure(self, img_id))
    monkeypatch.setattr("engine.data.images.folder.COMPARED_SIZES", 2)
    again, _ = read(root, names)
    assert len(measured) == 3  # two of six that are compared, and the one that couldn't be read
    assert np.array_equal(again.sizes["width"], first.sizes["width"])
    for img_id in IMG_IDS:
        Image.new("RGB", (30, 20)).save(root / image_path(img_id))
    changed, _ = read(root, names)
    assert changed.sizes["width"].tolist() == [30] * 7
    [path] = (root / "cache").glob("sizes-*.store")
    path.write_bytes(path.read_bytes()[:50])
    assert read(root, names)[0].sizes["width"].tolist() == [30] * 7


def test_weights_say_how_often_sentences_come():
    """Over two epochs a half of each is all of them; twice is twice in each."""
    parts = np.repeat([0, 1, 2], [10, 6, 4]).astype(np.uint16)
    weights = Weights((0.5, 2.0, 1.0), parts)
    assert (weights.counts(), weights.samples_per_epoch) == ([5, 12, 4], 21)
    epochs = [np.bincount(weights.samples(7, epoch), minlength=20) for epoch in range(4)]
    assert (epochs[0] + epochs[1] == np.repeat([1, 4, 2], [10, 6, 4])).all()
    assert epochs[0][:10].sum() == 5
    assert (epochs[0][10:] == np.repeat([2, 1], [6, 4])).all()
    assert not (epochs[0][:10] == epochs[2][:10]).all()  # another half than in the round before


def test_weights_are_given_behind_names(root):
    split, _ = read(root, f"data:0.4,{NAMES['jsonl'].format(root)}:2")
    assert (split.name, len(split.sentences), split.samples_per_epoch) == ("data,data", 70, 14 + 70)
    found = batches(root, f"data:0.4,{NAMES['tar'].format(root)}:2")
    assert len(found) == 84 // 4
    from_tables = sum(number >= 35 for batch in found for number in batch.numbers)
    assert from_tables >= 60  # 70, but for what the last batches of groups are filled up with


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("a/my.jsonl", "my"),
        ("a/my-{000..009}.tar", "my"),
        ("a/shards/*.tar", "shards"),
        ("a/shards/{0..9}.tar", "shards"),
    ],
)
def test_short_names(name, short):
    assert short_name(name) == short
