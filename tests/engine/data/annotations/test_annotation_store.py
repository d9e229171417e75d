import errno
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from engine.benchmark.data.measuring import own_memory
from engine.data.annotations import source as module
from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.formats.lxmert import LxmertFile
from engine.data.annotations.named import Part
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import LabelCount, Sentence, WordCount
from engine.data.annotations.text import TextEncoder
from engine.errors import UserError
from tests.conftest import ROOT, in_shared_memory, left_in_shared_memory, small_tmpfs

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "two", "men", "is", "it", "who", "where", "?"]
TABLE = AnswerTable(["yes", "man", "tree"])
COCO = "COCO_train2014_000000000009"
ITEM = {
    "img_id": COCO,
    "sentf": {"mscoco": ["a man", " two men "], "vqa": ["is it a man ?", "who ?", "where ?", "where is it ?"]},
    "labelf": {"vqa": [{"yes": 1.0}, {"the man": 0.3, "yes": 0.6, "elf": 0.3}, {"here": 1}, {"man": 1, "yes": 1}]},
}
OTHER = {"img_id": "77", "sentf": {"vg": ["", "a"]}}


def encoder(words=WORDS):
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return TextEncoder(tokenizer)


def write(folder, name="train", items=(ITEM, OTHER)):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(list(items)))
    return path


def source(*paths, words=WORDS, answers=TABLE, with_text=False):
    parts = tuple(Part(path.stem, (LxmertFile(path),)) for path in paths)
    return AnnotationSource(parts, encoder(words), answers, with_text)


def stores(cache):
    return sorted(path.name for path in cache.glob("*"))


def ids(text):
    return tuple(WORDS.index(word) for word in text.split())


SENTENCES = [
    Sentence(f"{COCO}_mscoco_000", COCO, ids("a man"), None),
    Sentence(f"{COCO}_mscoco_001", COCO, ids("two men"), None),
    Sentence(f"{COCO}_vqa_000", COCO, ids("is it a man ?"), {0: 1.0}),
    Sentence(f"{COCO}_vqa_001", COCO, ids("who ?"), {1: 0.3, 0: 0.6}),
    Sentence(f"{COCO}_vqa_002", COCO, ids("where ?"), {}),
    Sentence(f"{COCO}_vqa_003", COCO, ids("where is it ?"), {1: 1.0, 0: 1.0}),
    Sentence("77_vg_000", "77", (), None),
    Sentence("77_vg_001", "77", ids("a"), None),
]


# --- content


def test_sentences_come_back_by_number(tmp_path):
    store = source(write(tmp_path)).open(tmp_path / "cache")
    assert list(store) == SENTENCES
    assert len(store) == len(SENTENCES)


def test_the_order_of_answers_is_kept(tmp_path):
    """It decides which answer a draw picks."""
    store = source(write(tmp_path)).open(tmp_path / "cache")
    assert list(store[5].label) == [1, 0]
    assert list(store.take([5]).labels[0]) == [1, 0]


def test_many_at_once_are_what_single_ones_are(tmp_path):
    store = source(write(tmp_path)).open(tmp_path / "cache")
    numbers = [7, 0, 3, 3, 6, 2, 5, 4]
    taken = store.take(numbers)
    assert taken.img_ids == [store[n].img_id for n in numbers]
    assert taken.token_ids == [store[n].token_ids for n in numbers] == [store.token_ids(n) for n in numbers]
    assert taken.labels == [store[n].label for n in numbers]
    assert store.take([]) == ([], [], [])


@pytest.mark.parametrize("number", [-1, 8, 1 << 40])
def test_a_number_outside_is_an_index_error(tmp_path, number):
    store = source(write(tmp_path)).open(tmp_path / "cache")
    for ask in (store.__getitem__, store.token_ids, store.image, lambda n: store.take([0, n])):
        with pytest.raises(IndexError):
            ask(number)


