"""What data in other forms than LXMERT's cost, beside LXMERT's form of the same data, measured in one run.

    python -m engine.benchmark.data.own --json own.json

draws a synthetic data set (engine.synthetic.lxmert) and writes it as JSONL and Parquet, too. From each, it builds the
annotation store and starts a training up to the first batch. It also writes photos as files and in tar shards, and
reads an epoch of both by four workers. What is compared takes turns within one process, and medians over the rounds
count.
"""

import argparse
import gc
import itertools
import os
import shutil
import statistics
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from engine.benchmark.data.annotations import SHAPE, read_first_batch
from engine.benchmark.data.measuring import Results, in_process, median_ratio, peak_memory, restart_peak, side_by_side
from engine.benchmark.data.program import Limit, parser_of, run
from engine.benchmark.data.twin import read_items
from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.formats.lxmert import LxmertFile
from engine.data.annotations.formats.table import Columns, places_of
from engine.data.annotations.named import Part, read_names
from engine.data.annotations.source import AnnotationSource
from engine.data.images.places import image_path
from engine.data.splits import open_images, read_split
from engine.errors import UserError
from engine.progress import Bar
from engine.synthetic import tables
from engine.synthetic.lxmert import NAME, annotation_source, write_data_set, write_photos

if TYPE_CHECKING:
    from engine.data.loading import Batch
    from engine.data.waiting import TimedLoader

MILLION = 1_000_000
FORMS = {"lxmert": NAME, "jsonl": f"{{}}/{NAME}.jsonl", "parquet": f"{{}}/{NAME}.parquet"}  # as --train names them
TABLES = ("jsonl", "parquet")
WORKERS, WORKER_BATCH = 4, 8
SENTENCES_PER_PHOTO = 4

LIMITS = {
    **{f"build_ratio_{form}": Limit(">=", 0.5, items=MILLION) for form in TABLES},
    **{f"build_peak_mb_over_store_{form}": Limit("<=", 100) for form in FORMS},
    **{f"build_peak_mb_absolute_{form}": Limit("<=", 300) for form in FORMS},
    **{f"warm_start_ratio_{form}": Limit("<=", 1.2, items=MILLION) for form in TABLES},
    "shards_ratio": Limit(">=", 0.9, items=MILLION),
}

NOTES = f"""
build        from the file to an open store; `ratio` is its speed over that of LXMERT's JSON.
peak         of a process that builds one store: `over_store` is what it grows by once its packages are imported, the
             sealed copy of the store left out; `_absolute` is all of it, with Python and its packages.
warm start   from the names of the files to the first batch, with store and sizes in the cache, and with a file for
             each image, whose folders are listed; `ratio` is its time over LXMERT's.
shards       images a second that {WORKERS} workers give a training from tar shards, and `ratio` over those from files.
             Both lie in the page cache, give the same batches and take turns, an epoch each."""


def measure(options: argparse.Namespace, folder: Path) -> Results:
    """Everything, in an empty folder."""
    if find_spec("pyarrow") is None:
        raise UserError("Parquet needs a package to be written; run `pip install pyarrow`")
    data_root, cache = folder / "data", folder / "cache"
    img_ids = write_data_set(data_root, options.items, options.seed, progress=True)
    write_tables(data_root, options.items)
    results: Results = {"pyarrow": version("pyarrow")}
    results |= in_process("spawn", measure_builds, data_root, cache, options.rounds)
    for form in FORMS:
        results |= in_process("spawn", measure_memory, data_root, cache, form)
    write_small_images(data_root, img_ids)
    results |= in_process("spawn", measure_warm_starts, data_root, cache, options.rounds)
    results |= in_process("spawn", measure_shards, data_root, folder, options.images, options.seed, options.rounds)
    return results


def write_tables(data_root: Path, items: int) -> None:
    """The data set in the other forms, the Parquet file with a million rows in a group, as pyarrow writes it itself."""
    import pyarrow.parquet

    def rows() -> Bar:
        found = LxmertFile(data_root / "lxmert" / f"{NAME}.json").items()
        return Bar(tables.rows_of(found, path_of), total=items, desc="the same in other forms", unit_scale=True)

    tables.write_jsonl(data_root / f"{NAME}.jsonl", rows())
    parquet = data_root / f"{NAME}.parquet"
    tables.write_parquet(parquet, rows())
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(parquet), parquet)


def path_of(img_id: str) -> str:
    return image_path(img_id).as_posix()


def source_of(data_root: Path, form: str) -> AnnotationSource:
    """A source that reads the data set in one of the forms."""
    return replace(annotation_source(data_root), parts=parts_of(data_root, form))


def parts_of(data_root: Path, form: str) -> tuple[Part, ...]:
    return read_names(FORMS[form].format(data_root), data_root / "lxmert", columns=Columns())


