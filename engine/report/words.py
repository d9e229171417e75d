"""What figures of metrics.jsonl are called, and by which measure they are taken."""

from collections.abc import Iterable

TASKS = {"mask_lm": "masked words", "matched": "captions and images", "qa": "answers"}
MEASURES = ("_loss", "_accuracy", "_score")
TITLES = {"epoch": "Epoch", "loss": "Loss", "score": "Score", "official_accuracy": "Official accuracy"}
SCORERS = {
    "loss": "the sum of the tasks' losses",
    "mask_lm_loss": "cross-entropy of the masked words",
    "mask_lm_accuracy": "share of the masked words that are named right",
    "matched_loss": "cross-entropy of whether a sentence belongs to the image",
    "matched_accuracy": "share of the pairs of which it is told rightly whether the sentence belongs to the image",
    "qa_loss": "loss of the answers",
    "qa_accuracy": "share of the questions that get the answer drawn from their label",
    "qa_score": "what a question's label gives to the model's answer, from 0 to 1",
    "score": "what a question's label gives to the model's answer, from 0 to 1",
    "official_accuracy": "VQA's official accuracy, from ten people's answers",
}


def results_among(names: Iterable[str]) -> list[str]:
    """Figures that tell what was learned, the loss first. The loss of a task alone is left out: it is the sum."""
    found = sorted(filter(_is_result, dict.fromkeys(names)), key=lambda name: name != "loss")
    losses = [name for name in found if name.endswith("_loss")]
    return [name for name in found if "loss" not in found or losses != [name]]


def _is_result(name: str) -> bool:
    return name in SCORERS or name.endswith(MEASURES)


def title_of(name: str) -> str:
    """`mask_lm_loss` is "Masked words: loss"."""
    if name in TITLES:
        return TITLES[name]
    task, _, measure = name.rpartition("_")
    words = TASKS.get(task, task.replace("_", " "))
    return f"{words[:1].upper()}{words[1:]}: {measure}"


def scorer_of(name: str) -> str:
    return SCORERS.get(name, "as the task defines it")
