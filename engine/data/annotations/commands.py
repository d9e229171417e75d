"""prepare.py annotations: the stores that trainings open. prepare.py answers: an answer table, where there is none."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from engine.configuration.tables import AnswersConfig
from engine.data.annotations.answers import AnswerTable, normalise_answer
from engine.data.annotations.formats.file import AnnotationFile, Texts
from engine.data.annotations.named import Part, columns_of, read_answers, read_names
from engine.data.annotations.questions.named import QUESTION_FILES
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.preparation import AnnotationFilesConfig, QuestionFilesConfig, Summary
from engine.errors import UserError
from engine.files import write_json
from engine.progress import Bar


@dataclass
class PrepareAnnotations(AnswersConfig, QuestionFilesConfig):
    """Build the annotation stores that trainings and predictions with these files open."""

    bert: str = HfArg(default="bert-base-uncased", help="folder or hub name; gives the vocabulary")
    do_lower_case: bool | None = HfArg(default=None, help="as in training")
    cache_dir: str | None = HfArg(default=None, help="folder for prepared annotations; DATA_ROOT/cache if not given")
    with_text: bool = HfArg(default=False, help="a second store that keeps the sentences themselves, too")


@dataclass
class PrepareAnswers(AnnotationFilesConfig):
    """Make an answer table of the answers that the annotations give often enough."""

    min_count: int = HfArg(default=9, help="questions that an answer has to occur with")
    output: str | None = HfArg(default=None, help="file to write; DATA_ROOT/lxmert/all_ans.json if not given")
    force: bool = HfArg(default=False, help="replace a table that is there")


def prepare_annotations(config: PrepareAnnotations) -> Summary:
    """The store of each split, with what is in it."""
    summary = {}
    for name, source in annotation_sources(config).items():
        store = source.open(cache_folder(config), progress=True)
        summary[name] = {
            "sentences": len(store),
            "images": len(store.image_ids),
            "bytes": store.columns.nbytes,
            "bytes_per_sentence": round(store.columns.nbytes / max(1, len(store)), 1),
        }
        print("{}: {sentences:,} sentences, {images:,} images, {bytes:,} bytes".format(name, **summary[name]))
    return {"stores": summary}


def annotation_sources(config: PrepareAnnotations) -> dict[str, AnnotationSource]:
    """What the stores are made of, by split."""
    from engine.configuration.bert import read_bert  # brings transformers' tokenisers, which takes seconds

    tables = {folder: _answer_table(config, folder) for folder, splits in config.splits.items() if splits}
    encoder = TextEncoder(read_bert(config.bert, config.do_lower_case)[1])
    return {
        name: AnnotationSource(parts, encoder, tables[folder], config.with_text)
        for name, (folder, parts) in split_parts(config).items()
    }


def _answer_table(config: PrepareAnnotations, folder: str) -> AnswerTable:
    if folder in QUESTION_FILES:
        return QUESTION_FILES[folder].answers(Path(config.data_root))
    return read_answers(config, Path(config.data_root, folder), ",".join(names for names, _ in config.splits[folder]))


def split_parts(config: AnnotationFilesConfig) -> dict[str, tuple[str, tuple[Part, ...]]]:
    """Folder and parts of each split. Those of a task are called like vqa/NAMES: data/lxmert/ may have the same names.

    Two splits of one table are TABLE and TABLE (valid).
    """
    found: dict[str, tuple[str, tuple[Part, ...]]] = {}
    for folder, splits in config.splits.items():
        for names, split in splits:
            if folder in QUESTION_FILES:
                found[f"{folder}/{names}"] = folder, QUESTION_FILES[folder].parts(names, Path(config.data_root))
            else:
                name = f"{names} ({split})" if names in found else names
                path, columns = Path(config.data_root, folder), columns_of(config)
                found[name] = folder, read_names(names, path, columns=columns, split=split)
    return found


def cache_folder(config: PrepareAnnotations) -> Path:
    return Path(config.cache_dir or Path(config.data_root) / "cache")


def read_texts(config: AnnotationFilesConfig) -> Iterator[Texts]:
    """All sentences of all splits, file by file, with progress."""
    for file in annotation_files_of(config):
        with Bar(total=file.size(), desc=f"reading {file.path.stem}", unit="B", unit_scale=True) as bar:
            yield from file.texts(bar)


def annotation_files_of(config: AnnotationFilesConfig) -> list[AnnotationFile]:
    """All files of all splits, each once."""
    files = (file for _, parts in split_parts(config).values() for part in parts for file in part.files)
    return list({(file.path, *map(str, file.identity)): file for file in files}.values())


def prepare_answers(config: PrepareAnswers) -> Summary:
    """[{"ans": answer, "dsets": [category, ...]}, ...], the most frequent first."""
    if config.min_count < 1:
        raise UserError(f"--min_count {config.min_count}: at least 1 is needed")
    output = Path(config.output or Path(config.data_root) / "lxmert" / "all_ans.json")
    if output.exists() and not config.force:
        raise UserError(f"{output} is there already; name another --output, or replace it with --force")
    counts: Counter[str] = Counter()
    categories: dict[str, set[str]] = {}
    questions = 0
    for texts in read_texts(config):
        for scores in texts.labels or ():
            questions += 1
            for answer in {normalise_answer(answer) for answer in scores}:
                counts[answer] += 1
                categories.setdefault(answer, set()).add(texts.category)
    kept = sorted(
        (answer for answer, count in counts.items() if count >= config.min_count), key=lambda a: (-counts[a], a)
    )
    if not kept:
        raise UserError(f"none of {len(counts):,} answers occurs with {config.min_count} questions; lower --min_count")
    write_json(output, [{"ans": answer, "dsets": sorted(categories[answer])} for answer in kept])
    print(f"{output}: {len(kept):,} of {len(counts):,} answers, from {questions:,} questions")
    return {"file": str(output), "answers": len(kept), "different_answers": len(counts), "questions": questions}
