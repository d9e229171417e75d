import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lmdb
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import pytest
from PIL import Image

from engine.data.images import lmdb_store, writer
from engine.data.images.decoding import ImageShape, UnreadableImage
from engine.data.images.folder import ImageFolder
from engine.data.images.lmdb_store import ImageStore
from engine.data.images.places import image_path
from engine.data.images.records import FORMAT_KEY, image_of, pack
from engine.data.images.writer import StoreSummary, write_image_store
from engine.errors import UserError
from tests.conftest import environment, small_tmpfs
from tests.engine.data.images.test_images import noise, save, smooth, write_sizes

SHAPE = ImageShape(96, 160)
SIZES = {"1": (320, 240), "2": (240, 320), "3": (1001, 1000), "4": (96, 96), "5": (80, 60), "6": (1407, 107)}
BUILD = "build it with `python launch/prepare.py images`"


@pytest.fixture
def data_root(tmp_path):
    for img_id, size in SIZES.items():
        save(tmp_path, img_id, size, draw=smooth)
    return tmp_path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    for opened in list(lmdb_store._environments):
        lmdb_store.release(opened)


def write(path, data_root, img_ids=SIZES, *, resize=None, quality=95, workers=0):
    return write_image_store(path, img_ids, data_root, resize=resize, quality=quality, workers=workers, progress=False)


def write_foreign(path, records, **options):
    """An LMDB of another program: values by image id."""
    with lmdb.open(str(path), map_size=1 << 26, **options) as environment, environment.begin(write=True) as transaction:
        for img_id, value in records.items():
            transaction.put(img_id.encode(), value)


def change(path, key, value):
    with lmdb.open(str(path), max_dbs=1) as environment, environment.begin(write=True) as transaction:
        transaction.put(key, value)


def values(path):
    with lmdb.open(str(path), readonly=True) as environment, environment.begin() as transaction:
        return {key: value for key, value in transaction.cursor() if not key.startswith(b"__")}


def jpeg(size=(40, 30)):
    buffer = io.BytesIO()
    smooth(size).save(buffer, "JPEG")
    return buffer.getvalue()


# What is written, and its pixels


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("orient_after_resize", [False, True])
def test_unresized_images_have_the_folders_pixels(data_root, path, decoder, orient_after_resize):
    shape = ImageShape(96, 160, orient_after_resize)
    write(path, data_root)
    store, folder = ImageStore(path, data_root, shape, decoder), ImageFolder(data_root, shape, decoder)
    for img_id in SIZES:
        assert np.array_equal(store.load(img_id), folder.load(img_id))


def test_unresized_records_are_the_files_bytes_in_the_known_framing(data_root, path):
    save(data_root, "7", (30, 20), format="PNG")
    write(path, data_root, [*SIZES, "7"])
    for key, value in values(path).items():
        record = msgpack_numpy.unpackb(lz4.frame.decompress(value))
        assert record["jpeg"] == (data_root / image_path(key.decode())).read_bytes()
        assert record["size"] == list(SIZES.get(key.decode(), (30, 20)))


def quantisation_error(record):
    """RMS error, in levels, that rounding the coefficients of a grey JPEG may leave in its pixels: half a step of the
    table for each, and the transform is orthonormal (Parseval)."""
    with Image.open(io.BytesIO(record)) as image:
        return float(np.sqrt(np.mean(np.square(np.array(image.quantization[0]) / 2))))