def test_texts_have_hashes_that_stay(tmp_path):
    """Checkpoints hold them: the number is by hand, a polynomial of the token ids, each with 1 added."""
    store = source(write(tmp_path)).open(tmp_path / "cache")
    base = 0x9E3779B97F4A7C15
    by_hand = [sum((word + 1) * base**n for n, word in enumerate(store.token_ids(k))) % 2**64 for k in range(8)]
    assert store.text_hashes().tolist() == by_hand
    assert len(set(by_hand)) == 8
    chosen = np.arange(8) % 2 == 1
    assert store.select(chosen).text_hashes().tolist() == by_hand[1::2]
    assert store.select(np.zeros(8, bool)).text_hashes().tolist() == []


def test_texts_are_kept_if_asked_for(tmp_path):
    store = source(write(tmp_path), with_text=True).open(tmp_path / "cache")
    texts = [text for item in (ITEM, OTHER) for part in item["sentf"].values() for text in part]
    assert [sentence.text for sentence in store] == texts
    assert [sentence._replace(text=None) for sentence in store] == SENTENCES


def test_several_files_follow_one_another_and_share_images(tmp_path):
    more = write(tmp_path, "more", [{"img_id": COCO, "sentf": {"vg": ["men"]}}])
    store = source(more, write(tmp_path)).open(tmp_path / "cache")
    assert [sentence.uid for sentence in store][:2] == [f"{COCO}_vg_000", f"{COCO}_mscoco_000"]
    assert store.image_ids == [COCO, "77"]
    assert store.images.tolist() == [0] * 7 + [1] * 2 == [store.image(number) for number in range(9)]


def test_questions_are_the_sentences_with_labels(tmp_path):
    assert source(write(tmp_path)).open(tmp_path / "cache").questions.tolist() == [False] * 2 + [True] * 4 + [False] * 2


def test_a_category_may_hold_questions_of_one_image_and_captions_of_another(tmp_path):
    caption = {"img_id": "1", "sentf": {"vqa": ["a"]}}
    store = source(write(tmp_path, items=[ITEM, caption])).open(tmp_path / "cache")
    assert store[2].label == {0: 1.0}
    assert store[6] == Sentence("1_vqa_000", "1", ids("a"), None)


def test_uid_numbers_past_999_keep_all_digits(tmp_path):
    store = source(write(tmp_path, items=[{"img_id": "1", "sentf": {"vg": ["a"] * 1001}}])).open(tmp_path / "cache")
    assert store[7].uid == "1_vg_007"
    assert store[1000].uid == "1_vg_1000"


def test_names_may_be_any_unicode(tmp_path):
    item = {"img_id": "bäum\U0001f600", "sentf": {"ü": ["a ü"]}}
    store = source(write(tmp_path, items=[item]), with_text=True).open(tmp_path / "cache")
    unknown = WORDS.index("[UNK]")
    assert store[0] == Sentence("bäum\U0001f600_ü_000", "bäum\U0001f600", (WORDS.index("a"), unknown), None, "a ü")
    assert store.take([0]).img_ids == ["bäum\U0001f600"]


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1], ids=["two_bytes", "four_bytes"])
def test_vocabularies_beyond_two_bytes(tmp_path, size):
    words = [*WORDS, *(f"w{number}" for number in range(size - len(WORDS) - 1)), "last"]
    store = source(write(tmp_path, items=[{"img_id": "1", "sentf": {"vg": ["a last"]}}]), words=words)
    assert store.open(tmp_path / "cache")[0].token_ids == (WORDS.index("a"), size - 1)


def test_scores_are_exact(tmp_path):
    scores = [random.Random(number).random() for number in range(300)]
    item = {"img_id": "1", "sentf": {"vqa": ["a"] * 300}, "labelf": {"vqa": [{"yes": score} for score in scores]}}
    store = source(write(tmp_path, items=[item])).open(tmp_path / "cache")
    assert [sentence.label[0] for sentence in store] == scores


def test_known_answers_and_questions_without_any_are_counted(tmp_path):
    path = write(tmp_path)
    assert source(path).open(tmp_path / "cache").label_count == LabelCount(known=5, unknown=1, example="here")
    assert source(path, path).open(tmp_path / "cache").label_count == LabelCount(known=10, unknown=2, example="here")


