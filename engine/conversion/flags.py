"""The flags of launch/convert.py."""

import re
from dataclasses import dataclass, field
from typing import Any

from transformers.hf_argparser import HfArg

from engine.configuration.parsing import Parser
from engine.data.annotations.questions.snli_ve import check_labels
from engine.errors import UserError

SOURCES = ("lxrt", "openai-clip", "bert", "deepspeed", "safetensors")
TARGETS = ("lxrt", "safetensors", "deepspeed", "hub", "onnx")
SIZE = re.compile(r"\d+(\.\d+)?[KMGT]?B", re.IGNORECASE)


@dataclass
class ConvertConfig:
    """Read weights in one format or several, and write them in another."""

    sources: list[tuple[str, str]] = field(default_factory=list, init=False)  # --from KIND PATH
    to: tuple[str, str] = field(default=("", ""), init=False)  # --to KIND PATH
    bert: str | None = HfArg(default=None, help="folder or hub name of the model's BERT; gives heads and vocabulary")
    do_lower_case: bool | None = HfArg(
        default=None, help="whether the model reads texts in lower case; if not given, as --bert's files say"
    )
    answers: str | None = HfArg(default=None, help="table of the source's answer head, where its file doesn't say")
    label_order: str | None = HfArg(
        default=None, help="the same of a visual entailment head: its labels in the order of the rows, with commas"
    )
    new_answers: str | None = HfArg(default=None, help="table to make the answer head for; rows go by answer")
    sub_feat_num: int = HfArg(default=100, help="cells that the model reads per image, where no source says; 0 for all")
    module_prefix: bool = HfArg(default=True, help="--to lxrt: `module.` before each key; the original asks for it")
    allow_missing: bool = HfArg(default=False, help="start what no source has with random weights")
    allow_unexpected: bool = HfArg(default=False, help="leave out what the model doesn't have")
    allow_mismatched: bool = HfArg(default=False, help="leave out what has another shape, as if it were missing")
    seed: int = HfArg(default=9595, help="seed of random weights")
    max_shard_size: str = HfArg(default="50GB", help="--to hub: weights above this go into several files")
    license: str | None = HfArg(default=None, help="--to hub: the model's licence in its card, such as mit")


def parse_conversion(argv: list[str]) -> ConvertConfig:
    """Flags of launch/convert.py, whose --from may come several times.

    Raises:
        UserError: for an unknown flag or value, or without --from or --to.
    """
    parser = Parser(ConvertConfig, description=ConvertConfig.__doc__)
    pair: dict[str, Any] = {"nargs": 2, "metavar": ("KIND", "PATH")}
    parser.add_argument("--from", dest="sources", action="append", help=f"KIND is {', '.join(SOURCES)}", **pair)
    parser.add_argument("--to", help=f"KIND is {', '.join(TARGETS)}", **pair)
    arguments = vars(parser.parse_args(argv))
    source, target = arguments.pop("sources"), arguments.pop("to")
    if not source or not target:
        raise UserError("both --from KIND PATH and --to KIND PATH are needed; see --help")
    config = ConvertConfig(**arguments)
    if not SIZE.fullmatch(config.max_shard_size):
        raise UserError(f"--max_shard_size {config.max_shard_size}: a size such as 5GB or 500MB is needed")
    if config.label_order is not None:
        check_labels(config.label_order)
        if config.answers is not None:
            raise UserError("--answers and --label_order both say what the head's rows are for; drop one")
    if config.do_lower_case is not None and config.bert is None:
        raise UserError("--do_lower_case is about the vocabulary that --bert names; add --bert FOLDER")
    if target[0] != "hub" and config.license is not None:
        raise UserError(f"--license goes into the card of --to hub; --to {target[0]} has no place for it")
    config.sources, config.to = [(kind, path) for kind, path in source], (target[0], target[1])
    return config