@pytest.mark.parametrize("orient_after_resize", [False, True])
def test_resized_images_have_the_folders_pixels_but_for_the_loss_of_jpeg(data_root, path, orient_after_resize):
    """Grey images: the chroma of 128 is kept exactly. Rounding to levels before and after adds 0.5 each. The bound is
    about 4.5, while image 4, which keeps its size, would be 11 off if it lay one pixel aside."""
    shape = ImageShape(96, 160, orient_after_resize)
    write(path, data_root, resize=(96, 160))
    store, folder = ImageStore(path, data_root, shape), ImageFolder(data_root, shape)
    stored = values(path)
    for img_id in ("1", "2", "3", "4"):  # whose sizes in the store are multiples of JPEG's 8 x 8 blocks
        ours, exact = store.load(img_id), folder.load(img_id)
        assert ours.shape == exact.shape
        bound = quantisation_error(image_of(stored[img_id.encode()]).image) + 1
        assert bound < 6
        inside = exact.max(axis=0) > 0  # the loss is the image's, the border has none
        assert np.all(ours[:, ~inside] == 0)
        assert np.sqrt(np.mean(np.square(ours[:, inside].astype(float) - exact[:, inside]))) <= bound


def test_resized_records_are_jpegs_of_the_resized_image_with_the_original_size(data_root, path):
    write(path, data_root, resize=(96, 160), quality=80)
    for key, value in values(path).items():
        record, original, is_own = image_of(value)
        assert not is_own
        assert original == SIZES[key.decode()]
        size = writer.placement(original, 96, 160)[0]
        with Image.open(data_root / image_path(key.decode())) as image:
            buffer = io.BytesIO()
            image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
        assert record == buffer.getvalue()


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_resized_images_are_not_resized_again(data_root, path, decoder, monkeypatch):
    write(path, data_root, resize=(96, 160))
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("resized again"))
    monkeypatch.setattr("torch.nn.functional.interpolate", lambda *_, **__: pytest.fail("resized again"))
    store = ImageStore(path, data_root, SHAPE, decoder)
    for img_id in SIZES:
        assert store.load(img_id).any()


def test_almost_square_landscape_lies_on_the_canvas_of_its_group(data_root, path):
    write(path, data_root, resize=(96, 160))
    assert ImageStore(path, data_root, SHAPE).load("3").shape == (3, 96, 160)
    assert ImageStore(path, data_root, ImageShape(96, 160, True)).load("3").shape == (3, 160, 96)


# The index


@pytest.mark.parametrize("resize", [None, (96, 160)])
def test_sizes_are_the_originals_and_need_neither_records_nor_files(data_root, path, resize):
    write(path, data_root, resize=resize)
    for img_id in SIZES:
        change(path, img_id.encode(), b"damaged")
        (data_root / image_path(img_id)).unlink()
    store = ImageStore(path, data_root, SHAPE)
    sizes = store.sizes([*reversed(SIZES), "absent", ""])
    assert sizes.dtype == np.int32
    assert sizes.tolist() == [*(list(size) for size in reversed(SIZES.values())), [1, 1], [1, 1]]
    assert store.sizes([]).shape == (0, 2)


def test_missing_images_are_named_in_order(data_root, path):
    write(path, data_root, ["1", "2"])
    store = ImageStore(path, data_root, SHAPE)
    odd = ["", "x" * 600, "__clipvil__", "__clipvil_sizes__"]
    assert store.missing(["9", "1", *odd, "8", "2"]) == ["9", *odd, "8"]
    with pytest.raises(UnreadableImage, match="no such record"):
        store.load("__clipvil__")


# Processes


def load_elsewhere(source, pipe):
    pixels = source.load("1")
    owners = {owner for owner, _ in lmdb_store._environments.values()}
    pipe.send((pixels, owners == {os.getpid()}))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_open_the_store_for_themselves(data_root, path, method):
    write(path, data_root)
    source = ImageStore(path, data_root, SHAPE)
    expected = source.load("1")  # open in this process from now on, as with --num_workers 0
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=load_elsewhere, args=(source, theirs))
    child.start()
    theirs.close()
    pixels, own = ours.recv()
    child.join()
    assert own
    assert np.array_equal(pixels, expected)
    assert np.array_equal(source.load("1"), expected)


def test_nothing_is_open_when_workers_are_forked(data_root, path):
    write(path, data_root)
    source = ImageStore(path, data_root, SHAPE)
    source.missing(SIZES)
    source.sizes(list(SIZES))
    assert lmdb_store._environments == {}


