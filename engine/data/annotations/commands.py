"""prepare.py annotations: the stores that trainings open. prepare.py answers: which answers a model can give."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from engine.configuration.tables import AnswersConfig
from engine.data.annotations.answers import (
    ANSWER_LIST,
    ANSWER_ROWS,
    ANSWER_TABLE,
    AnswerCounts,
    AnswerTable,
    normalise_answer,
)
from engine.data.annotations.formats.file import AnnotationFile, Texts
from engine.data.annotations.named import Part, columns_of, read_answers, read_names
from engine.data.annotations.questions.named import QUESTION_FILES
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.preparation import AnnotationFilesConfig, QuestionFilesConfig, Summary
from engine.errors import UserError
from engine.files import write_json
from engine.progress import Bar

TASKS_WITH_LISTS = tuple(folder for folder, file in QUESTION_FILES.items() if file.has_list)


@dataclass
class PrepareAnnotations(AnswersConfig, QuestionFilesConfig):
    """Build the annotation stores that trainings and predictions with these files open."""

    bert: str = HfArg(default="bert-base-uncased", help="folder or hub name; gives the vocabulary")
    do_lower_case: bool | None = HfArg(default=None, help="as in training")
    cache_dir: str | None = HfArg(default=None, help="folder for prepared annotations; DATA_ROOT/cache if not given")
    with_text: bool = HfArg(default=False, help="a second store that keeps the sentences themselves, too")


@dataclass
class PrepareAnswers(AnnotationFilesConfig):
    """Make the answer table of pre-training, or with --task a task's list, of the answers that are given often enough.

    With --task, it writes DATA_ROOT/TASK/trainval_label2ans.json and trainval_ans2label.json.
    """

    task: str | None = HfArg(default=None, help="vqa or gqa, to fine-tune on; for pre-training's table if not given")
    train: str = HfArg(
        default="",
        help="annotation files to take the answers of; without --train and --valid, those of LXMERT, or with --task "
        "those that the task trains on",
    )
    valid: str = HfArg(default="", help="more of these files")
    min_count: int = HfArg(default=9, help="questions that an answer has to occur with; 1 keeps all answers")
    output: str | None = HfArg(
        default=None, help="file to write for pre-training; DATA_ROOT/lxmert/all_ans.json if not given"
    )
    force: bool = HfArg(default=False, help="replace a table or a list that is there")

    @property
    def files(self) -> list[Path]:
        """What is written: a table, or a list and the rows of its answers."""
        if self.task is not None:
            return [Path(self.data_root, self.task, name) for name in (ANSWER_LIST, ANSWER_ROWS)]
        return [Path(self.output or Path(self.data_root, "lxmert", ANSWER_TABLE))]

    @property
    def splits(self) -> dict[str, list[tuple[str, str]]]:
        usual = (AnnotationFilesConfig.train, AnnotationFilesConfig.valid)
        if self.task is not None:
            file = QUESTION_FILES[self.task]
            folder = Path(self.data_root, self.task)
            there = [name for name in file.train if (folder / file.file_name.format(name)).exists()]
            usual = (",".join(there or file.train), "")
        train, valid = (self.train, self.valid) if self.train or self.valid else usual
        named = [(names, which) for names, which in ((train, "train"), (valid, "valid")) if names]
        return {self.task or "lxmert": named}

    def check(self) -> None:
        """Raises UserError, naming the flag to change."""
        if self.task is not None and self.task not in TASKS_WITH_LISTS:
            why = "visual entailment has three labels, and needs no list; " if self.task == "snli_ve" else ""
            raise UserError(f"--task {self.task}: {why}choose one of {', '.join(TASKS_WITH_LISTS)}")
        if self.task is not None and self.output is not None:
            raise UserError(f"--output is for pre-training's table; --task {self.task} writes {self.files[0]}")
        if self.min_count < 1:
            raise UserError(f"--min_count {self.min_count}: at least 1 is needed")
        for file in self.files:
            if file.exists() and not self.force:
                raise UserError(
                    f"{file} is there already, and models that were trained with it depend on its order; --force "
                    "replaces it" + ("" if self.task else ", and --output names another file")
                )


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
    splits = split_parts(config)
    encoder = TextEncoder(read_bert(config.bert, config.do_lower_case)[1])
    return {
        name: AnnotationSource(parts, encoder, tables[folder], config.with_text)
        for name, (folder, parts) in splits.items()
    }


def _answer_table(config: PrepareAnnotations, folder: str) -> AnswerTable:
    if folder in QUESTION_FILES:
        names = ",".join(names for names, _ in config.splits[folder])
        return QUESTION_FILES[folder].answers(Path(config.data_root), names)
    return read_answers(config, Path(config.data_root, folder))


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
    """[{"ans": answer, "dsets": [category, ...]}, ...] for pre-training; of a task, [answer, ...] and {answer: row}.

    The most frequent answer comes first. A task's answers stay as they are written, since its labels are compared with
    them as they are; those of pre-training are normalised.
    """
    counts = AnswerCounts()
    for texts in read_texts(config):
        for scores in texts.labels or ():
            counts.add(scores if config.task else {normalise_answer(answer) for answer in scores}, texts.category)
    if not counts.questions:
        names = ", ".join(names for named in config.splits.values() for names, _ in named)
        told = "name others with --train" if config.task else "pre-training needs a table with --taskQA alone"
        raise UserError(f"no question of {names} has an answer; {told}")
    kept = counts.frequent(config.min_count)
    table = [{"ans": answer, "dsets": sorted(counts.categories[answer])} for answer in kept]
    contents = (kept, {answer: row for row, answer in enumerate(kept)}) if config.task else (table,)
    for file, content in zip(config.files, contents, strict=True):
        write_json(file, content)
    covered = counts.covered(kept)
    print(
        f"{config.files[0]}: {len(kept):,} of {len(counts.codes):,} answers, each of at least {config.min_count} "
        f"questions; {covered:,} of {counts.questions:,} questions ({covered / counts.questions:.1%}) have one of them"
    )
    return {
        "file": str(config.files[0]),
        "answers": len(kept),
        "different_answers": len(counts.codes),
        "questions": counts.questions,
        "questions_with_these_answers": covered,
    }
