"""GQA's official measures, by the rules of its published evaluation (eval.py of https://gqadataset.org).

They are over the balanced questions of a split. Those that the published code gives in per cent are shares from 0 to 1
here. Where it counts an average of nothing as 0, or looks up what isn't there, the measure is left out, with a reason.

accuracy        the share of questions whose prediction is the answer, letter for letter
binary, open    the same of questions whose structural type is not "query", and of those whose type it is
validity        the share of predictions that are among the valid choices: a color for a question about a color
plausibility    the share of predictions that are among the plausible choices: no purple apples
consistency     for each question that is answered correctly and entails others: the share of those that are answered
                correctly, which need not be balanced; the mean over such questions
distribution    how far predictions are from the answers in each global group: the mean of the chi-square statistics,
                weighted by the questions of a group, over 100; lower is better
accuracy        by structural type, by semantic type, by number of words, by number of reasoning steps
"""

import sys
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from engine.data.annotations.formats.file import FieldError
from engine.data.annotations.formats.lxmert import field
from engine.data.annotations.questions.official_gqa import read_official
from engine.errors import UserError

# What an entry may lack, and the measures that need it.
OPTIONAL: dict[str, tuple[type, tuple[str, ...]]] = {
    "types": (dict, ("binary", "open", "validity", "plausibility", "structural_type", "semantic_type")),
    "groups": (dict, ("distribution",)),
    "entailed": (list, ("consistency",)),
    "question": (str, ("words",)),
    "semantic": (list, ("steps",)),
}
NO_STEPS = ("exist", "query: name", "choose name")  # an operation with one of these in it
COMMON = frozenset(("color", "material", "shape"))  # the choices for what two things have in common
BREAKDOWNS = ("structural_type", "semantic_type", "words", "steps")


class BalancedQuestion(NamedTuple):
    """What the measures need of a balanced question."""

    answer: str
    structural_type: str
    semantic_type: str
    has_common_choices: bool
    group: str | None
    entailed: tuple[str, ...]  # the ids of other questions
    words: int
    steps: int


class Entry(NamedTuple):
    """A question of the official files."""

    answer: str
    balanced: BalancedQuestion | None
    lacks: tuple[str, ...]  # fields that some measures need


class Choices(NamedTuple):
    """Answers that a question can have."""

    valid: frozenset[str]
    plausible: frozenset[str]


