"""An answer head for another answer table."""

from collections.abc import Sequence

import torch

from engine.checkpoint.weights import HEAD, State
from engine.data.annotations.answers import normalise_answer

LAST_LAYER = f"{HEAD}logit_fc.3."


def rows_of(theirs: Sequence[str], ours: Sequence[str]) -> list[int | None]:
    """Where each of our answers is among theirs. As in the original, it is normalised before it is looked up."""
    rows = {answer: row for row, answer in enumerate(theirs)}
    return [rows.get(normalise_answer(answer), rows.get(answer)) for answer in ours]


def known_answers(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """What to tell of a head that was trained with other answers, or the same."""
    known = {row for row in rows_of(theirs, ours) if row is not None}
    told = f"answers taken from there: {len(known):,} of {len(ours):,}"
    told += ", the others begin at 0" if len(known) < len(ours) else ""
    left = len(theirs) - len(known)
    return f"{told}; left out: {left:,} of {len(theirs):,}" if left else told


def match_answers(state: State, theirs: Sequence[str], ours: Sequence[str]) -> State:
    """Rows of the head's last layer by answer; the layers before it are taken as they are.

    As in the original, an answer that the state doesn't know gets weight 0 and bias 0.

    Args:
        state: weights whose head, if any, has a row for each of `theirs`.
        ours: the answers that the new head has a row for.
    """
    if list(theirs) == list(ours) or f"{LAST_LAYER}weight" not in state:
        return state
    sources = rows_of(theirs, ours)
    known = torch.tensor([row is not None for row in sources])
    index = torch.tensor([row or 0 for row in sources])
    matched = dict(state)
    for name in ("weight", "bias"):
        old = state[LAST_LAYER + name]
        new = old[index]
        new[~known] = 0
        matched[LAST_LAYER + name] = new
    return matched