def test_question_without_any_answer_is_not_counted_as_unknown(tmp_path):
    item = {"img_id": "1", "sentf": {"vqa": ["who ?"]}, "labelf": {"vqa": [{}]}}
    store = source(write(tmp_path, items=[item])).open(tmp_path / "cache")
    assert store[0].label == {}
    assert store.label_count == LabelCount()


def test_an_empty_file_makes_an_empty_store(tmp_path):
    store = source(write(tmp_path, items=[])).open(tmp_path / "cache")
    assert len(store) == 0
    assert list(store) == store.image_ids == []


def test_a_selection_numbers_its_sentences_anew(tmp_path):
    store = source(write(tmp_path)).open(tmp_path / "cache")
    chosen = store.select(store.questions)
    assert list(chosen) == SENTENCES[2:6]
    assert chosen.take([3, 0]).token_ids == [SENTENCES[5].token_ids, SENTENCES[2].token_ids]
    assert (chosen.images.tolist(), chosen.questions.tolist()) == ([0] * 4, [True] * 4)
    assert list(chosen.select(np.array([False, True, False, True]))) == [SENTENCES[3], SENTENCES[5]]
    with pytest.raises(IndexError):
        chosen.take([4])


# --- words


def test_long_sentences_and_unknown_words_are_counted(tmp_path):
    """Without labels, whose answers and scores are numbers beside the words."""
    item = {**ITEM, "sentf": {**ITEM["sentf"], "mscoco": ["a zebra", " zebra ! men "]}}
    store = source(write(tmp_path, items=[item, OTHER])).open(tmp_path / "cache")
    assert store.count_words(3, WORDS.index("[UNK]")) == WordCount(sentences=8, longer=2, pieces=19, unknown=3)
    assert store.count_words(2, WORDS.index("?")) == WordCount(sentences=8, longer=3, pieces=19, unknown=4)
    assert store.count_words(5, None) == WordCount(sentences=8, longer=0, pieces=19, unknown=0)
    chosen = store.select(store.questions)
    assert chosen.count_words(3, WORDS.index("?")) == WordCount(sentences=4, longer=2, pieces=13, unknown=4)
    assert store.select(store.images > 9).count_words(3, 1) == WordCount(0, 0, 0, 0)


# --- digests


def digests(folder, items=(ITEM, OTHER), **more):
    return source(write(folder, items=items), **more).open(folder / "cache").digests()


def test_digests_stay_what_they_are(tmp_path):
    """Checkpoints hold them: those of another version, process or machine have to be the same."""
    assert {kind: digest[:16] for kind, digest in digests(tmp_path).items()} == {
        "texts": "f59d477ff6ddc8bf",
        "images": "6649f43ea4de5d2f",
        "labels": "3d3412b607085a16",
    }


EDITED = {**ITEM, "sentf": {**ITEM["sentf"], "mscoco": ["a men", " two men "]}}
SHUFFLED = {**ITEM, "sentf": {**ITEM["sentf"], "mscoco": [" two men ", "a man"]}}
ANSWERED = {**ITEM, "labelf": {"vqa": [{"yes": 1.0}, {"the man": 0.3, "yes": 0.6}, {"here": 1}, {"yes": 1, "man": 1}]}}


@pytest.mark.parametrize(
    ("items", "different"),
    [
        ((EDITED, OTHER), {"texts"}),
        ((SHUFFLED, OTHER), {"texts"}),
        ((ITEM, {**OTHER, "sentf": {"vg": ["a", ""]}}), {"texts"}),
        (({**ITEM, "img_id": "77"}, {**OTHER, "img_id": COCO}), {"images"}),
        ((ITEM, {**OTHER, "img_id": COCO}), {"images"}),
        ((ANSWERED, OTHER), {"labels"}),
        ((OTHER, ITEM), {"texts", "images", "labels"}),
    ],
    ids=["edited", "shuffled", "moved word", "exchanged images", "one image", "order of answers", "order of items"],
)
def test_digests_tell_what_is_different(tmp_path, items, different):
    before, now = digests(tmp_path), digests(tmp_path, items)
    assert {kind for kind in before if before[kind] != now[kind]} == different


