"""Ranks on several machines: who doesn't come, who is gone, and who can't be reached, each in one line."""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest.mock import patch

import pytest
from torch.distributed import PrefixStore, TCPStore

from engine.distributed import joining
from engine.distributed.joining import join
from engine.distributed.meeting import Meeting
from engine.distributed.ranks import Ranks
from engine.distributed.sharing import share_on_node
from engine.errors import UserError
from tests.conftest import ROOT, environment, free_port


def of_two(rank: int) -> Ranks:
    return Ranks(rank=rank, world_size=2, local_rank=0, local_world_size=1)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> str:
    port = free_port()
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    return port


def test_a_rank_that_does_not_come_is_named(port: str) -> None:
    with pytest.raises(UserError, match=r"^rank 1 of 2 ranks had not started after 1 s; .* --start_timeout"):
        Meeting(of_two(0), patience=1)


def test_ranks_that_torchrun_restarts_meet_anew(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store lives on, and what the ranks before said there is of the past."""
    store = TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False)
    PrefixStore("clipvil 0", store).set("host 1", "node2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(UserError, match=r"^rank 1 of 2 ranks had not started after 1 s"):
        Meeting(of_two(0), patience=1)


def test_no_way_to_rank_0_is_told_with_its_address(port: str) -> None:
    with pytest.raises(UserError, match=rf"found no rank 0 at 127\.0\.0\.1:{port} within 1 s; .*--master_addr"):
        Meeting(of_two(1), patience=1)


def test_ranks_without_a_place_to_meet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = Ranks(rank=0, world_size=2, local_rank=0, local_world_size=2)  # which needs a name for what it shares
    share = partial(share_on_node, together, "data", dict)
    for meet in (lambda: Meeting(of_two(0), patience=1), share, join):
        with pytest.raises(UserError, match=r"that there are 2 ranks, but lacks some of RANK, .* MASTER_ADDR"):
            meet()


@pytest.mark.parametrize(
    "given", [{}, {"RANK": "0"}, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"}, {"WORLD_SIZE": "1"}]
)
def test_a_rank_alone_needs_no_environment(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a part of one stand in its way, as a container may have it."""
    monkeypatch.setattr(joining.deepspeed, "init_distributed", lambda verbose: None)
    monkeypatch.setattr(joining.dist, "barrier", lambda: None)
    with patch.dict(os.environ, given):
        for name in joining.PLACE - given.keys():
            os.environ.pop(name, None)
        join()
        assert {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
            **{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            "MASTER_ADDR": "127.0.0.1",
        }


def test_several_ranks_of_which_this_is_none_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2 in the environment, but RANK isn't set"):
        Ranks.from_environment()


def test_a_port_that_is_taken_is_told_at_the_start(port: str) -> None:
    taken = f"^port {port}, where the ranks were to meet, is taken"
    with socket.create_server(("127.0.0.1", int(port))), pytest.raises(UserError, match=taken):
        Meeting(of_two(0), patience=1)


def test_ranks_meet_beside_a_port_that_is_taken(port: str) -> None:
    """To tell each other of it. What has the port accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", int(port))), ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: Meeting(of_two(rank), patience=30), (0, 1))
        said = pool.map(lambda meeting: meeting.exchange("what", f"from {meeting.ranks.rank}"), (first, second))
        assert list(said) == [["from 0", "from 1"]] * 2
        assert first.problem.startswith(f"port {port}, where the ranks were to meet, is taken")
        assert second.problem == ""
        list(pool.map(Meeting.end, (first, second)))


def test_on_one_machine_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    meeting = Meeting(Ranks(rank=0, world_size=2, local_rank=0, local_world_size=2), patience=1)
    assert "meeting" not in {thread.name for thread in threading.enumerate()}
    meeting.wait_for_all()
    meeting.end()
    assert not hasattr(meeting, "store")


def start_rank(rank: int, port: str, *dies: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.workers.meeting", str(rank), port, *dies]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1, None], ids=["rank 0", "rank 1", "none"])
def test_who_is_killed_while_preparing_ends_the_others(dying: int | None) -> None:
    """By kill -9, of which nobody tells the other machine; and preparing for long is no reason to end."""
    port = free_port()
    ranks = [start_rank(rank, port, *(["die"] if rank == dying else [])) for rank in (0, 1)]
    results = [(*process.communicate(timeout=60), process.returncode) for process in ranks]
    if dying is None:
        assert [(code, stdout) for stdout, _, code in results] == [(0, "all are ready\n")] * 2
        return
    stdout, stderr, code = results[1 - dying]
    assert (stdout, code) == ("", 1)
    lines = [line for line in stderr.splitlines() if "error: " in line]
    why = "it ended, as its own message should say, or its machine can't be reached"
    assert lines == [f"meeting.py: error: rank {dying} on {socket.gethostname()} can't be heard any more: {why}"]


@pytest.mark.parametrize(
    "said",
    [
        "Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: SO_ERROR: Connection refused, remote=",
        "[enforce fail at device.cc:84] ifa != nullptr. Unable to find address for: eth99",
    ],
)
def test_an_address_that_others_cant_reach_is_told_with_what_to_set(port: str, said: str) -> None:
    def init_distributed(verbose: bool) -> None:
        raise RuntimeError(said + "\nException raised from ...")

    with patch.object(joining.deepspeed, "init_distributed", init_distributed), pytest.raises(UserError) as error:
        join()
    assert "GLOO_SOCKET_IFNAME=eth0 and, for GPUs, NCCL_SOCKET_IFNAME=eth0" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
