"""Questions: what the answers are worth, how sure the model is of them, and some of them with their images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.inference.reading import Answer, Reading
from engine.report.pictures.charts import calibration_chart, score_chart
from engine.report.pictures.drawing import picture_of, seen
from engine.report.pictures.held_out import Example, HeldOut, spread_evenly, told_part
from engine.report.pictures.reader import Reader
from engine.report.pictures.statistics import Mean, calibration, calibration_error, mean_of
from engine.report.sections import Card, Picture, Section, Table

SHOWN_ANSWERS = 5
SHOWN_TYPES = 12  # of questions, the most frequent ones
CARDS, MISTAKES = 8, 6
GOOD = 0.5  # the score from which a card counts as right


@dataclass(frozen=True)
class Answered:
    """A question with the model's answers."""

    example: Example
    answers: list[Answer]  # the likeliest first
    score: float | None  # of the first one, 0 to 1; None where the right answers aren't known

    @classmethod
    def of(cls, example: Example, reading: Reading) -> "Answered":
        answers = reading.answers(SHOWN_ANSWERS)
        label = example.label
        return cls(example, answers, None if label is None else min(1.0, label.get(answers[0].answer, 0.0)))

    @property
    def is_good(self) -> bool | None:
        return None if self.score is None else self.score >= GOOD


def question_sections(reader: Reader, held_out: HeldOut) -> list[Section]:
    """None where the model answers no questions, or there are none."""
    if "answer" not in reader.model.abilities or not held_out.questions:
        return []
    answered = [Answered.of(*found) for found in reader.read(held_out.questions)]
    scored = [found for found in answered if found.score is not None]
    parts = [score_section, calibration_section, mistakes_section] if scored else []
    first, *others = [part(reader, held_out, scored) for part in parts] or [unscored_section(reader, held_out)]
    return [first, cards_section(reader, answered), *others]


def unscored_section(reader: Reader, held_out: HeldOut) -> Section:
    text = f"The questions of {held_out.name} have no labels, so that nothing tells which answers are right."
    return Section("Held-out questions", [text])


def score_section(reader: Reader, held_out: HeldOut, scored: Sequence[Answered]) -> Section:
    """The mean score, over all questions and over those of each kind."""
    rows = scores_by_type(scored)
    part = told_part(len(scored), held_out.all_questions, f"questions of {held_out.name}")
    text = f"{reader.told_model} has answered {part}.{reader.told_unreadable}"
    text += " The score of an answer is the one that the question's label gives it, LXMERT's soft score"
    exact = all(list((found.example.label or {}).values()) == [1] for found in scored)
    text += "; as each question has one right answer here, it is the accuracy." if exact else "."
    if "BEST" in reader.told_model:
        text += " BEST was chosen by its score on these data, which flatters it a little."
    cells = [(name, kind, f"{mean.count:,}", str(mean), mean.interval) for kind, name, mean in rows]
    table = Table(("", "grouped by", "questions", "score", "95% interval"), cells)
    return Section("Held-out questions", [text, *score_pictures(reader, rows), table])


def score_pictures(reader: Reader, rows: Sequence[tuple[str, str, Mean]]) -> list[Picture]:
    """The table as a chart, if it has types."""
    if len(rows) == 1:
        return []
    light, dark = score_chart([(name, mean) for _, name, mean in rows])
    alt = "Mean scores with their 95% intervals: " + ", ".join(f"{name} {mean}" for _, name, mean in rows)
    caption = "Mean scores with Wilson's 95% intervals, which count questions as independent of each other"
    return [Picture(f"{reader.slug}_scores", light, alt, caption, dark)]


def scores_by_type(scored: Sequence[Answered]) -> list[tuple[str, str, Mean]]:
    """What kind of type, its name, and the mean score: first of all questions, then of each type."""
    rows = [("", "all", mean_of([found.score or 0.0 for found in scored]))]
    for kind in ("answer_type", "question_type"):
        types = [getattr(found.example, kind) for found in scored]
        for name, _ in Counter(filter(None, types)).most_common(SHOWN_TYPES):
            scores = [found.score or 0.0 for found, type_ in zip(scored, types, strict=True) if type_ == name]
            rows.append((kind.replace("_", " "), name, mean_of(scores)))
    return rows