def test_digests_are_of_the_content_alone(tmp_path):
    """Not of files, of a store's layout, or of sentences that aren't selected."""
    before = digests(tmp_path)
    rewritten = tmp_path / "rewritten.json"
    rewritten.write_text(json.dumps([ITEM, OTHER], indent=1))
    for made in (
        source(rewritten, with_text=True),
        source(write(tmp_path, "first", [ITEM]), write(tmp_path, "second", [OTHER])),
        source(rewritten, words=[*WORDS, *map(str, range(1 << 16))]),  # its words take four bytes each
    ):
        assert made.open(tmp_path / "cache").digests() == before
    left_out = {"img_id": "88", "sentf": {"left out": ["it ?", "man"]}, "labelf": {"left out": [{"tree": 0.9}, {}]}}
    store = source(write(tmp_path, items=[left_out, ITEM, OTHER])).open(tmp_path / "cache")
    assert store.digests() != before
    assert store.select(store.category_codes != 0).digests() == before


def test_digests_of_many_sentences_are_those_of_few_at_a_time(tmp_path):
    items = [{"img_id": f"{number // 2}", "sentf": {"vg": ["a man"] * 40_000}} for number in range(4)]
    store = source(write(tmp_path, items=items)).open(tmp_path / "cache")
    changed = source(write(tmp_path, items=[*items[:3], {**items[3], "sentf": {"vg": ["a man"] * 39_999 + ["a men"]}}]))
    now = changed.open(tmp_path / "cache").digests()
    assert {kind for kind, digest in store.digests().items() if digest != now[kind]} == {"texts"}
    assert store.count_words(1, WORDS.index("man")) == WordCount(160_000, 160_000, 320_000, 160_000)


BAD = {
    "score_below_0": ({"vqa": [{"yes": -0.5}]}, "the score -0.5 of an answer is no number from 0 to 1"),
    "not_a_number": ({"vqa": [{"yes": float("nan")}]}, "the score nan of an answer is no number from 0 to 1"),
    "infinite": ({"vqa": [{"yes": float("inf")}]}, "the score inf of an answer is no number from 0 to 1"),
    "above_1": ({"vqa": [{"no": 1, "yes": 3.0}]}, "the score 3.0 of an answer is no number from 0 to 1"),
    "a_bool": ({"vqa": [{"yes": True}]}, "'labelf', category 'vqa': answers with scores were expected"),
}


@pytest.mark.parametrize(("labels", "message"), BAD.values(), ids=BAD.keys())
def test_bad_score_is_refused_with_its_item(tmp_path, labels, message):
    path = write(tmp_path, items=[OTHER, {"img_id": "1", "sentf": {"vqa": ["a"]}, "labelf": labels}])
    with pytest.raises(UserError) as error:
        source(path).open(tmp_path / "cache")
    assert str(error.value) == f"{path}, item 1: {message}; mend or remove it"
    assert stores(tmp_path / "cache") == []


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"img_id": "1", "sentf": {"vg": ["a \\ud83d"]}}]')
    with pytest.raises(UserError, match=r"item 0: category 'vg' has a text that is no valid Unicode"):
        source(path).open(tmp_path / "cache")


def test_more_words_than_starts_can_tell_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_START", 10)
    with pytest.raises(UserError, match="item 0: there are more than 10 words in all"):
        source(write(tmp_path)).open(tmp_path / "cache")


def test_more_than_columns_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 3)
    with pytest.raises(UserError, match="category 'vqa' has 4 sentences, more than 3"):
        source(write(tmp_path)).open(tmp_path / "cache")


# --- the cache


