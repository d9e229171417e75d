"""Bytes that each rank sends in an optimiser step, beside the least that ZeRO-2 needs: counted on ranks of this CPU.

    python -m engine.benchmark.communication
    python -m engine.benchmark.communication --whole --ranks 8
    python -m engine.benchmark.communication --trace traces

The engine trains a small model, as in any training. Each collective is counted where PyTorch hands it to the backend,
whoever called it, and converted to what a ring of ranks sends: an all-reduce sends each byte of the message twice, any
other collective once, times (N - 1) / N. The sockets of each rank tell how many bytes have really left it.
"""

import argparse
import itertools
import json
import os
import socket
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed.comm
import torch.distributed as dist
import torch.multiprocessing as mp
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.comm import comms_logger
from torch.profiler import profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from engine.benchmark.counting import Collectives
from engine.benchmark.step.workload import Workload
from engine.configuration.deepspeed import deepspeed_settings, refuse, setting_problems
from engine.data.loading import Batch
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.optim.hybrid import trained_values
from engine.training.engine import build_engine
from engine.training.loop import micro_step
from kernels.benchmark.shapes import DTYPES

MB = 1e6
SMALL = Workload("tiny", layers=1, hidden_size=64, sub_feat_num=4, height=64, width=96, dtype="fp32")
WHOLE = replace(SMALL, backbone="RN50", layers=12, hidden_size=768)
SHOWN = ("reduce", "all_reduce", "all_gather")
BUCKETS = 4  # at least: a small model has as many for its size as RN50 with those of ds_configs
SENT_AT = 200  # bytes before tcpi_bytes_sent and tcpi_bytes_retrans, in Linux's struct tcp_info
NOTES = """
Of each rank in one optimiser step; MB are 10^6 bytes, as a ring sends them, and the mean over the ranks.
bound      all, over what ZeRO-2 needs: the gradients once in each micro-batch, the weights once in each step
calls      collectives
logged     those of them that DeepSpeed's own logger of communication has seen
sockets    bytes that left the ranks, over what Gloo's algorithms send for these collectives: 1 if none is missed"""


@dataclass(frozen=True)
class Setup:
    """What is trained, and how."""

    work: Workload
    world_size: int
    accumulation: int
    zero: dict[str, Any]  # over the section zero_optimization of ds_configs


@dataclass(frozen=True)
class Sent:
    """By one rank in one optimiser step."""

    values: int  # that are trained
    messages: dict[str, list[int]]  # bytes, by collective
    logged: int  # collectives that DeepSpeed's logger has seen
    sockets: int  # bytes

    def total(self, algorithm: Callable[[str, int, int], float], ranks: int) -> float:
        return sum(algorithm(name, size, ranks) for name, sizes in self.messages.items() for size in sizes)


def ring(name: str, size: int, ranks: int) -> float:
    """Bytes that a rank sends for a message of `size` bytes; where one rank is the root, the mean over the ranks."""
    return (2 if name == "all_reduce" else 1) * size * (ranks - 1) / ranks


def gloo(name: str, size: int, ranks: int) -> float:
    """The same as Gloo does it.

    Its reduce is a reduce-scatter, whose parts are then sent to the root. (Of a message of more than 2 MB for each
    rank, it sends most parts along the ring once more than it has to; those of SMALL are smaller.)
    """
    return ring(name, size, ranks) * (1 + 1 / ranks if name == "reduce" else 1)


def bound(setup: Setup, values: int) -> float:
    """Bytes that each rank has to send under ZeRO-2, in the training's precision."""
    size = values * DTYPES[setup.work.dtype].itemsize
    return (setup.accumulation + 1) * ring("reduce_scatter", size, setup.world_size)


def bytes_through_sockets() -> int:
    """That this process has sent by TCP: the kernel's own count for each connection, without what was sent again."""
    total = 0
    for link in list(Path("/proc/self/fd").iterdir()):
        if link.is_socket():
            with socket.socket(fileno=os.dup(int(link.name))) as connection:
                if connection.proto == socket.IPPROTO_TCP:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SENT_AT + 16)
                    sent, sent_again = struct.unpack_from("QQ", info, SENT_AT)
                    total += sent - sent_again
    return total


