"""Ranks that Slurm or OpenMPI started, from environments as these make them."""

import os
from unittest.mock import patch

import pytest

from engine.distributed.ranks import Ranks
from engine.distributed.schedulers import expand_counts, first_host, of_scheduler
from engine.errors import UserError

# In the script that sbatch runs on the first of two nodes: it is one process, though the job has five tasks.
BATCH = {
    **{"SLURM_JOB_ID": "200505", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "5"},
    **{"SLURM_NNODES": "2", "SLURM_TASKS_PER_NODE": "3,2", "SLURM_JOB_NODELIST": "node[07-08]"},
}
# The shell of salloc, where the cluster starts it as a step of its own.
INTERACTIVE = {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node07"}
INTERACTIVE |= {"SLURM_STEP_TASKS_PER_NODE": "1"}
# The fourth task that srun started there.
STEP = {
    **{**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2"},
    **{"SLURM_STEP_NODELIST": "node[07-08]", "SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"},
}
ON_ONE_NODE = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
ON_ONE_NODE |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
MPIRUN = {
    **{"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
}
# In a job of two nodes, mpirun has srun start a daemon on each, whose variables its own ranks inherit.
DAEMON = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def without(environment: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != name}


@pytest.mark.parametrize(
    ("environment", "ranks", "place"),
    [
        ({}, Ranks(0, 1, 0, 1), None),
        (BATCH, Ranks(0, 1, 0, 1), None),
        (INTERACTIVE, Ranks(0, 1, 0, 1), None),
        (STEP, Ranks(3, 5, 0, 2), ("node07", "24080")),
        ({**STEP, "SLURM_STEP_ID": "1"}, Ranks(3, 5, 0, 2), ("node07", "24081")),
        ({**STEP, "MASTER_ADDR": "10.0.0.7"}, Ranks(3, 5, 0, 2), ("10.0.0.7", "24080")),
        ({**STEP, **TORCHRUN}, Ranks(1, 2, 1, 2), None),
        ({**INTERACTIVE, "OMPI_COMM_WORLD_SIZE": "1"}, Ranks(0, 1, 0, 1), None),
        ({**MPIRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"}, Ranks(3, 4, 1, 2), ("10.0.0.7", "1234")),
        ({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, Ranks(3, 4, 1, 4), ("127.0.0.1", "29500")),
        (MPIRUN, Ranks(3, 4, 1, 2), None),
        (MPICH, Ranks(1, 2, 1, 2), ("127.0.0.1", "29500")),
        ({**MPICH, "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}, Ranks(1, 2, 0, 1), None),
        ({**DAEMON, **MPIRUN}, Ranks(3, 4, 1, 2), None),
        ({**DAEMON, **MPICH, "PMI_SIZE": "4", "PMI_RANK": "3"}, Ranks(3, 4, 1, 2), None),
        ({**STEP, "PMI_RANK": "3", "PMI_SIZE": "5"}, Ranks(3, 5, 0, 2), ("node07", "24080")),
        (ON_ONE_NODE, Ranks(1, 2, 1, 2), ("127.0.0.1", "24080")),
    ],
    ids=[
        *("nothing", "sbatch", "salloc", "srun", "a second step", "srun with an address", "torchrun in srun"),
        *("mpirun of one", "mpirun with an address", "mpirun on one machine", "mpirun on two"),
        *("MPICH on one machine", "MPICH on two", "mpirun in Slurm", "MPICH in Slurm", "srun with PMI", "srun on one"),
    ],
)
def test_only_a_step_of_several_tasks_is_several_ranks(
    environment: dict[str, str], ranks: Ranks, place: tuple[str, str] | None
) -> None:
    with patch.dict(os.environ, environment, clear=True):
        assert Ranks.from_environment() == ranks
        found = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        assert found == (place or (None, None))
        assert of_scheduler(os.environ) == {}  # the second time, as a launcher had set it


@pytest.mark.parametrize(("nodes", "refused"), [(2, False), (3, True)])
def test_nodes_are_those_of_the_step(nodes: int, refused: bool) -> None:
    with patch.dict(os.environ, STEP, clear=True):
        Ranks.from_environment()
        try:
            Ranks.check_nodes(nodes)
        except UserError:
            assert refused
        else:
            assert not refused


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node07", "node07"),
        ("node[007-009,012],login1", "node007"),
        ("login1,node[007-009]", "login1"),
        ("rack[2-3]node[04-09]-ib,x", "rack2node04-ib"),
        ("gpu-a[1,5].cluster.org", "gpu-a1.cluster.org"),
    ],
)
def test_the_first_of_slurms_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_slurms_counts_by_node() -> None:
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    assert expand_counts("8") == [8]
    assert expand_counts("1,3(x12)") == [1] + 12 * [3]


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}, "rank 3 of 2"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "lacks some of RANK, LOCAL_RANK"),
        ({"RANK": "3"}, "rank 3 of 1"),
        ({"LOCAL_RANK": "1"}, "rank 0 of 1, and on this machine 1 of 1"),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_SIZE": "2"}, "on this machine 2 of 2"),
        ({"RANK": "first"}, "RANK is 'first' in the environment, which is no number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '' in the environment, which is no number"),
        ({"WORLD_SIZE": "0"}, "rank 0 of 0"),
        ({"MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT is 'tcp://10.0.0.1:80' in the environment, which is no"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999 in the environment; set a port from 1 to 65535"),
        ({**STEP, "SLURM_PROCID": "x"}, "SLURM_PROCID is 'x' in the environment, which is no number"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS is '' in the environment, which is no number"),
        (without(STEP, "SLURM_STEP_NODELIST"), "but SLURM_STEP_NODELIST is missing in the environment; pass on"),
        (without(STEP, "SLURM_LOCALID"), "but SLURM_LOCALID is missing"),
        (
            {**STEP, "SLURM_STEP_TASKS_PER_NODE": "3"},
            "SLURM_STEP_TASKS_PER_NODE 3 and SLURM_NODEID 1 in the environment,",
        ),
        ({**STEP, "SLURM_NODEID": "2"}, "and SLURM_NODEID 2 in the environment, which don't fit"),
        ({**STEP, "SLURM_PROCID": "5"}, "rank 5 of 5"),
        ({**BATCH, "SLURM_PROCID": "1"}, "but SLURM_STEP_NUM_TASKS is missing"),  # a script of sbatch is the first
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "but SLURM_STEP_NUM_TASKS is missing"),
        (without(MPIRUN, "OMPI_COMM_WORLD_LOCAL_RANK"), "but OMPI_COMM_WORLD_LOCAL_RANK is missing"),
        ({**MPIRUN, "OMPI_COMM_WORLD_RANK": "x"}, "OMPI_COMM_WORLD_RANK is 'x' in the environment, which is no number"),
        (without(MPICH, "MPI_LOCALRANKID"), "but MPI_LOCALRANKID is missing"),
    ],
)
def test_ranks_that_cannot_be_are_refused(environment: dict[str, str], part: str) -> None:
    with patch.dict(os.environ, environment, clear=True), pytest.raises(UserError) as error:
        Ranks.from_environment()
    assert part in str(error.value)
    assert "\n" not in str(error.value)
