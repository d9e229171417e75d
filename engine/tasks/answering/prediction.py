"""Answers of a fine-tuned model, from its folder to the leaderboard's file.

1. model            its folder says how it was trained, and what it was trained on
2. questions        read and checked, like the place of the results, before work starts
3. answers          of this rank's share, gathered from all ranks
4. results          SPLIT_predict.json for the server, SPLIT_score.json where answers are known, SPLIT_top_k.json

With --features, a file of what any model makes of the pairs takes the place of 3 and 4.
"""

import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from engine.checkpoint.formats.original import OriginalState
from engine.checkpoint.formats.pretrained import ModelFolder
from engine.checkpoint.state import Checkpoint, build_network, open_checkpoint
from engine.commands import command
from engine.data.annotations.answers import ExactAnswers
from engine.data.annotations.formats.table import places_of
from engine.data.annotations.named import Part, columns_of, read_names
from engine.data.annotations.questions.file import check_unique, files_of, names_of, read_questions
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import IMAGE_ERRORS, ImageShape, reason, to_pixels
from engine.data.loading import Batch, evaluation_loader
from engine.data.shared_memory import check_shared_memory
from engine.data.splits import open_images, read_split
from engine.data.waiting import TimedLoader
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.launchers import end_with_launcher
from engine.distributed.meeting import Meeting
from engine.distributed.ranks import Ranks
from engine.distributed.sharing import share_on_node
from engine.errors import UserError
from engine.files import check_writable, write_json
from engine.inference.pretrained import Pretrained
from engine.inference.reading import note_of
from engine.model.encoder import check_grid
from engine.model.question_answering import AnsweringOutput, ClipVilForQuestionAnswering
from engine.printing import counted, note, warn
from engine.progress import Bar
from engine.provenance.known_draws import check_draws
from engine.provenance.tested import check_versions
from engine.tasks.answering.dataset import QuestionDataset, QuestionOptions
from engine.tasks.answering.features import feature_file, publish, rows_of
from engine.tasks.answering.flags import PredictConfig
from engine.tasks.answering.scoring import AnswerCollector, Predictions, Scorer
from engine.tasks.answering.task import TaskClass
from engine.training.loop import evaluate

SHOWN_ANSWERS = 5  # to one question

Saved = Checkpoint | ModelFolder


def open_model(task: TaskClass, config: PredictConfig, ranks: Ranks) -> Saved:
    """A fine-tuned model: BEST, LAST, a checkpoint of the training, or the training's folder. Any, for features."""
    name, data_root = task.files.folder, Path(config.data_root)
    saved = open_checkpoint(config.load, ranks, optimizers=False)
    if isinstance(saved, OriginalState):
        raise UserError(
            f"{saved.source} doesn't say what its answers and words are; {command('convert')} --from lxrt "
            f"{saved.source} --bert bert-base-uncased --to safetensors FOLDER {task.rows_flag(data_root)} makes a "
            "folder to load"
        )
    assert isinstance(saved, Saved)
    if config.features is None and saved.description.architecture != "question_answering":
        raise UserError(
            f"{saved.source} is a model of {saved.description.architecture}; fine-tune it first, with "
            f"{command('finetune')} --task {name}, or ask for its features, with --features NAME.safetensors"
        )
    if saved.description.vocabulary is None:
        raise UserError(f"{saved.source} has no vocabulary; convert it again with --bert")
    reads = saved.description.preprocessing
    for height, width in ((reads.image_size_min, reads.image_size_max), (reads.image_size_max, reads.image_size_min)):
        check_grid(saved.description.visual, height, width)
    if config.features is not None:
        return saved
    if (config.top_k or 1) > len(saved.answers or ()):
        raise UserError(f"--top_k {config.top_k}: the model knows {len(saved.answers or ())} answers")
    table = task.files.known_answers(data_root) if config.test is not None else None
    if table is not None and set(table.answers) != set(saved.answers or ()):
        raise UserError(
            f"{table.name} has {len(table):,} answers, which are not the {len(saved.answers or ()):,} of "
            f"{saved.source}; restore the list that it was fine-tuned with, or give a model of --task {name}"
        )
    return saved


def dtype_of(config: PredictConfig) -> torch.dtype:
    return torch.float16 if config.fp16 else torch.bfloat16 if config.bf16 else torch.float32


def build_model(saved: Saved, config: PredictConfig, device: torch.device) -> ClipVilForQuestionAnswering:
    model: ClipVilForQuestionAnswering = build_network(saved, device, dtype_of(config))
    model.bert.encoder.sub_sampling_in_evaluation = config.sub_sampling_in_evaluation
    return model


