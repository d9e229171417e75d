"""LXMERT's annotations in the forms that other people's data have: tables, shards, a saved dataset."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def rows_of(items: Iterable[dict[str, Any]], path_of: Any = "{}.jpg".format) -> Iterator[Row]:
    """A row for each sentence of LXMERT's items, in their order, with the columns that tables usually have.

    Args:
        path_of: an image's id to its path in the table.
    """
    for item in items:
        for category, texts in item["sentf"].items():
            labels = item.get("labelf", {}).get(category)
            for number, text in enumerate(texts):
                caption, question = (text, None) if labels is None else (None, text)
                answer = None if labels is None else labels[number]
                yield {"image": path_of(item["img_id"]), "caption": caption, "question": question, "answer": answer}


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One object in each line, without the columns that a row leaves empty."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: value for name, value in row.items() if value is not None}) + "\n")


def write_csv(path: Path, rows: Iterable[Row], delimiter: str = ",") -> None:
    """Of questions, the answer with the highest score."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption", "question", "answer"], delimiter=delimiter)
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "answer": max(row["answer"], key=row["answer"].get) if row["answer"] else None})


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Answers with their scores as a mapping."""
    import pyarrow
    import pyarrow.parquet

    text, answers = pyarrow.string(), pyarrow.map_(pyarrow.string(), pyarrow.float64())
    schema = pyarrow.schema([("image", text), ("caption", text), ("question", text), ("answer", answers)])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in batches_of(rows, 1 << 14):
            columns = {
                name: [row[name] if name != "answer" or row[name] is None else list(row[name].items()) for row in batch]
                for name in schema.names
            }
            writer.write_table(pyarrow.table(columns, schema))


def write_shards(stem: Path, rows: Iterable[Row], images: Path, size: int) -> str:
    """Shards of `size` samples: each image once, with all its sentences in its .json.

    Args:
        stem: what their names begin with.
        images: what the rows' paths start from.

    Returns:
        their names, as --train takes them.
    """
    shards = 0
    for shards, batch in enumerate(batches_of(by_image(rows), size), start=1):
        with tarfile.open(f"{stem}-{shards - 1:05d}.tar", "w") as shard:
            for number, fields in enumerate(batch):
                image = images / fields.pop("image")
                key = f"{number:06d}"
                shard.add(image, f"{key}{image.suffix}", recursive=False)
                data = json.dumps(fields).encode()
                info = tarfile.TarInfo(f"{key}.json")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    return f"{stem}-{{00000..{shards - 1:05d}}}.tar"


def by_image(rows: Iterable[Row]) -> Iterator[Row]:
    """A row for each image, with lists. Rows of an image follow each other, captions before questions."""
    found: Row = {}
    for row in rows:
        if found.get("image") != row["image"]:
            if found:
                yield found
            found = {"image": row["image"], "captions": [], "questions": [], "answers": []}
        if row["caption"] is not None:
            found["captions"].append(row["caption"])
        else:
            found["questions"].append(row["question"])
            found["answers"].append(row["answer"])
    if found:
        yield found


def write_dataset(folder: Path, rows: Iterable[Row], images: Path) -> None:
    """What `datasets` saves, with the images in it, a row for each."""
    import datasets

    def generate() -> Iterator[Row]:
        for row in by_image(rows):
            path = images / row["image"]
            answers = [[{"answer": a, "score": s} for a, s in label.items()] for label in row["answers"]]
            yield {**row, "image": {"bytes": path.read_bytes(), "path": path.name}, "answers": answers}

    text, score = datasets.Value("string"), datasets.Value("float64")
    texts, answers = datasets.List(text), datasets.List(datasets.List({"answer": text, "score": score}))
    features = {"image": datasets.Image(), "captions": texts, "questions": texts, "answers": answers}
    datasets.Dataset.from_list(list(generate()), features=datasets.Features(features)).save_to_disk(folder)


def batches_of(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
