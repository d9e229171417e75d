"""The problems of all machines in one list, with those that show only between them."""

import json
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.manifest import UNFINISHED
from engine.configuration.flags import TrainingConfig
from engine.distributed.meeting import Meeting
from engine.distributed.ranks import Ranks
from engine.distributed.sharing import share_on_node
from engine.errors import UserError, numbered
from engine.provenance.environment import checkout, versions
from engine.tasks.task import Task
from engine.training.preflight.checks import find_problems
from engine.training.preflight.trial import folders_as_before


def check(
    config: TrainingConfig,
    task_class: Callable[..., Task[Any]],
    ranks: Ranks,
    settings: dict[str, Any],
    device: torch.device,
    meeting: Meeting,
    *,
    thorough: bool,
) -> None:
    """Look for what keeps a training from running, before anything is read. Every rank calls it.

    Args:
        thorough: whether all data are read, images looked at, and memory counted, as --dry_run does.

    Raises:
        UserError: with all problems of all machines.
    """

    def look() -> list[str]:
        return list(find_problems(config, task_class, ranks, settings, device, thorough=thorough))

    here = share_on_node(ranks, "problems", look)
    problems = problems_of_all(meeting, ranks, here, Path(config.output))
    if problems:
        meeting.end()  # all ranks know, and none minds any more when another leaves
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} things keep this training from running:{numbered(problems)}")


def compared() -> dict[str, str]:
    """The versions that have to be the same on all machines: those of drivers needn't."""
    found = {name: version for name, version in versions().items() if name != "driver"}
    return {**found, "this engine (its git commit)": (checkout() or {"commit": "unknown"})["commit"]}


def problems_of_all(meeting: Meeting, ranks: Ranks, here: list[str], output: Path) -> list[str]:
    """Put the machines' lists together, each problem once, with the machine where it isn't common to all.

    Every rank calls it and gets the same list.

    Args:
        here: what was found on this machine.
    """
    if meeting.alone:
        return here
    here = [*here, meeting.problem] if meeting.problem else here
    about = {"host": socket.gethostname(), "problems": here, "versions": compared(), "probe": ""}
    with folders_as_before(output):
        if ranks.rank == 0:
            about["probe"] = _leave_probe(output)
        said = [json.loads(text) for text in meeting.exchange("preflight", json.dumps(about))]
        probe = said[0]["probe"]
        sees = meeting.exchange("sees", "yes" if probe and (output / probe).exists() else "no")
        if ranks.rank == 0 and probe:
            (output / probe).unlink(missing_ok=True)
    found = _by_machine(said) + _different_versions(said)
    if probe and (blind := [rank for rank, answer in enumerate(sees) if answer == "no"]):
        found.append(
            f"rank {blind[0]} on {said[blind[0]]['host']} doesn't see what rank 0 on {said[0]['host']} writes to "
            f"--output {output}, where every rank saves its part ({len(blind)} of {len(said)} ranks don't); choose a "
            "folder on a disk that all machines share"
        )
    return found


def _leave_probe(output: Path) -> str:
    """A file for the others to see; its name, or "" where none can be written, which is told already."""
    name = f".seen-{uuid.uuid4().hex}{UNFINISHED}"  # which the next start sweeps, should this one be killed
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / name).touch()
    except OSError:
        return ""
    return name


def _by_machine(said: list[dict[str, Any]]) -> list[str]:
    hosts = list(dict.fromkeys(one["host"] for one in said))
    found: dict[str, list[str]] = {}
    for one in said:
        for problem in one["problems"]:
            found.setdefault(problem, []).append(one["host"])
    everywhere = {problem: set(where) == set(hosts) for problem, where in found.items()}
    return [
        problem if everywhere[problem] or len(hosts) == 1 else f"on {', '.join(dict.fromkeys(where))}: {problem}"
        for problem, where in found.items()
    ]


def _different_versions(said: list[dict[str, Any]]) -> list[str]:
    found = []
    for name in said[0]["versions"]:
        hosts: dict[str, str] = {}
        for one in said:
            hosts.setdefault(one["versions"][name], one["host"])
        if len(hosts) > 1:
            listed = ", ".join(f"{number} on {host}" for number, host in hosts.items())
            found.append(f"the machines have different versions of {name} ({listed}); install the same one everywhere")
    return found
