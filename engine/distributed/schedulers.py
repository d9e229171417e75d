"""The ranks that `srun` or `mpirun` started, in the variables that launchers set: RANK, WORLD_SIZE and the others."""

import re
from collections.abc import Mapping

from engine.errors import UserError

FIRST_PORT, PORTS = 16_000, 16_000  # below those that Linux hands out by itself, which begin at 32768
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# The same in OpenMPI's mpirun, and in that of MPICH and of Intel MPI.
OPENMPI = (
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def of_scheduler(environment: Mapping[str, str]) -> dict[str, str]:
    """What a launcher would have set, where there is none but Slurm's srun or an mpirun started several ranks.

    A person's own MASTER_ADDR and MASTER_PORT stay.

    Returns:
        the variables to add; none if a launcher has set its own, or if this process is the only one.

    Raises:
        UserError: if there are several ranks, and a variable that tells them apart is missing or makes no sense.
    """
    if "RANK" in environment:
        return {}
    found = _of_mpirun(environment) or _of_srun(environment)
    kept = {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environment and found}
    return {**found, **kept}


def _of_mpirun(environment: Mapping[str, str]) -> dict[str, str]:
    """It doesn't say where rank 0 is: on several machines a person has to give MASTER_ADDR and MASTER_PORT.

    It comes before srun, by which it starts a daemon on each machine of a Slurm job, and which only knows of these.
    """
    for names in (OPENMPI, MPICH):
        by_srun = names is MPICH and "MPI_LOCALRANKID" not in environment and "SLURM_STEP_ID" in environment
        if by_srun or number_of(environment, names[1], 1) == 1:  # with --mpi=pmi2, srun sets PMI_SIZE, too
            continue
        numbers = [number_of(environment, name) for name in names]
        on_one_machine = numbers[1] == numbers[3]
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} if on_one_machine else {}
        return {**dict(zip(PLACE, map(str, numbers), strict=True)), **meet}
    return {}


def _of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """Of a job step with several tasks.

    SLURM_PROCID and SLURM_NTASKS are also set where srun has started nothing: in the script that sbatch runs, and in
    the shell of salloc. Only the SLURM_STEP variables are those of a step, and such a shell's step has one task.
    """
    is_script = "SLURM_JOB_ID" in environment or number_of(environment, "SLURM_NTASKS", 1) == 1
    is_alone = is_script and number_of(environment, "SLURM_PROCID", 0) == 0
    world_size = number_of(environment, "SLURM_STEP_NUM_TASKS", 1 if is_alone else None)
    if world_size == 1:
        return {}
    job, step, node = (number_of(environment, f"SLURM_{name}") for name in ("JOB_ID", "STEP_ID", "NODEID"))
    hosts, tasks = (_value(environment, f"SLURM_STEP_{name}") for name in ("NODELIST", "TASKS_PER_NODE"))
    on_nodes = expand_counts(tasks)
    if sum(on_nodes) != world_size or not 0 <= node < len(on_nodes):
        raise UserError(
            f"SLURM_STEP_NUM_TASKS is {world_size}, SLURM_STEP_TASKS_PER_NODE {tasks} and SLURM_NODEID {node} in the "
            "environment, which don't fit; pass on what `srun` sets, or start the ranks with `torchrun` or `deepspeed`"
        )
    numbers = [number_of(environment, "SLURM_PROCID"), world_size]
    numbers += [number_of(environment, "SLURM_LOCALID"), on_nodes[node]]
    return {
        **dict(zip(PLACE, map(str, numbers), strict=True)),
        "GROUP_WORLD_SIZE": str(len(on_nodes)),
        "MASTER_ADDR": first_host(hosts) if len(on_nodes) > 1 else "127.0.0.1",
        "MASTER_PORT": str(FIRST_PORT + (16 * job + step) % PORTS),  # steps side by side in a job have one each
    }


def number_of(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A variable that is a number.

    Args:
        default: where it isn't set.

    Raises:
        UserError: if it is no number, or it is missing and there is no default.
    """
    value = _value(environment, name) if default is None else environment.get(name, str(default))
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} is {value!r} in the environment, which is no number; unset it") from None


def _value(environment: Mapping[str, str], name: str) -> str:
    try:
        return environment[name]
    except KeyError:
        raise UserError(
            f"`srun` or `mpirun` started several ranks, but {name} is missing in the environment; pass on all that it "
            "sets, or start the ranks with `torchrun` or `deepspeed`"
        ) from None


def expand_counts(counts: str) -> list[int]:
    """Slurm's numbers by node: 2(x3),1 is 2, 2, 2, 1."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        found += [int(count)] * int(times or 1)
    return found


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: node007 of node[007-009,012],login1."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", hosts).split(",")[0]