@dataclass(frozen=True)
class OfficialGqa:
    """The official files of a split."""

    name: str  # for messages
    balanced: dict[str, BalancedQuestion]  # by question id
    answers: dict[str, str]  # of all questions
    choices: dict[str, Choices]  # of the balanced ones; empty if they are not given
    lacking: dict[str, str]  # for each field that balanced questions lack, the id of the first

    @classmethod
    def read(cls, questions: Sequence[Path], choices: Sequence[Path] = (), *, progress: bool = False) -> "OfficialGqa":
        """Read the official files.

        Args:
            questions: those with the balanced questions, and those with the questions that these entail, such as
                val_all_questions.json, which has both.
            choices: the choices of the same split.

        Raises:
            UserError: for what is no such file, naming the question and the field, and for choices of other questions.
        """
        name = ", ".join(map(str, questions))
        answers: dict[str, str] = {}
        balanced: dict[str, BalancedQuestion] = {}
        lacking: dict[str, str] = {}
        for path in questions:
            for question_id, entry in read_official(path, entry_of, progress):
                answers[question_id] = entry.answer
                if entry.balanced is not None:
                    balanced[question_id] = entry.balanced
                    for missing in entry.lacks:
                        lacking.setdefault(missing, question_id)
        if not balanced:
            raise UserError(f"{name}: there is no balanced question, and the measures are over these alone")
        known: dict[frozenset[str], frozenset[str]] = {}  # many questions have the same choices
        found = {
            question_id: Choices(*(known.setdefault(names, names) for names in entry))
            for path in choices
            for question_id, entry in read_official(path, choices_of, progress)
            if question_id in balanced
        }
        if choices and len(found) < len(balanced):
            raise UserError(
                f"{len(balanced) - len(found):,} of {len(balanced):,} balanced questions of {name} have no choices in "
                f"{', '.join(map(str, choices))}, the first is {_first_without(balanced, found)}; name the choices of "
                "the same split"
            )
        return cls(name, balanced, answers, found, lacking)

    def measure(self, predictions: Mapping[str, str]) -> dict[str, Any]:
        """All measures.

        Args:
            predictions: by question id; of the balanced questions, and for the consistency of those that they entail.

        Returns:
            `accuracy`, `binary`, `open`, `validity`, `plausibility`, `consistency`, `distribution`; `structural_type`,
            `semantic_type`, `words` and `steps` with the `accuracy` and the number of `questions` of each kind;
            `questions`, their number; and `left_out`, with the reason for each measure that couldn't be computed.

        Raises:
            UserError: if a balanced question has no prediction.
        """
        self.check_asked(predictions)
        asked = [(question, predictions[question_id]) for question_id, question in self.balanced.items()]
        right = [prediction == question.answer for question, prediction in asked]
        is_open = [question.structural_type == "query" for question, _ in asked]
        consistency, unknown = self._consistency(predictions)
        found = {
            "accuracy": _mean(right),
            "binary": _mean(hit for hit, is_query in zip(right, is_open, strict=True) if not is_query),
            "open": _mean(hit for hit, is_query in zip(right, is_open, strict=True) if is_query),
            "validity": self._share_in("valid", predictions),
            "plausibility": self._share_in("plausible", predictions),
            "consistency": consistency,
            "distribution": _distribution(asked),
            **{kind: _by([getattr(question, kind) for question, _ in asked], right) for kind in BREAKDOWNS},
        }
        reasons: dict[str, str] = {}
        if not self.choices:
            reasons |= dict.fromkeys(("validity", "plausibility"), "no choices files are given")
        if unknown:
            reasons["consistency"] = (
                f"{unknown:,} entailed questions are not in the question files or have no prediction; give the file of "
                "all questions of the split, such as val_all_questions.json, and predict all of them"
            )
        for missing, question_id in self.lacking.items():
            reasons |= dict.fromkeys(OPTIONAL[missing][1], f"question {question_id} has no field '{missing}'")
        left_out = {
            measure: reasons.get(measure, "it is about none of the questions")
            for measure, value in found.items()
            if measure in reasons or value is None
        }
        kept = {measure: value for measure, value in found.items() if measure not in left_out}
        return {**kept, "questions": len(asked)} | ({"left_out": left_out} if left_out else {})

    def check_asked(self, asked: Collection[str]) -> None:
        """Raises UserError if a balanced question is not among those that are asked."""
        if lacking := sum(question_id not in asked for question_id in self.balanced):
            raise UserError(
                f"{lacking:,} of {len(self.balanced):,} balanced questions of {self.name} have no prediction, the "
                f"first is {_first_without(self.balanced, asked)}; predict the split that these files are of"
            )

    def _consistency(self, predictions: Mapping[str, str]) -> tuple[float | None, int]:
        """The measure, and the number of entailed questions that it needs and that aren't known."""
        shares: list[float] = []
        unknown: set[str] = set()
        for question_id, question in self.balanced.items():
            entailed = [other for other in question.entailed if other != question_id]
            if entailed and predictions[question_id] == question.answer:
                unknown.update(other for other in entailed if other not in self.answers or other not in predictions)
                right = sum(predictions.get(other) == self.answers.get(other) for other in entailed)
                shares.append(right / len(entailed))
        return _mean(shares), len(unknown)

    def _share_in(self, kind: str, predictions: Mapping[str, str]) -> float | None:
        """The share of predictions that are valid, or plausible; None without choices."""
        return _mean(
            predictions[question_id] in (COMMON if self.balanced[question_id].has_common_choices else names)
            for question_id, names in ((number, getattr(entry, kind)) for number, entry in self.choices.items())
        )