def test_two_sources_share_a_store_in_one_process(data_root, path):
    write(path, data_root)
    first, second = ImageStore(path, data_root, SHAPE), ImageStore(path / ".." / "store", data_root, SHAPE)
    assert np.array_equal(first.load("1"), second.load("1"))
    assert second.missing(["1"]) == []
    assert first.load("1").shape == (3, 96, 160)


def test_source_is_small_to_pickle_and_says_what_it_is(data_root, path):
    write(path, data_root)
    source = ImageStore(path, data_root, SHAPE)
    expected = source.load("1")
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled).load("1"), expected)
    assert str(source) == f"the image store {path}"


# Records of other programs


def array(pixels, **options):
    return lz4.frame.compress(msgpack.packb(pixels, default=msgpack_numpy.encode, **options))


PIXELS = np.asarray(noise((40, 30)))
PNG = io.BytesIO()
noise((40, 30)).save(PNG, "PNG")
FOREIGN = {
    "jpeg": jpeg(),
    "png": PNG.getvalue(),
    "packed_bytes": array(PNG.getvalue()),
    "packed_bytes_as_text": array(PNG.getvalue(), use_bin_type=False),
    "array": array(PIXELS),
    "array_as_text": array(PIXELS, use_bin_type=False),
    "array_not_contiguous": array(np.ascontiguousarray(PIXELS.transpose(1, 0, 2)).transpose(1, 0, 2)),
    "flat_array_of_a_file": array(np.frombuffer(PNG.getvalue(), dtype=np.uint8)),
    "column_of_a_file": array(np.frombuffer(PNG.getvalue(), dtype=np.uint8)[:, None]),
    "mapping_of_an_array": array({"image": PIXELS, "boxes": np.ones((2, 4), dtype=np.float16), "n": np.int64(3)}),
    "mapping_by_bytes": array({b"img": PNG.getvalue()}),
    "mapping_by_text": array({"jpeg": PNG.getvalue()}),
    "size_not_told_in_the_frame": lz4.frame.compress(msgpack.packb(PNG.getvalue()), store_size=False),
}


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_records_are_read(tmp_path, path, kind, decoder):
    write_foreign(path, {"1": FOREIGN[kind]})
    file = tmp_path / image_path("1")
    file.parent.mkdir(parents=True)
    file.write_bytes(jpeg() if kind == "jpeg" else PNG.getvalue())
    store = ImageStore(path, tmp_path, SHAPE, decoder)
    assert np.array_equal(store.load("1"), ImageFolder(tmp_path, SHAPE, decoder).load("1"))
    assert store.sizes(["1"]).tolist() == [[40, 30]]
    assert store.missing(["1", "2"]) == ["2"]


def test_foreign_store_may_be_a_single_file(tmp_path, path):
    write_foreign(path, {"1": FOREIGN["array"]}, subdir=False)
    assert ImageStore(path, tmp_path, SHAPE).load("1").shape == (3, 96, 160)


def test_foreign_sizes_are_the_recorded_ones_else_those_of_the_records(tmp_path, path):
    write_foreign(path, {"1": FOREIGN["array"], "2": FOREIGN["jpeg"], "3": b"damaged", "4": FOREIGN["array"]})
    write_sizes(tmp_path, {f"data/{image_path('4').as_posix()}": [480, 640]})
    sizes = ImageStore(path, tmp_path, SHAPE).sizes(["4", "3", "1", "2", "absent"])
    assert sizes.tolist() == [[640, 480], [1, 1], [40, 30], [40, 30], [1, 1]]


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("options", [{}, {"use_bin_type": False}], ids=["bytes", "text"])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: {"image": data}], ids=["bare", "in_a_mapping"])
def test_pickled_objects_are_refused_and_never_loaded(tmp_path, path, wrap, options):
    file = tmp_path / "made by the record"
    value = array(wrap(np.array([Hostile(file)], dtype=object)), **options)
    write_foreign(path, {"1": value})
    store = ImageStore(path, tmp_path, SHAPE)
    with pytest.raises(UnreadableImage, match="only plain numbers are read"):
        store.load("1")
    assert store.sizes(["1"]).tolist() == [[1, 1]]
    assert not file.exists()
    with contextlib.suppress(Exception):  # the record is as bad as it should be, in a reader that trusts it
        msgpack_numpy.unpackb(lz4.frame.decompress(value), raw=True)
    assert file.exists()


