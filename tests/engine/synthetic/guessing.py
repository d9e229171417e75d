"""How often somebody is right who knows the texts, but doesn't see the images."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

Drawn = Sequence[tuple[str, str]]  # texts about a scene, with their answers


def guessed(known: Sequence[Drawn], asked: Sequence[Drawn], read: Callable[[str], str] = str) -> float:
    """The share of `asked` that one gets right with the answer that is the most frequent in `known`.

    Args:
        read: what of a text counts.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in (pair for drawn in known for pair in drawn):
        counts[read(text)][answer] += 1
    best = {text: answers.most_common(1)[0][0] for text, answers in counts.items()}
    right = [best.get(read(text)) == answer for drawn in asked for text, answer in drawn]
    return sum(right) / len(right)


def bound(chance: float, scenes: int) -> float:
    """What guesses that are right by chance stay below, but for once in 30,000.

    A scene's share of right guesses lies between 0 and 1, so its variance is at most that of a coin with the same mean.
    Scenes are drawn independently of each other: four standard deviations of the mean over all are added.
    """
    return chance + 4 * (chance * (1 - chance) / scenes) ** 0.5