def entry_of(value: Any) -> Entry:
    """Raises FieldError, naming the field that is missing or wrong."""
    answer = sys.intern(field(value, "answer", str))  # there are millions of questions, and few answers
    if not field(value, "isBalanced", bool):
        return Entry(answer, None, ())
    there = {name: field(value, name, kind) for name, (kind, _) in OPTIONAL.items() if name in value}
    types = {"structural": "", "semantic": "", "detailed": ""}
    if "types" in there:
        types = {name: field(there["types"], name, str) for name in types}
    group = field(there["groups"], "global", object) if "groups" in there else None
    if not isinstance(group, str | None):
        raise FieldError("'groups': the name of the global group, or null, was expected")
    entailed = there.get("entailed", [])
    if not all(isinstance(other, str) for other in entailed):
        raise FieldError("'entailed': a list of question ids was expected")
    operations = [
        f"{field(step, 'operation', object)}: {field(step, 'argument', object)}" for step in there.get("semantic", [])
    ]
    balanced = BalancedQuestion(
        answer,
        types["structural"],
        types["semantic"],
        has_common_choices="Common" in types["detailed"],
        group=group,
        entailed=tuple(entailed),
        words=len(there.get("question", "").split()),
        steps=sum(not any(part in operation for part in NO_STEPS) for operation in operations),
    )
    return Entry(answer, balanced, tuple(name for name in OPTIONAL if name not in there))


def choices_of(value: Any) -> Choices:
    """Raises FieldError, naming the field that is missing or wrong."""
    choices = {name: field(value, name, list) for name in Choices._fields}
    for name, answers in choices.items():
        if not all(isinstance(answer, str) for answer in answers):
            raise FieldError(f"'{name}': a list of answers was expected")
    return Choices(*(frozenset(map(sys.intern, answers)) for answers in choices.values()))


def _first_without(questions: Iterable[str], known: Container[str]) -> str:
    return next(question_id for question_id in questions if question_id not in known)


def _mean(values: Iterable[float]) -> float | None:
    """None if there are none."""
    values = list(values)
    return sum(values) / len(values) if values else None


def _by(kinds: Sequence[Any], right: Sequence[bool]) -> dict[str, dict[str, float]]:
    """The accuracy of each kind of question, in order; names are texts, as in the JSON that this becomes."""
    members: dict[Any, list[bool]] = {}
    for kind, hit in zip(kinds, right, strict=True):
        members.setdefault(kind, []).append(hit)
    return {
        str(kind): {"accuracy": sum(hits) / len(hits), "questions": len(hits)} for kind, hits in sorted(members.items())
    }


def _distribution(asked: Iterable[tuple[BalancedQuestion, str]]) -> float | None:
    """None if no question has a global group."""
    expected: Counter[tuple[str, str]] = Counter()  # by group and answer
    observed: Counter[tuple[str, str]] = Counter()
    sizes: Counter[str] = Counter()
    for question, prediction in asked:
        if question.group is not None:
            expected[question.group, question.answer] += 1
            observed[question.group, prediction] += 1
            sizes[question.group] += 1
    terms = (sizes[group] * (observed[group, name] - count) ** 2 / count for (group, name), count in expected.items())
    return sum(terms) / sizes.total() / 100 if sizes else None


def official_table(measures: Mapping[str, Any]) -> str:
    """Measures for the eye: per cent, but for the distribution; below them, what is left out and why."""
    lines = [f"{'':<40}{'questions':>10}{'accuracy':>20}"]
    sections = {"": {"all": {"accuracy": measures["accuracy"], "questions": measures["questions"]}}}
    sections |= {kind.replace("_", " "): measures[kind] for kind in BREAKDOWNS if kind in measures}
    for title, rows in sections.items():
        lines += [title] if title else []
        for name, row in rows.items():
            label = f"  {name}" if title else name
            lines.append(f"{label:<40}{row['questions']:>10,}{100 * row['accuracy']:>20.2f}")
    lines.append("official measures")
    for name in ("binary", "open", "validity", "plausibility", "consistency"):
        lines += [f"{'  ' + name:<50}{100 * measures[name]:>20.2f}"] if name in measures else []
    if "distribution" in measures:
        lines.append(f"{'  distribution (lower is better)':<50}{measures['distribution']:>20.2f}")
    lines += [f"  no {name.replace('_', ' ')}: {reason}" for name, reason in measures.get("left_out", {}).items()]
    return "\n".join(lines)