def numpy_record(**fields):
    whole = {b"nd": True, b"type": "|u1", b"kind": b"", b"shape": [2, 2, 3], b"data": bytes(12)}
    mapping = {**whole, **{key.encode(): value for key, value in fields.items()}}
    return lz4.frame.compress(msgpack.packb({key: value for key, value in mapping.items() if value is not None}))


FRAME = pack({"jpeg": jpeg(), "size": [40, 30]})


DAMAGED = {
    "cut_off": (FRAME[: len(FRAME) // 2], "cut off"),
    "beginning_of_a_frame": (FRAME[:5], "damaged"),
    "one_bit_changed": (FRAME[:300] + bytes([FRAME[300] ^ 1]) + FRAME[301:], "damaged"),
    "msgpack_cut_off": (lz4.frame.compress(msgpack.packb(jpeg())[:-9]), "incomplete"),
    "no_msgpack": (lz4.frame.compress(b"\xc1"), "damaged"),
    "msgpack_with_more_behind": (lz4.frame.compress(msgpack.packb(1) * 2), "extra"),
    "image_cut_off": (array({"jpeg": jpeg()[:200], "size": [40, 30]}), "truncated|cannot identify"),
    "size_of_one_number": (array({"jpeg": jpeg(), "size": [40]}), "size is"),
    "size_of_nothing": (array({"jpeg": jpeg(), "size": [40, 0]}), "size is"),
    "no_field_of_an_image": (array({"caption": b"no image"}), "no image"),
    "number": (array(3), "no image"),
    "floats": (array(PIXELS.astype(np.float32)), "found float32"),
    "grey_array": (array(PIXELS[..., 0]), r"found uint8 \(30, 40\)"),
    "empty_array": (array(PIXELS[:0]), "no image|cannot identify"),
    "complex_number": (array({"image": 1j}), "only plain numbers"),
    "structured_array": (array(np.zeros(2, dtype="i4,f4")), "only plain numbers"),
    "pickle_kind": (numpy_record(kind=b"O"), "only plain numbers"),
    "pickle_kind_as_text": (numpy_record(kind="O"), "only plain numbers"),
    "object_type": (numpy_record(type="|O"), "only plain numbers"),
    "list_of_types": (numpy_record(type=["|u1"]), "only plain numbers"),
    "too_large_a_shape": (numpy_record(shape=[1 << 20, 1 << 20, 3]), "."),
    "negative_shape": (numpy_record(shape=[-1, -1, 3]), "."),
    "shape_of_text": (numpy_record(shape=["a"]), "."),
    "shape_beyond_int64": (numpy_record(shape=[1 << 63, 1, 3]), "."),
    "no_shape": (numpy_record(shape=None), "no image"),
    "no_data": (numpy_record(data=None), "no image"),
    "empty": (b"", "cannot identify"),
    "no_image": (b"<html>", "cannot identify"),
}


@pytest.mark.parametrize(("value", "why"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_record_is_named_with_the_reason(tmp_path, path, value, why):
    write_foreign(path, {"1": value})
    store = ImageStore(path, tmp_path, SHAPE)
    with pytest.raises(UnreadableImage, match=f"(?i){why}") as error:
        store.load("1")
    assert str(error.value).startswith(f"{path}, key 1: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("store_size", [True, False])
def test_record_that_would_fill_the_memory_is_refused(tmp_path, path, store_size, monkeypatch):
    monkeypatch.setattr("engine.data.images.records.LARGEST_RECORD", 1 << 20)
    fits, bomb = (msgpack.packb({"jpeg": jpeg(), "x": bytes(size)}) for size in (1 << 19, 1 << 20))
    records = {key: lz4.frame.compress(data, store_size=store_size) for key, data in {"1": fits, "2": bomb}.items()}
    write_foreign(path, records)
    store = ImageStore(path, tmp_path, SHAPE)
    assert store.load("1").shape == (3, 96, 160)
    with pytest.raises(UnreadableImage, match="larger than 1 MiB"):
        store.load("2")


# Stores that can't be used


def lacks(path, data_root):
    pass


def is_an_empty_folder(path, data_root):
    path.mkdir()


def is_an_empty_file(path, data_root):
    path.touch()


def has_an_empty_file(path, data_root):
    path.mkdir()
    (path / "data.mdb").touch()


def is_no_lmdb(path, data_root):
    path.write_bytes(b"no lmdb " * 2000)


def is_a_bit_of_one(path, data_root):
    write(path, data_root)
    os.truncate(path / "data.mdb", 1000)


def is_cut_in_half(path, data_root):
    write(path, data_root)
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size // 2)


def lacks_its_last_byte(path, data_root):
    write(path, data_root)
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size - 1)


def has_no_record(path, data_root):
    write_foreign(path, {})


def has_no_image(path, data_root):
    write(path, data_root, [])


def is_of_the_future(path, data_root):
    write(path, data_root)
    change(path, FORMAT_KEY, pack({"version": 99, "resize": None, "quality": None}))


def has_a_damaged_format(path, data_root):
    write(path, data_root)
    change(path, FORMAT_KEY, pack([1, 2]))


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lacks, "can't be read (No such file or directory)"),
        (is_an_empty_folder, "can't be read (No such file or directory)"),
        (is_an_empty_file, "is empty"),
        (has_an_empty_file, "is empty"),
        (is_no_lmdb, "can't be read (File is not an LMDB file)"),
        (is_a_bit_of_one, "can't be read"),
        (is_cut_in_half, "is cut off"),
        (lacks_its_last_byte, "is cut off"),
        (has_no_record, "holds no image"),
        (has_no_image, "holds no image"),
        (is_of_the_future, "has format 99, and this program reads 1"),
        (has_a_damaged_format, "is damaged"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_store_that_cannot_be_used_is_told_in_one_line(data_root, path, break_it, why):
    break_it(path, data_root)
    with pytest.raises(UserError) as error:
        ImageStore(path, data_root, SHAPE)
    assert str(error.value).startswith(f"the image store {path} {why}")
    assert str(error.value).endswith(BUILD)
    assert "\n" not in str(error.value)


def test_store_of_another_size_is_refused_with_the_flags(data_root, path):
    write(path, data_root, resize=(96, 160))
    with pytest.raises(UserError) as error:
        ImageStore(path, data_root, ImageShape(384, 640))
    assert str(error.value) == (
        f"the image store {path} holds images of 96 x 160, but --image_size_min 384 --image_size_max 640 was asked "
        "for; give --image_size_min 96 --image_size_max 160, or build another store"
    )


def test_missing_simplejpeg_is_told(data_root, path, monkeypatch):
    write(path, data_root)
    monkeypatch.setattr("engine.data.images.decoding.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install simplejpeg"):
        ImageStore(path, data_root, SHAPE, "simplejpeg")


# Writing


@pytest.mark.parametrize("workers", [0, 2])
def test_summary_tells_what_was_done(data_root, path, workers):
    broken = data_root / image_path("2")
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    first = write(path, data_root, [*SIZES, "1", "absent", "x" * 600], workers=workers)
    assert (first.written, first.skipped_existing) == (5, 0)
    assert first.bytes == sum(map(len, values(path).values()))
    assert [problem.partition(": ")[0] for problem in first.unreadable] == [
        str(data_root / image_path(img_id)) for img_id in ("2", "absent", "x" * 600)
    ]
    assert "truncated" in first.unreadable[0]
    assert "No such file" in first.unreadable[1]
    assert "can't be a key" in first.unreadable[2]

    store = ImageStore(path, data_root, SHAPE)
    assert store.missing(SIZES) == ["2"]
    broken.write_bytes(whole)
    again = write(path, data_root, workers=workers)
    assert (again.written, again.skipped_existing, again.unreadable) == (1, 5, [])
    assert store.missing(SIZES) == []
    assert store.sizes(list(SIZES)).tolist() == [list(size) for size in SIZES.values()]
    assert write(path, data_root, workers=workers) == StoreSummary(0, 6, [], 0)


@pytest.mark.parametrize("cut", [lambda data: data[: len(data) // 2], lambda data: b"no image"])
def test_damaged_images_are_left_out_of_a_resized_store_too(data_root, path, cut):
    broken = data_root / image_path("2")
    broken.write_bytes(cut(broken.read_bytes()))
    assert len(write(path, data_root, resize=(96, 160)).unreadable) == 1
    assert ImageStore(path, data_root, SHAPE).missing(SIZES) == ["2"]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"resize": (96, 160), "quality": 90}, "images resized to 96x160 at quality 90"),
        ({"resize": (96, 128), "quality": 95}, "images resized to 96x128 at quality 95"),
        ({"resize": None}, "images as they are"),
    ],
)
def test_store_is_not_completed_with_other_images(data_root, path, options, asked):
    write(path, data_root, ["1"], resize=(96, 160))
    with pytest.raises(UserError) as error:
        write(path, data_root, **options)
    assert str(error.value) == (
        f"the image store {path} holds images resized to 96x160 at quality 95, but {asked} were asked for; "
        "give the same --resize and --quality, or name another folder"
    )
    assert ImageStore(path, data_root, SHAPE).missing(SIZES) == list(SIZES)[1:]


def test_quality_does_not_matter_without_resizing(data_root, path):
    write(path, data_root, ["1"], quality=95)
    assert write(path, data_root, quality=80).skipped_existing == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"quality": 0}, "--quality 0"),
        ({"quality": 101}, "--quality 101"),
        ({"resize": (640, 384)}, "--resize 640x384"),
        ({"resize": (0, 384)}, "--resize 0x384"),
        ({"workers": -1}, "--workers -1"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(data_root, path, options, why):
    with pytest.raises(UserError, match=why):
        write(path, data_root, **options)
    assert not path.exists()


def test_other_programs_stores_and_files_are_not_written_to(data_root, path):
    write_foreign(path, {"1": b"precious"})
    with pytest.raises(UserError, match="another program's LMDB"):
        write(path, data_root)
    assert values(path) == {b"1": b"precious"}
    (data_root / "file").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"can't be made \(File exists\)"):
        write(data_root / "file", data_root)


def test_damaged_store_is_not_written_to(data_root, path):
    is_cut_in_half(path, data_root)
    with pytest.raises(UserError, match="is cut off"):
        write(path, data_root)


def test_interrupted_creation_is_taken_up(data_root, path):
    write_foreign(path, {})  # what a writer leaves that was killed before its first transaction
    assert write(path, data_root).written == len(SIZES)


def test_map_grows(data_root, path, monkeypatch):
    monkeypatch.setattr(writer, "FIRST_MAP_SIZE", 1 << 16)
    monkeypatch.setattr(writer, "COMMIT_RECORDS", 2)
    for img_id in SIZES:
        save(data_root, img_id, (200, 200))
    write(path, data_root)
    assert (path / "data.mdb").stat().st_size > 1 << 17
    store, folder = ImageStore(path, data_root, SHAPE), ImageFolder(data_root, SHAPE)
    for img_id in SIZES:
        assert np.array_equal(store.load(img_id), folder.load(img_id))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    with small_tmpfs(tmp_path / "disk", "2m"):
        yield tmp_path / "disk"
        for opened in list(lmdb_store._environments):
            lmdb_store.release(opened)


def test_full_disk_is_told_and_what_was_stored_stays(data_root, small_disk, monkeypatch):
    monkeypatch.setattr(writer, "COMMIT_RECORDS", 2)
    img_ids = [str(number) for number in range(10, 40)]
    for img_id in img_ids:
        save(data_root, img_id, (400, 400))
    path = small_disk / "store"
    with pytest.raises(UserError, match=r"can't be written \(.*; \d+ MB of its disk are free\); make room") as error:
        write(path, data_root, img_ids)
    assert "\n" not in str(error.value)
    store, folder = ImageStore(path, data_root, SHAPE), ImageFolder(data_root, SHAPE)
    missing = store.missing(img_ids)
    assert 0 < len(missing) < len(img_ids)
    for img_id in set(img_ids) - set(missing):
        assert np.array_equal(store.load(img_id), folder.load(img_id))
    lmdb_store.release(path)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert write(path, data_root, img_ids).written == len(missing)


def test_killed_worker_is_told(data_root, path):
    def kill_first_child():
        while not multiprocessing.active_children():
            time.sleep(0.005)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_first_child)
    killer.start()
    with pytest.raises(UserError, match=r"ended with code -9 \(-9: killed, .*fewer --workers"):
        write(path, data_root, workers=1)
    killer.join()
    assert multiprocessing.active_children() == []


