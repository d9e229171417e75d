"""The job files of docs/scaling.md, as far as they can be tried without a cluster."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from engine.configuration.parsing import parse
from engine.tasks.pretraining import PretrainConfig
from engine.training.program import RECIPES
from tests.conftest import ROOT, environment

PAGE = re.split(r"^## ", (ROOT / "docs" / "scaling.md").read_text(), flags=re.MULTILINE)
[SECTION] = [part for part in PAGE if part.startswith("Several machines\n")]
# Notes its own options and runs the rest of its command line, once and without training.
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do echo "$1" >> "$SEEN"; shift; done
exec "$@" --print_config
"""


def block(language: str, begin: str) -> str:
    [found] = re.findall(rf"^```{language}\n({begin}.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    return found


def test_slurms_file_starts_a_training(tmp_path: Path) -> None:
    """With a stand-in for srun, and the Python that runs this test."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euc", block("bash", "#!")],
        cwd=tmp_path,
        env={**environment(), "PATH": path, "SLURM_CPUS_PER_TASK": "12", "SEEN": str(tmp_path / "seen")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    printed = yaml.safe_load(run.stdout)
    assert (printed["global_batch_size"], printed["num_workers"], printed["resume"]) == (512, 10, "auto")
    assert (tmp_path / "seen").read_text().split() == ["--kill-on-bad-exit=1", "--cpus-per-task=12"]


def test_kubernetes_file_names_the_same_things_throughout() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(block("yaml", "apiVersion")))
    service, job = documents
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (service["kind"], service["spec"]["clusterIP"], job["kind"]) == ("Service", "None", "Job")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}

    [command] = container["args"]
    words = command.replace('"$JOB_COMPLETION_INDEX"', "1").split()
    assert words[:2] == ["exec", "torchrun"]
    arguments = get_args_parser().parse_args(words[2:])
    assert (arguments.node_rank, arguments.training_script) == (1, "launch/pretrain.py")
    assert int(arguments.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(arguments.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert arguments.master_addr == f"{job['metadata']['name']}-0.{service['metadata']['name']}"


@pytest.mark.parametrize("world_size", [8, 16])
def test_every_training_of_the_section_has_flags_that_pass(world_size: int) -> None:
    """With as many ranks as the section has, and as the recipe was made for."""
    joined = SECTION.replace("\\\n", " ")
    commands = re.findall(r"launch/pretrain\.py([^\n`]*(?:\n +--[^\n`]*)*)", joined)
    assert len(commands) == 5
    for flags in commands:
        config, _ = parse(PretrainConfig, flags.split(), RECIPES)
        config.check(world_size)
        assert config.batch_size * config.gradient_accumulation_steps * world_size == 512