def read_dataset(task: TaskClass, config: PredictConfig, saved: Saved, ranks: Ranks) -> QuestionDataset:
    """The questions, or pairs, each once, with their images, in the form that the model was trained on."""
    description, reads = saved.description, saved.description.preprocessing
    answers = ExactAnswers((description.answers if config.features is None else None) or [], saved.source)
    encoder = TextEncoder(description.tokenizer())
    data_root = Path(config.data_root)
    shape = ImageShape(reads.image_size_min, reads.image_size_max, reads.orient_after_resize)
    parts = parts_of(task, config)
    source = AnnotationSource(parts, encoder, answers)
    images = open_images(data_root, config.image_store, shape, config.image_decoder, places_of(source.files))
    cache, first = Path(config.cache_dir or data_root / "cache"), ranks.rank == 0
    split = share_on_node(ranks, source.name, lambda: read_split(source, images, cache, progress=first))
    if not len(split.sentences):
        raise UserError(f"{names_of(files_of(parts))}: there is no question")
    if source.has_question_ids:
        check_unique(split.sentences.question_ids, files_of(parts), split.name)
    values = {name: value for name, value in asdict(reads).items() if name != "orient_after_resize"}
    options = QuestionOptions(**values, seed=config.seed, num_answers=len(answers))
    check_shared_memory(
        options, config.batch_size, num_workers=config.num_workers, local_world_size=ranks.local_world_size
    )
    dataset = QuestionDataset(split, images, encoder.vocabulary, options)
    if first:
        print(split.summary, flush=True)
        note(dataset.lost_words())
    return dataset


def parts_of(task: TaskClass, config: PredictConfig) -> tuple[Part, ...]:
    """The files of the questions, or of pairs of one's own."""
    data_root = Path(config.data_root)
    if config.pairs is None:
        return task.files.parts(str(config.test), data_root)
    return read_names(config.pairs, data_root / "lxmert", columns=columns_of(config), split=None)


def loader_of(dataset: QuestionDataset, config: PredictConfig, ranks: Ranks) -> TimedLoader[Batch]:
    """This rank's share of them."""
    return evaluation_loader(
        dataset,
        config.batch_size,
        num_workers=config.num_workers,
        rank=ranks.rank,
        world_size=ranks.world_size,
        start_method=config.worker_start_method,
    )


class UnreadableImages:
    """Those that were met; more than are allowed end the program."""

    def __init__(self, most: int, treated: str) -> None:
        """Args:
        treated: what is done with them, for messages.
        """
        self.most, self.treated, self.met = most, treated, 0

    def see(self, batch: Batch) -> None:
        self.met += len(batch.unreadable)
        for problem in batch.unreadable:
            tqdm.write(f"an unreadable image, {self.treated}: {problem}")
        if self.met > self.most:
            raise UserError(
                f"{counted(self.met, 'unreadable image')} ({batch.unreadable[-1]}); restore the files, or let them be "
                f"{self.treated} with --max_unreadable_images {self.met}"
            )


def predict(task: TaskClass, config: PredictConfig, saved: Saved, ranks: Ranks, device: torch.device) -> None:
    """Answer all questions of a split."""
    meeting = Meeting(ranks, config.start_timeout)
    files = files_of(task.files.parts(str(config.test), Path(config.data_root)))
    results = {
        name: Path(config.output or saved.folder.parent, f"{config.test}_{name}.json")
        for name in ("predict", "score", "top_k")
    }
    first = ranks.rank == 0
    if first:
        probe = results["predict"].with_suffix(".probe")
        check_writable(probe)
        probe.unlink()
    dataset = read_dataset(task, config, saved, ranks)
    scorer = task.scorer(config, read_questions(files), files) if first else None
    if scorer is not None and not config.allow_trained_on:
        split, seen, images_too = dataset.split, saved.trained_on, task.refuses_seen_images
        told = f"{saved.source} doesn't say what it was trained on; see that it wasn't {split.name}"
        if seen is not None:
            told = seen.check_unseen(split, images_too=images_too, scored=scorer.can_score)
        note(told)
    batches = loader_of(dataset, config, ranks)
    join(meeting)
    model = build_model(saved, config, device)
    collector = AnswerCollector(config.top_k or 1, one_of_all=task.one_of_all)
    unreadable = UnreadableImages(config.max_unreadable_images, "answered blindly")

    def see(batch: Batch, output: AnsweringOutput) -> None:
        unreadable.see(batch)
        collector.see(batch, output)

    started = time.monotonic()
    evaluate(model, Bar(batches, desc=str(config.test), unit="batch", disable=not first), on_batch=see)
    predictions = collector.gather(len(dataset))
    seconds = time.monotonic() - started
    if scorer is not None:
        print(f"{len(dataset):,} questions in {seconds:.1f} s, {len(dataset) / seconds:.1f} a second", flush=True)
        write_results(task, results, scorer, predictions, saved.answers or [], top_k=config.top_k is not None)
    meeting.end()
    dist.destroy_process_group()


