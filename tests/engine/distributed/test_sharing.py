"""Several processes as ranks of one machine, with and without what can go wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port

RANK = """
import json, os, sys, time
import numpy as np
from engine.data.annotations.columns import SharedColumns
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.distributed.sharing import share_on_node

def make():
    assert os.environ["LOCAL_RANK"] == "0"
    exec(os.environ.get("IN_MAKE", ""))
    return {"columns": SharedColumns.of({"n": np.arange(1000)}), "other": SharedColumns.of({"m": np.ones(3)}), "x": 5}

try:
    exec(os.environ.get("BEFORE", ""))
    results = [share_on_node(Ranks.from_environment(), name, make) for name in ("train", "valid")]
    print(json.dumps([
        [r["x"], int(r["columns"]["n"].sum()), float(r["other"]["m"].sum()), os.fstat(r["columns"].descriptor).st_ino]
        for r in results
    ]), flush=True)
    sys.stdin.read()  # the memory of the others has to stay as long as theirs is compared
except UserError as error:
    print(error)
"""


def start(rank, ranks, port, **environment):
    ours = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return subprocess.Popen(
        [sys.executable, "-c", RANK],
        cwd=ROOT,
        env={**os.environ, **ours, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(processes):
    first = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate(timeout=60)
    return first


@pytest.mark.parametrize("late", [0, 2], ids=["first_rank_late", "last_rank_late"])
def test_all_ranks_get_the_memory_of_the_first(late):
    port = free_port()
    delay = {late: {"BEFORE": "time.sleep(1)"}}
    ranks = [start(rank, 3, port, **delay.get(rank, {})) for rank in range(3)]
    told = [json.loads(line) for line in lines(ranks)]
    assert told[0] == told[1] == told[2]
    for x, total, ones, _ in told[0]:
        assert (x, total, ones) == (5, 499500, 3.0)
    assert told[0][0][3] != told[0][1][3]  # two things that were shared, two memories


def test_two_runs_on_one_machine_do_not_meet():
    runs = [[start(rank, 2, port) for rank in range(2)] for port in (free_port(), free_port())]
    one, other = ([json.loads(line) for line in lines(ranks)] for ranks in runs)
    assert one[0] == one[1]
    assert other[0] == other[1]
    assert one[0][0][3] != other[0][0][3]


def test_a_first_rank_that_fails_is_told_by_the_others():
    port = free_port()
    ranks = [start(rank, 2, port, IN_MAKE="time.sleep(3); raise UserError('broken file')") for rank in range(2)]
    assert [line.strip() for line in lines(ranks)] == [
        "broken file",
        "local rank 0 ended while it prepared the data; its own message says why",
    ]


def test_a_first_rank_that_is_killed_is_told_by_the_others():
    port = free_port()
    first = start(0, 2, port, IN_MAKE="print('here', flush=True); time.sleep(60)")
    assert first.stdout.readline() == "here\n"
    second = start(1, 2, port, BEFORE="print('here', flush=True)")
    assert second.stdout.readline() == "here\n"
    time.sleep(0.5)  # to connect
    first.send_signal(signal.SIGKILL)
    assert second.communicate(timeout=30)[0].startswith("local rank 0 ended while it prepared the data")
    first.communicate()
    again = [start(rank, 2, port) for rank in range(2)]  # nothing is left that would be in the way
    assert len({line for line in lines(again)}) == 1


def test_a_taken_master_port_is_told():
    port = free_port()
    first = start(0, 2, port, IN_MAKE="print('here', flush=True); sys.stdin.readline()")
    assert first.stdout.readline() == "here\n"
    assert "another run on this machine has the same --master_port" in start(0, 2, port).communicate(timeout=30)[0]
    first.kill()
    first.communicate()


def test_a_stray_connection_is_not_taken_for_a_rank():
    """One that goes away at once, as a scanner's."""
    port = free_port()
    first = start(0, 2, port, IN_MAKE="print('here', flush=True); sys.stdin.readline()")
    first.stdout.readline()
    its = {link.readlink().name for link in Path(f"/proc/{first.pid}/fd").iterdir()}  # socket:[inode]
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines() if "@clipvil-" in line]
    (name,) = {fields[-1] for fields in sockets if f"socket:[{fields[6]}]" in its}
    with socket.socket(socket.AF_UNIX) as stray:
        stray.connect("\0" + name[1:])
    second = start(1, 2, port)
    for _ in range(2):
        first.stdin.write("\n")
    first.stdin.flush()
    first.stdout.readline()
    told = [json.loads(line) for line in lines([first, second])]
    assert told[0] == told[1]