def measure_builds(data_root: Path, cache: Path, rounds: int) -> Results:
    """From each form to an open store, with hashes, checksums and fsync."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the builder has one core, so the tokeniser gets one
    sources = {form: source_of(data_root, form) for form in FORMS}
    sentences = {form: build(source, cache) for form, source in sources.items()}  # also imports what it needs
    if len(set(sentences.values())) > 1:
        raise AssertionError(f"the forms give different numbers of sentences: {sentences}")
    seconds = side_by_side({form: partial(build, source, cache) for form, source in sources.items()}, rounds, "build")
    return {
        **{f"build_items_per_second_{form}": sentences[form] / statistics.median(seconds[form]) for form in FORMS},
        **{f"build_ratio_{form}": median_ratio(seconds["lxmert"], seconds[form]) for form in TABLES},
    }


def build(source: AnnotationSource, cache: Path) -> int:
    """A store in an empty cache; returns how many sentences it holds."""
    shutil.rmtree(cache, ignore_errors=True)
    return len(source.open(cache))


def measure_memory(data_root: Path, cache: Path, form: str) -> Results:
    """Peak memory of building a store, in a process that has built none."""
    if form == "parquet":
        import pyarrow.parquet  # noqa: F401  # before the memory is looked at, so that growth is the builder's
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    source = source_of(data_root, form)
    gc.collect()
    restart_peak()
    before = peak_memory()
    build(source, cache)
    return {
        f"build_peak_mb_over_store_{form}": peak_memory() - before,
        f"build_peak_mb_absolute_{form}": peak_memory(),
    }


def write_small_images(data_root: Path, img_ids: list[str]) -> None:
    """A grey file for each image, of the size that the data set's file of sizes tells."""
    files = []
    for size in ((640, 480), (480, 640)):
        path = data_root / "grey.jpg"
        Image.new("L", size, 128).save(path)
        files.append(path.read_bytes())
    for number, img_id in enumerate(Bar(img_ids, desc="small images", unit="image")):
        path = data_root / image_path(img_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[number % 2])


def measure_warm_starts(data_root: Path, cache: Path, rounds: int) -> Results:
    """What launch/pretrain.py does with the data of each form, from reading the names up to the first batch."""
    encoder = annotation_source(data_root).encoder

    def start(form: str) -> "Batch":
        answers = AnswerTable.read(data_root / "lxmert" / "all_ans.json")
        source = AnnotationSource(parts_of(data_root, form), encoder, answers)
        images = open_images(data_root, None, SHAPE, "pillow", places_of(source.files))
        return read_first_batch(source, images, cache)

    first = {form: start(form) for form in FORMS}  # fills the cache
    for form in TABLES:
        check_same(first[form], first["lxmert"], form)
    seconds = side_by_side({form: partial(start, form) for form in FORMS}, rounds, "warm start")
    return {
        **{f"warm_start_seconds_{form}": statistics.median(times) for form, times in seconds.items()},
        **{f"warm_start_ratio_{form}": median_ratio(seconds[form], seconds["lxmert"]) for form in TABLES},
    }


def measure_shards(data_root: Path, folder: Path, count: int, seed: int, rounds: int) -> Results:
    """Images per second of a training's loader, from files and from tar shards of the same photos."""
    import torch

    from engine.data.loading import training_loader
    from engine.tasks.pretraining import PretrainingDataset, PretrainingOptions

    torch.set_num_threads(1)
    encoder = annotation_source(data_root).encoder
    own = folder / "own"
    names = {"files": f"{own}/own.jsonl", "shards": write_own(data_root, own, count, seed)}

    def loader_of(form: str) -> "TimedLoader[Batch]":
        parts = read_names(names[form], own, columns=Columns())
        source = AnnotationSource(parts, encoder, AnswerTable([]))
        images = open_images(own, None, SHAPE, "pillow", places_of(source.files))
        split = read_split(source, images, folder / "cache")
        dataset = PretrainingDataset(split, images, encoder.vocabulary, PretrainingOptions())
        return training_loader(
            dataset, WORKER_BATCH, accumulation=1, num_workers=WORKERS, rank=0, world_size=1, same_order=True
        )

    loaders = {form: loader_of(form) for form in names}
    for ours, theirs in zip(*loaders.values(), strict=True):
        check_same(ours, theirs, "shards")
    seconds = side_by_side({form: partial(read_epoch, loader) for form, loader in loaders.items()}, rounds, "shards")
    images = WORKER_BATCH * len(loaders["files"])
    return {
        **{f"images_per_second_{form}": images / statistics.median(times) for form, times in seconds.items()},
        "shards_ratio": median_ratio(seconds["files"], seconds["shards"]),
    }


def write_own(data_root: Path, folder: Path, count: int, seed: int) -> str:
    """Photos with a table of captions, and the same in shards, whose names it returns as --train takes them."""
    drawn = read_items(annotation_source(data_root))
    texts = [item.sent for item in itertools.islice(drawn, SENTENCES_PER_PHOTO * count)]
    items = [
        {"img_id": img_id, "sentf": {"own": texts[number::count]}}
        for number, img_id in enumerate(write_photos(folder, count, seed))
    ]
    tables.write_jsonl(folder / "own.jsonl", tables.rows_of(items, path_of))
    return tables.write_shards(folder / "own", tables.rows_of(items, path_of), folder, max(1, count // 4))


def read_epoch(loader: "TimedLoader[Batch]") -> None:
    for _ in loader:
        pass


def check_same(ours: "Batch", theirs: "Batch", form: str) -> None:
    """No speed claim on a red test: raises AssertionError unless two forms give the same batch."""
    import torch

    for name, tensor in theirs.inputs.items():
        if not torch.equal(ours.inputs[name], tensor):
            raise AssertionError(f"{name} of a batch differs between {form} and what it is compared with")


def bytes_needed(options: argparse.Namespace) -> int:
    return 700 * options.items + 500_000 * options.images


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("engine.benchmark.data.own", __doc__ or "", items=MILLION, images=256)
    run(parser, argv, measure, bytes_needed, LIMITS, NOTES)


if __name__ == "__main__":
    main()
