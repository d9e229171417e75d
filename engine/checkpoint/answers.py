"""An answer head for another answer table."""

from collections.abc import Sequence

import torch

from engine.checkpoint.weights import HEAD, State
from engine.data.annotations.answers import normalise_answer

LAST_LAYER = f"{HEAD}logit_fc.3."


def match_answers(state: State, theirs: Sequence[str], ours: Sequence[str]) -> State:
    """Rows of the head's last layer by answer; the layers before it are taken as they are.

    As in the original, an answer is normalised before it is looked up, and one that the state doesn't know gets
    weight 0 and bias 0.

    Args:
        state: weights whose head, if any, has a row for each of `theirs`.
        ours: the answers that the new head has a row for.
    """
    if list(theirs) == list(ours) or f"{LAST_LAYER}weight" not in state:
        return state
    rows = {answer: row for row, answer in enumerate(theirs)}
    sources = [rows.get(normalise_answer(answer), rows.get(answer)) for answer in ours]
    known = torch.tensor([row is not None for row in sources])
    index = torch.tensor([row or 0 for row in sources])
    matched = dict(state)
    for name in ("weight", "bias"):
        old = state[LAST_LAYER + name]
        new = old[index]
        new[~known] = 0
        matched[LAST_LAYER + name] = new
    return matched