WRITER = """
import sys, time
from pathlib import Path
from engine.data.images import writer

commit = writer._Writer.commit
commits = 0

def third_does_not_end(writer):
    global commits
    commits += 1
    if commits < 3:
        return commit(writer)
    with writer.environment.begin(write=True) as transaction:
        for image in writer.pending[:2]:
            transaction.put(image.key, image.record)
        print("writing", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    writer.COMMIT_RECORDS = 3
    writer._Writer.commit = third_does_not_end
    path, data_root, ids = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
    try:
        writer.write_image_store(path, ids, data_root, resize=None, quality=95, workers=2, progress=False)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl_c"])
def test_ended_writer_leaves_a_readable_store_and_no_process(data_root, path, ending):
    img_ids = [str(number) for number in range(10, 40)]
    for img_id in img_ids:
        save(data_root, img_id, (256, 256))  # 60 KB: the workers wait at their pipes
    script = data_root / "writer.py"
    script.write_text(WRITER)
    writer = subprocess.Popen(
        [sys.executable, script, path, data_root, ",".join(img_ids)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert writer.stdout.readline() == "writing\n"
    children = Path(f"/proc/{writer.pid}/task/{writer.pid}/children").read_text().split()
    assert len(children) >= 2
    if ending == signal.SIGINT:
        os.killpg(writer.pid, ending)  # what a terminal does
    else:
        writer.kill()
    _, errors = writer.communicate(timeout=20)  # ends when the last process has closed its stderr
    assert writer.returncode == (130 if ending == signal.SIGINT else -ending)
    assert errors == ""
    deadline = time.monotonic() + 10
    while any(running(pid) for pid in children):
        assert time.monotonic() < deadline, "a worker outlived its writer"
        time.sleep(0.02)

    store, folder = ImageStore(path, data_root, SHAPE), ImageFolder(data_root, SHAPE)
    missing = store.missing(img_ids)
    assert len(missing) == len(img_ids) - 6
    assert {key.decode() for key in values(path)} == set(img_ids) - set(missing)
    summary = write(path, data_root, img_ids)
    assert (summary.written, summary.skipped_existing) == (len(missing), 6)
    assert store.sizes(img_ids).tolist() == [[256, 256]] * len(img_ids)
    for img_id in img_ids:
        assert np.array_equal(store.load(img_id), folder.load(img_id))


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