def write_features(task: TaskClass, config: PredictConfig, saved: Saved, ranks: Ranks, device: torch.device) -> None:
    """Write what the model makes of all pairs; each rank writes those that it computes."""
    meeting = Meeting(ranks, config.start_timeout)
    dataset = read_dataset(task, config, saved, ranks)
    first, description = ranks.rank == 0, saved.description
    with feature_file(config, description, saved.source, dtype_of(config), len(dataset)) as file:
        if first:
            file.create()
        batches = loader_of(dataset, config, ranks)
        join(meeting)
        if not first:
            file.open()
        model = loaded(task, config, saved, device)
        unreadable = UnreadableImages(config.max_unreadable_images, "taken as black")
        for batch in Bar(batches, desc="features", unit="batch", disable=not first):
            unreadable.see(batch)
            inputs = batch.to(device).inputs
            features = model.features_of(inputs["input_ids"], inputs["attention_mask"], inputs["images"])
            file.write(batch.numbers, features.tensors())
        file.sync()
        dist.barrier()
        if first:
            publish(file, rows_of([f for part in parts_of(task, config) for f in part.files]))
    meeting.end()
    dist.destroy_process_group()


def write_results(
    task: TaskClass,
    results: dict[str, Path],
    scorer: Scorer,
    predictions: Predictions,
    names: list[str],
    *,
    top_k: bool,
) -> None:
    """Each question once, in the order of the ids, numbers before texts; the server's file first."""
    ids = [question.question_id for question in scorer.questions]
    rows = zip(ids, predictions.answers.tolist(), predictions.probabilities.tolist(), strict=True)
    ranked = {
        question_id: [(names[row], round(likely, 6)) for row, likely in zip(best, probabilities, strict=True)]
        for question_id, best, probabilities in sorted(rows, key=lambda row: (isinstance(row[0], str), row[0]))
    }
    chosen = {question_id: answers[0][0] for question_id, answers in ranked.items()}
    write_json(results["predict"], [task.result(question_id, answer) for question_id, answer in chosen.items()])
    print(f"wrote {results['predict']}")
    if top_k:
        likely = [
            {
                "question_id": question_id,
                "answers": [{"answer": answer, "probability": probability} for answer, probability in answers],
            }
            for question_id, answers in ranked.items()
        ]
        write_json(results["top_k"], likely)
        print(f"wrote {results['top_k']}")
    if scorer.can_score:
        score = scorer.score(chosen)
        write_json(results["score"], score, indent=1)
        print(f"{scorer.table(score)}\nwrote {results['score']}")


def answer_one(task: TaskClass, config: PredictConfig, saved: Saved, device: torch.device) -> None:
    """One question about one image file: answers in the terminal, or features."""
    assert config.question is not None
    assert config.image is not None
    reads = saved.description.preprocessing
    shape = ImageShape(reads.image_size_min, reads.image_size_max, reads.orient_after_resize)
    try:
        pixels = to_pixels(Path(config.image).read_bytes(), shape, config.image_decoder)
    except IMAGE_ERRORS as error:
        raise UserError(f"--image {config.image} can't be read ({reason(error)})") from None
    model = loaded(task, config, saved, device)
    text = model.text([config.question])
    note(note_of(text.tokens[0], text.cut[0]))
    if config.features is None:
        for answer, probability in model.read(pixels, config.question)[0].answers(config.top_k or SHOWN_ANSWERS):
            print(f"{probability:.3f}  {answer}")
        return
    with feature_file(config, saved.description, saved.source, dtype_of(config), 1) as file:
        file.create()
        features = model.features_of(text.input_ids, text.attention_mask, torch.from_numpy(pixels)[None])
        file.write([0], features.tensors())
        file.sync()
        publish(file, [{"image": config.image, "sentence": config.question}])


def loaded(task: TaskClass, config: PredictConfig, saved: Saved, device: torch.device) -> Pretrained:
    """The model as a script has it, which reads sentences as the task does, or pairs as its own task did."""
    return Pretrained(
        saved,
        device,
        dtype_of(config),
        config.seed,
        task if config.pairs is None else None,
        sub_sampling=config.sub_sampling_in_evaluation,
    )


def run(task: TaskClass, config: PredictConfig, ranks: Ranks) -> None:
    """What launch/predict.py does once its flags are checked."""
    end_with_launcher()
    device = pick_device(ranks, fp16=config.fp16)
    if ranks.rank == 0:
        warn(check_versions())
    saved = open_model(task, config, ranks)
    check_draws(device if saved.description.visual.sub_feat_num is not None else None)
    if config.question is not None:
        if ranks.rank == 0:
            answer_one(task, config, saved, device)
    elif config.features is not None:
        write_features(task, config, saved, ranks, device)
    else:
        predict(task, config, saved, ranks, device)
