"""What DeepSpeed's own classes say against a configuration, before anything is read."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from pydantic import ValidationError

from engine.configuration.deepspeed_keys import unknown

# What DeepSpeed can't do without, in place of what flags and a run's ranks decide.
LEAST = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "zero_optimization": {"stage": 2}}
DECIDED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def configuration_problems(settings: dict[str, Any]) -> Iterator[str]:
    """One line each, with the key. Every key is looked at by itself, so that none hides another.

    Args:
        settings: DeepSpeed's, from engine.configuration.deepspeed.
    """
    for key, value in settings.items():
        if key in DECIDED:
            continue
        try:
            DeepSpeedConfig({**LEAST, key: value})
        except ValidationError as error:
            yield from (f"{key}.{reason_of(problem, error.title)}" for problem in error.errors())
        except Exception as error:  # of whatever kind a value makes DeepSpeed's code raise
            yield f"{key} {json.dumps(value)}: {(str(error) or repr(error)).splitlines()[0]}"


def reason_of(problem: Any, title: str) -> str:
    """`KEY VALUE: REASON`, from one of pydantic's.

    Args:
        title: the name of the class that describes the section.
    """
    *sections, name = map(str, problem["loc"] or [title])
    dotted = ".".join([*sections, name])
    if problem["type"] == "extra_forbidden":
        return f"{dotted}, {unknown(name, fields_of(title, sections))}"
    return f"{dotted} {json.dumps(problem['input'], default=str)}: {problem['msg']}"


def fields_of(title: str, sections: list[str]) -> Iterable[str]:
    """What there may be in the section of a class, or in a section of it."""
    model = next(model for model in DeepSpeedConfigModel.__subclasses__() if model.__name__ == title)
    for section in sections:
        annotation = model.model_fields[section].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
    return [field.alias or name for name, field in model.model_fields.items()]