def build(setup: Setup) -> tuple[DeepSpeedEngine, Batch]:
    """On a rank that knows its place: it joins the others, and has a batch of two images."""
    config = replace(setup.work.config(images=2), gradient_accumulation_steps=setup.accumulation)
    model = setup.work.model()
    settings = deepspeed_settings(config, setup.world_size)
    zero = settings["zero_optimization"]
    zero["reduce_bucket_size"] = min(zero["reduce_bucket_size"], sum(trained_values(model)) // BUCKETS)
    zero |= setup.zero
    if "fp16" in settings:
        settings["fp16"]["initial_scale_power"] = 0  # no step is skipped, even if other ranks are made up
    get_accelerator().is_fp16_supported = lambda: True  # slow on a CPU, but only its bytes count
    pick_device(Ranks.from_environment())
    join()
    engine = build_engine(model, config, settings, batches_per_epoch=1000)
    engine.train()
    return engine, setup.work.batch(2)


def step(engine: DeepSpeedEngine, batch: Batch) -> None:
    accumulation = engine.gradient_accumulation_steps()
    for number in range(1, accumulation + 1):
        micro_step(engine, batch, at_boundary=number == accumulation)


def count(setup: Setup) -> Sent:
    """What this rank sends in the second step; the first may open connections."""
    engine, batch = build(setup)
    step(engine, batch)
    deepspeed.comm.configure(enabled=True, prof_all=True)
    dist.barrier()
    before = bytes_through_sockets()
    with Collectives() as collectives:
        step(engine, batch)
    sockets = bytes_through_sockets() - before
    logged = sum(calls for sizes in comms_logger.comms_dict.values() for calls, *_ in sizes.values())
    return Sent(sum(trained_values(engine.module)), collectives.messages, logged, sockets)


def trace(setup: Setup, path: Path) -> tuple[float, float]:
    """Profile a step, rank 0 into a file for chrome://tracing. Of its reductions' time: the shares of `shares`."""
    engine, batch = build(setup)
    step(engine, batch)
    dist.barrier()
    with profile() as profiler:
        step(engine, batch)
    file = path if dist.get_rank() == 0 else Path(os.devnull)
    profiler.export_chrome_trace(str(file))
    dist.barrier()
    return shares(json.loads(path.read_text())["traceEvents"])


def shares(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Two parts of the time that a step's reductions take, of a profiler's events.

    The one lies between the first operator of the backward pass and its last; in the other, such an operator runs at
    the same moment.
    """
    spans = [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in events if event.get("ph") == "X"]
    reductions = [(begin, end) for name, begin, end in spans if name in ("gloo:reduce", "gloo:all_reduce")]
    operators = [
        (begin, end)
        for name, begin, end in spans
        if name.startswith("autograd::engine::evaluate_function: ") and "AccumulateGrad" not in name
    ]  # AccumulateGrad has ZeRO's hooks, so it also waits for reductions
    whole = [(min(begin for begin, _ in operators), max(end for _, end in operators))]
    total = sum(end - begin for begin, end in reductions)

    def share(of: list[tuple[float, float]]) -> float:
        pairs = itertools.product(reductions, of)
        return sum(max(0.0, min(one[1], two[1]) - max(one[0], two[0])) for one, two in pairs) / total

    return share(whole), share(operators)


def on_rank(rank: int, world_size: int, port: int, results: Any, task: Callable[..., Any], *arguments: Any) -> None:
    place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_SIZE": world_size}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    results.put(task(*arguments))
    dist.barrier()  # a rank that ends closes the others' connections
    dist.destroy_process_group()


def on_ranks(world_size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function gives on each of so many ranks, which are forked from this process."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return fork(world_size, world_size, port, task, *arguments)


def on_one_of(world_size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The same on rank 0 alone: the others are made up, and what it sends goes nowhere."""

    def alone(*given: Any) -> Any:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
        return task(*given)

    return fork(1, world_size, 0, alone, *arguments)


def fork(processes: int, world_size: int, port: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    results = mp.get_context("fork").SimpleQueue()
    shared = (world_size, port, results, task, *arguments)
    mp.start_processes(on_rank, shared, nprocs=processes, start_method="fork")
    return [results.get() for _ in range(processes)]


def row(setup: Setup, found: list[Sent]) -> str:
    one, ranks = found[0], setup.world_size
    parts = [sum(ring(name, size, ranks) for size in one.messages.get(name, [])) for name in SHOWN]
    total = one.total(ring, ranks)
    parts.append(total - sum(parts))
    calls = sum(len(sizes) for sizes in one.messages.values())
    sockets = sum(each.sockets for each in found) / sum(each.total(gloo, ranks) for each in found)
    return (
        f"{setup.work.dtype:9}{ranks:5}{setup.accumulation:13}"
        + "".join(f"{part / MB:12.3f}" for part in (*parts, total))
        + f"{total / bound(setup, one.values):8.3f}{calls:7}{one.logged:8}"
        + (f"{sockets:9.4f}" if len(found) > 1 else f"{'-':>9}")
    )


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError, naming the flag to change."""
    for name, least in (("ranks", 2), ("accumulation", 1)):
        if min(getattr(options, name)) < least:
            raise UserError(f"--{name} {min(getattr(options, name))}: {least} or more is needed")
    if not isinstance(options.zero, dict):
        raise UserError(f'--zero {json.dumps(options.zero)}: an object is needed, such as {{"stage": 1}}')
    config = SMALL.config(images=2)
    settings = deepspeed_settings(config, min(options.ranks))
    settings["zero_optimization"] |= options.zero
    refuse(Path("--zero"), setting_problems(settings, config))
    if options.trace:
        try:
            options.trace.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--trace {options.trace} can't be made: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.communication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], metavar="N", help="2 4")
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 2], metavar="N", help="micro-batches; 1 2")
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+", default=[], help="all three; with --whole, bf16")
    parser.add_argument("--zero", type=json.loads, default={}, metavar="JSON", help="over that of ds_configs")
    parser.add_argument("--whole", action="store_true", help="RN50 and BERT base, on one rank; the others are made up")
    parser.add_argument("--trace", type=Path, metavar="FOLDER", help="profile both instead, on two ranks")
    options = parser.parse_args(arguments)
    if get_accelerator().device_name() != "cpu":
        parser.error("this counts on a CPU's ranks; set DS_ACCELERATOR=cpu in the environment")
    with telling_errors():
        check_options(options)
    if options.trace:
        for overlap in (False, True):
            path = options.trace / f"overlap_comm_{str(overlap).lower()}.json"
            setup = Setup(WHOLE, 2, 1, {**options.zero, "overlap_comm": overlap})
            inside, beside = on_ranks(2, trace, setup, path)[0]
            print(
                f"{path}: {inside:.0%} of the reductions' time inside the backward pass, {beside:.0%} beside operators"
            )
        return
    columns = "".join(f"{name:>12}" for name in (*SHOWN, "others", "all"))
    print(f"{'':9}{'ranks':>5}{'accumulation':>13}{columns}{'bound':>8}{'calls':>7}{'logged':>8}{'sockets':>9}")
    work, where = (WHOLE, on_one_of) if options.whole else (SMALL, on_ranks)
    dtypes = options.dtype or (["bf16"] if options.whole else ["fp32", "bf16", "fp16"])
    for dtype, ranks, accumulation in itertools.product(dtypes, options.ranks, options.accumulation):
        setup = Setup(replace(work, dtype=dtype), ranks, accumulation, options.zero)
        print(row(setup, where(ranks, count, setup)), flush=True)
    print(NOTES)


if __name__ == "__main__":
    main()
