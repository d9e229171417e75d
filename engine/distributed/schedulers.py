"""The ranks that `srun` or `mpirun` started, in the variables that launchers set: RANK, WORLD_SIZE and the others."""

import re
from collections.abc import Mapping

FIRST_PORT, PORTS = 16_000, 16_000  # below those that Linux hands out by itself, which begin at 32768


def of_scheduler(environment: Mapping[str, str]) -> dict[str, str]:
    """What a launcher would have set, where there is none but Slurm's srun or OpenMPI's mpirun started several ranks.

    A person's own MASTER_ADDR and MASTER_PORT stay.

    Returns:
        the variables to add; none if a launcher has set its own, or if this process is the only one.
    """
    if "RANK" in environment:
        return {}
    found = _of_srun(environment) or _of_mpirun(environment)
    kept = {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environment and found}
    return {**found, **kept}


def _of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """Of a job step with several tasks.

    SLURM_PROCID and SLURM_NTASKS are also set where srun has started nothing: in the script that sbatch runs, and in
    the shell of salloc. Only the SLURM_STEP variables are those of a step, and such a shell's step has one task.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return {}
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    tasks = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks[int(environment["SLURM_NODEID"])]),
        "GROUP_WORLD_SIZE": str(len(tasks)),
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(FIRST_PORT + (16 * job + step) % PORTS),  # steps side by side in a job have one each
    }


def _of_mpirun(environment: Mapping[str, str]) -> dict[str, str]:
    """It doesn't say where rank 0 is: on several machines a person has to give MASTER_ADDR and MASTER_PORT."""
    world_size = environment.get("OMPI_COMM_WORLD_SIZE", "1")
    if world_size == "1":
        return {}
    found = {
        "RANK": environment["OMPI_COMM_WORLD_RANK"],
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": environment["OMPI_COMM_WORLD_LOCAL_RANK"],
        "LOCAL_WORLD_SIZE": environment["OMPI_COMM_WORLD_LOCAL_SIZE"],
    }
    on_one_machine = found["LOCAL_WORLD_SIZE"] == world_size
    return {**found, **({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} if on_one_machine else {})}


def expand_counts(counts: str) -> list[int]:
    """Slurm's numbers by node: 2(x3),1 is 2, 2, 2, 1."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        found += [int(count)] * int(times or 1)
    return found


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: node007 of node[007-009,012],login1."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", hosts).split(",")[0]