def test_a_store_is_reused(tmp_path, monkeypatch):
    path, cache = write(tmp_path), tmp_path / "cache"
    source(path).open(cache)
    assert [name.endswith(".store") for name in stores(cache)] == [True]
    monkeypatch.setattr(AnnotationSource, "build", None)
    assert list(source(path).open(cache)) == SENTENCES


def test_any_change_makes_a_new_store(tmp_path):
    path, cache = write(tmp_path), tmp_path / "cache"
    source(path).open(cache)
    changes = [
        source(write(tmp_path, "other", [ITEM])),
        source(path, words=[*WORDS, "more"]),
        source(path, answers=AnswerTable(["man", "yes", "tree"])),
        source(path, with_text=True),
        source(path, path),
    ]
    for count, changed in enumerate(changes, start=2):
        changed.open(cache)
        assert len(stores(cache)) == count


def test_changed_text_of_the_same_length_and_time_is_never_served_stale(tmp_path):
    path, cache = write(tmp_path), tmp_path / "cache"
    times = path.stat()
    assert source(path).open(cache)[0].token_ids == ids("a man")
    path.write_text(path.read_text().replace('"a man"', '"a men"'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert source(path).open(cache)[0].token_ids == ids("a men")


def test_a_file_that_changes_while_it_is_read_makes_no_store(tmp_path, monkeypatch):
    path, cache = write(tmp_path), tmp_path / "cache"
    digests = source(path).digests()
    path.write_text(path.read_text().replace("a man", "a men"))
    monkeypatch.setattr(AnnotationSource, "digests", lambda self: digests)
    with pytest.raises(UserError, match=r"train\.json changed while it was read"):
        source(path).open(cache)
    assert stores(cache) == []


def test_every_flipped_byte_is_an_error_that_names_the_file(tmp_path):
    path, cache = write(tmp_path), tmp_path / "cache"
    source(path).open(cache)
    (store,) = cache.iterdir()
    data = store.read_bytes()
    for place in range(0, len(data), 7):
        store.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(UserError) as error:
            source(path).open(cache)
        assert str(error.value).startswith(f"{store} is damaged: ")
        assert "delete it" in str(error.value)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_store_is_an_error_that_names_the_file(tmp_path, length):
    path, cache = write(tmp_path), tmp_path / "cache"
    source(path).open(cache)
    (store,) = cache.iterdir()
    store.write_bytes(store.read_bytes()[:length])
    with pytest.raises(UserError, match="is damaged: it"):
        source(path).open(cache)
    store.unlink()
    assert list(source(path).open(cache)) == SENTENCES


def test_a_store_under_another_name_is_refused(tmp_path):
    cache = tmp_path / "cache"
    source(write(tmp_path)).open(cache)
    (first,) = cache.iterdir()
    other = source(write(tmp_path, "other", [ITEM]))
    other.open(cache)
    (second,) = set(cache.iterdir()) - {first}
    shutil.copy(first, second)
    with pytest.raises(UserError, match="was made from other data"):
        other.open(cache)


def test_a_file_system_without_unnamed_files(tmp_path, monkeypatch):
    """Some network file systems: the file has a name while it is written, which a kill may leave behind."""
    real = os.open

    def refuse(path, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    path, cache = write(tmp_path), tmp_path / "cache"
    assert list(source(path).open(cache)) == SENTENCES
    (store,) = cache.iterdir()
    store.rename(store.with_suffix(".partial"))  # what a kill left
    assert list(source(path).open(cache)) == SENTENCES
    assert [name.suffix for name in cache.iterdir()] == [".store"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, capsys):
    path, cache = write(tmp_path), tmp_path / "cache"
    with small_tmpfs(cache, "1m", "ro"):
        assert list(source(path).open(cache, progress=True)) == SENTENCES
        assert list(source(path).open(cache / "below")) == SENTENCES
    assert f"{cache} can't be written (Read-only file system)" in capsys.readouterr().out


def test_a_cache_that_is_a_file_is_told(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(
        UserError, match=r"the cache folder .* can't be used \(File exists\); choose one with --cache_dir"
    ):
        source(write(tmp_path)).open(tmp_path / "cache")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    path = write(tmp_path, items=[{**ITEM, "img_id": f"image {number}"} for number in range(2000)])
    cache = tmp_path / "cache"
    with small_tmpfs(cache, "100k"):
        with pytest.raises(UserError) as error:
            source(path).open(cache)
        assert str(error.value).startswith(
            f"no space is left in {cache}, where preparing the annotations takes about 1 MB"
        )
        assert stores(cache) == []
    assert len(source(path).open(cache)) == 12000


# --- several processes

BUILDER = """
import sys
from pathlib import Path
from tests.engine.data.annotations.test_annotation_store import source
store = source(Path(sys.argv[1])).open(Path(sys.argv[2]))
print(len(store), flush=True)
"""


def start_builder(path, cache):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(path), str(cache)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """120,000 sentences: about half a second of building."""
    folder = tmp_path_factory.mktemp("large")
    return write(folder, items=[{**ITEM, "img_id": f"image {number}"} for number in range(20_000)])


def test_processes_that_need_the_same_store_build_it_once(large, tmp_path):
    builders = [start_builder(large, tmp_path / "cache") for _ in range(3)]
    assert [builder.communicate(timeout=120)[0] for builder in builders] == ["120000\n"] * 3
    assert len(stores(tmp_path / "cache")) == 1


def test_a_waiting_process_says_so(tmp_path, capsys):
    path, cache = write(tmp_path), tmp_path / "cache"
    key = source(path).key(source(path).digests())
    cache.mkdir()
    lock = cache / f"annotations-{key[:32]}.lock"
    waiting = threading.Thread(target=lambda: source(path).open(cache, progress=True))
    with module._locked(lock, progress=False):
        waiting.start()
        deadline = time.monotonic() + 10
        told = ""
        while "waiting for another process" not in told and time.monotonic() < deadline:
            time.sleep(0.02)
            told += capsys.readouterr().out
        assert waiting.is_alive()
    waiting.join(10)
    assert "waiting for another process" in told
    assert [name.endswith(".store") for name in stores(cache)] == [True]


@pytest.mark.slow
def test_a_killed_builder_leaves_nothing_and_no_lock(large, tmp_path):
    """At eight random moments. A build that ended before its kill doesn't count, and the next kills come earlier."""
    draw, before = random.Random(0), in_shared_memory()
    started = time.monotonic()
    start_builder(large, tmp_path / "timing").communicate()
    longest = time.monotonic() - started
    killed = 0
    for attempt in range(100):
        cache = tmp_path / f"cache {attempt}"
        builder = start_builder(large, cache)
        time.sleep(draw.uniform(0.3, 1.0) * longest)
        builder.kill()
        builder.communicate()
        if builder.returncode == 0:
            longest *= 0.9
            continue
        killed += 1
        # A kill between the naming of the store and the lock's removal leaves both.
        assert all(name.endswith((".store", ".lock")) for name in stores(cache))
        assert start_builder(large, cache).communicate(timeout=60)[0] == "120000\n"
        assert len([name for name in stores(cache) if name.endswith(".store")]) == 1
        if killed == 8:
            break
    assert killed == 8
    assert left_in_shared_memory(before) == set()


def read_much(store, pipe):
    draw = random.Random(1)
    for _ in range(1000):
        store.take([draw.randrange(len(store)) for _ in range(32)])
    before = own_memory()
    for _ in range(2000):
        store.take([draw.randrange(len(store)) for _ in range(32)])
        store[draw.randrange(len(store))]
    pipe.send((own_memory() - before, store[5]))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_share_the_memory_and_do_not_grow(large, tmp_path_factory, method):
    store = source(large).open(large.parent / "cache")
    store = store.select(np.ones(len(store), bool))
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=read_much, args=(store, there))
    worker.start()
    assert here.poll(60)
    growth, sentence = here.recv()
    worker.join(60)
    assert sentence == store[5]
    assert growth <= 2.0
