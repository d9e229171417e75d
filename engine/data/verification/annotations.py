"""What is in a split, and what is wrong with it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.commands import command
from engine.data.annotations.questions.file import QuestionId, check_unique, files_of, is_only_handed_in
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import AnnotationStore
from engine.errors import UserError

CHUNK = 1 << 15  # sentences that are hashed at a time
ALMOST_ALL = 0.99  # of what a file is said to have, about


def describe(store: AnnotationStore, source: AnnotationSource) -> dict[str, Any]:
    """Counts of a split, by part and category."""
    categories = store.category_codes
    sources, first = {}, 0
    for part, last in zip(source.parts, source.part_ends(store), strict=True):
        counts: Counter[str] = Counter()
        for code, count in zip(*np.unique(categories[first:last], return_counts=True), strict=True):
            counts[store.categories[code]] += int(count)
        sources[part.name] = dict(counts)
        first = last
    only_questions = "question_ids" in store.columns  # as in VQA's files, where those of `test` have no label
    return {
        "sentences": len(store),
        "questions": len(store) if only_questions else int(store.questions.sum()),
        "images": len(store.image_ids),
        "repeated_sentences": repeats(store, _hashes(store))[0],  # of one image; regions are often described alike
        **({"left_out": store.dropped} if store.dropped else {}),
        **({"questions_without_known_answer": unknown} if (unknown := store.label_count.unknown) else {}),
        "sources": sources,
    }


def print_split(names: str, found: dict[str, Any]) -> None:
    counts = (f"{found[name]:,} {name.replace('_', ' ')}" for name in ("sentences", "questions", "images"))
    print(f"{names}: {', '.join(counts)}, {found['repeated_sentences']:,} sentences that their image has already")
    for source, categories in found["sources"].items():
        print(f"  {source}: " + ", ".join(f"{category} {count:,}" for category, count in categories.items()))
    for reason, count in found.get("left_out", {}).items():
        print(f"  left out: {count:,} {reason}")


def sentence_problems(name: str, store: AnnotationStore, source: AnnotationSource) -> list[str]:
    """What is wrong with a split of captions and questions. A training drops answers that its table doesn't have."""
    problems = []
    repeated, example = repeats(store, store.uid_codes)
    if repeated and not any(file.repeats_images for file in source.files):
        problems.append(f"{name}: {repeated:,} sentences have the uid of another one, such as {example}")
    count = store.label_count
    share = count.unknown / max(1, int(store.questions.sum()))
    if not len(source.answers):
        return problems
    if count.unknown and not count.known:
        problems.append(f"{name}: no answer is in the answer table (the first is {count.example!r})")
    elif share > 0.5:
        problems.append(f"{name}: {share:.0%} of the questions have no answer in the answer table")
    return problems


def without_table(name: str, store: AnnotationStore, source: AnnotationSource) -> str:
    """What to say of pre-training's questions where there is no answer table; "" if there is one, or no question."""
    questions = int(store.questions.sum())
    if len(source.answers) or not questions:
        return ""
    return (
        f"{name} has {questions:,} questions, and there is no answer table: a training reads them, but learns to "
        f"answer them (--taskQA) only with one, which `{command('prepare')} answers` makes"
    )


def question_problems(name: str, store: AnnotationStore, source: AnnotationSource) -> list[str]:
    """What is wrong with a task's split: labels have only answers of the table, and all questions or none have one.

    Answers that the table lacks are no problem where the task leaves such questions out. The store doesn't say which
    answers were dropped, so the files are read again.
    """
    problems, known = [], source.answers.ids.keys()
    left_out = all(file.answered_only for file in files_of(source.parts))
    unknown, unlabelled = list[str](), list[QuestionId]()  # an answer of each label, a question
    for question in (question for file in files_of(source.parts) for question in file.questions()):
        if question.label is None:
            unlabelled.append(question.question_id)
        elif not left_out and (others := sorted(question.label.keys() - known)):
            unknown.append(others[0])
    if unknown:
        problems.append(
            f"{name}: {len(unknown):,} labels have answers that {source.answers.name} lacks, such as {unknown[0]!r}"
        )
    if 0 < len(unlabelled) < len(store):
        problems.append(
            f"{name}: {len(unlabelled):,} of {len(store):,} questions have no label, the first is {unlabelled[0]}"
        )
    return problems


def lacking(name: str, store: AnnotationStore, source: AnnotationSource) -> str:
    """What to say of a task's split that is smaller than its published files; "" if it isn't, or nobody knows."""
    whole = [(file.whole, part.name) for part in source.parts for file in files_of([part])]
    if not all(part in sizes for sizes, part in whole):
        return ""
    questions, images = (sum(sizes[part][which] for sizes, part in whole) for which in (0, 1))
    found = len(store) + sum(store.dropped.values())
    if found >= ALMOST_ALL * questions and len(store.image_ids) >= ALMOST_ALL * images:
        return ""
    return (
        f"{name} has {found:,} items and {len(store.image_ids):,} images, and as published it has about {questions:,} "
        f"and {images:,}: the file is a part of it, or of another data set"
    )


def repeated_questions(splits: Mapping[str, tuple[AnnotationStore, AnnotationSource]]) -> list[str]:
    """A problem if an id occurs twice, in one split or in two: what is scored must not be trained on."""
    alone = [name for name, (store, source) in splits.items() if is_only_handed_in(files_of(source.parts), store)]
    together = [name for name in splits if name not in alone]
    problems = list[str]()
    for names in filter(None, (together, *([name] for name in alone))):
        numbers = np.concatenate([splits[name][0].question_ids for name in names])
        files = [file for name in names for file in files_of(splits[name][1].parts)]
        try:
            check_unique(numbers, files, " and ".join(names))
        except UserError as error:
            problems.append(str(error))
    return problems


def repeats(store: AnnotationStore, keys: np.ndarray) -> tuple[int, str]:
    """How many sentences have a key that occurred before, and the uid of the first that others repeat."""
    _, firsts, counts = np.unique(keys, return_index=True, return_counts=True)
    repeated = firsts[counts > 1]
    return int((counts - 1).sum()), store[int(repeated.min())].uid if len(repeated) else ""


def _hashes(store: AnnotationStore) -> np.ndarray:
    """64 bits of each sentence's image and words: two of 10 million collide by chance once in 300,000 data sets."""
    hashes = np.empty(len(store), np.int64)
    images = store.images.tolist()
    for start in range(0, len(store), CHUNK):
        numbers = range(start, min(start + CHUNK, len(store)))
        words = store.take(numbers).token_ids
        hashes[start : start + len(words)] = [hash((images[n], ids)) for n, ids in zip(numbers, words, strict=True)]
    return hashes