def calibration_section(reader: Reader, held_out: HeldOut, scored: Sequence[Answered]) -> Section:
    """Whether answers of a probability of 0.8 score 0.8."""
    bins = calibration([found.answers[0].probability for found in scored], [found.score or 0.0 for found in scored])
    error = f"{calibration_error(bins):.1%}"
    alone, share = "that of being right by itself (sigmoid)", "the answer's share among all (softmax)"
    kind = share if reader.model.one_of_all else alone
    text = (
        "If probabilities are what they say, answers that the model gives a probability of 0.8 have a mean score of "
        f"0.8. The probability is {kind}. The answers are in {len(bins)} bins of equal counts, in the order of their "
        f"probability. The expected calibration error is {error}: how far mean probability and mean score of a bin "
        "are apart, on average over all answers."
    )
    light, dark = calibration_chart(bins)
    alt = "Mean score over mean probability: " + ", ".join(f"{b.score.mean:.2f} at {b.probability:.2f}" for b in bins)
    caption = "Below the dashed line the model is too sure, above it not sure enough"
    picture = Picture(f"{reader.slug}_calibration", light, alt, caption, dark)
    return Section("How sure it is", [text, picture])


def mistakes_section(reader: Reader, held_out: HeldOut, scored: Sequence[Answered]) -> Section:
    mistakes, title = worst_mistakes(scored), "The worst mistakes"
    if not mistakes:
        return Section(title, [f"None of {len(scored):,} answers scores 0."])
    text = f"{len(mistakes):,} of {len(scored):,} answers score 0. Here are those that the model was surest of."
    return Section(title, [text, answer_cards(reader, mistakes[:MISTAKES], "mistake")])


def worst_mistakes(scored: Sequence[Answered]) -> list[Answered]:
    """Answers that score 0, those with the highest probability first."""
    return sorted((found for found in scored if found.score == 0), key=lambda found: -found.answers[0].probability)


def cards_section(reader: Reader, answered: Sequence[Answered]) -> Section:
    """Half of them right and half of them wrong, if there are enough of both."""
    right = [found for found in answered if found.is_good is not False]
    wrong = [found for found in answered if found.is_good is False]
    wrong = spread_evenly(wrong, max(CARDS // 2, CARDS - len(right)), seed=0)
    chosen = [*spread_evenly(right, CARDS - len(wrong), seed=0), *wrong]
    text = (
        "Some of the questions, each with the likeliest answers and their probabilities. Half of the first "
        "answers shown are wrong, if there are enough; this says nothing of how many are."
    )
    return Section("Questions and answers", [text, answer_cards(reader, chosen, "answer")])


def answer_cards(reader: Reader, chosen: Sequence[Answered], name: str) -> list[Card]:
    by_number = {found.example.number: found for found in chosen}
    return [
        answer_card(by_number[example.number], reading, f"{reader.slug}_{name}_{example.number}")
        for example, reading in reader.read([found.example for found in chosen])
    ]


def answer_card(found: Answered, reading: Reading, name: str) -> Card:
    """An image with its question, the likeliest answers, and the right ones."""
    picture = Picture(name, picture_of([seen(reading)]), f"The image {found.example.img_id}")
    lines = [f"{answer.probability:.1%} {answer.answer}" for answer in found.answers]
    return Card(picture, found.example.sentence, [*lines, told_label(found.example)], found.is_good)


def told_label(example: Example) -> str:
    if example.label is None:
        return "the right answer isn't known"
    best = sorted(example.label.items(), key=lambda item: -item[1])[:SHOWN_ANSWERS]
    told = ", ".join(name if score == 1 else f"{name} ({score:g})" for name, score in best)
    return f"right answer: {told or 'none'}"
