"""launch/pretrain.py with a library that keeps capitals, whatever it is told."""

from typing import Any

from transformers import BertTokenizer

import engine.configuration.bert
from engine.tasks.pretraining import Pretraining
from engine.training.program import main


def cased(**settings: Any) -> BertTokenizer:
    return BertTokenizer(**{**settings, "do_lower_case": False})


engine.configuration.bert.BertTokenizer = cased

if __name__ == "__main__":
    main(Pretraining)
