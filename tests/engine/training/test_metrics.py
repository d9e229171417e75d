import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from engine.errors import UserError
from engine.training.metrics import Metrics, MetricsFile

CPU = torch.device("cpu")


def test_means_weigh_each_batch_by_its_count():
    metrics = Metrics(CPU)
    metrics.add({"loss": (torch.tensor(6.0), torch.tensor(3)), "accuracy": (1, 2)})
    metrics.add({"loss": (torch.tensor(2.0), torch.tensor(1))})
    assert metrics.means() == {"loss": 2.0, "accuracy": 0.5}


def test_totals_start_anew_once_they_are_read():
    metrics = Metrics(CPU)
    metrics.add({"loss": (6.0, 3)})
    assert metrics.totals() == {"loss": (6.0, 3.0)}
    assert metrics.totals() == {}
    metrics.add({"loss": (1.0, 1)})
    assert metrics.totals() == {"loss": (1.0, 1.0)}


def test_mean_of_nothing_is_left_out():
    metrics = Metrics(CPU)
    metrics.add({"qa_loss": (0.0, 0), "loss": (0.0, 2)})
    assert metrics.means() == {"loss": 0.0}
    assert Metrics(CPU).means() == {}


def test_small_values_beside_large_sums_are_not_lost():
    metrics = Metrics(CPU)
    metrics.add({"loss": (torch.tensor(2.0**24), 1)})
    for _ in range(3):
        metrics.add({"loss": (torch.tensor(1.0), 1)})  # 2**24 + 1 is no fp32 number
    assert metrics.totals() == {"loss": (2.0**24 + 3, 4.0)}


def test_gradients_are_not_kept():
    metrics = Metrics(CPU)
    metrics.add({"loss": (torch.ones(1, requires_grad=True).sum(), 1)})
    assert not metrics.sums["loss"].requires_grad


def rank_of_two(rank, folder):
    """Rank 1 has a metric of its own and lacks one of rank 0's, as a rank without a batch would."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metrics = Metrics(CPU)
    metrics.add({"loss": (4.0, 1), "accuracy": (1, 2)} if rank == 0 else {"qa_loss": (3.0, 1), "loss": (2.0, 2)})
    (folder / f"{rank}.json").write_text(json.dumps(metrics.means()))
    dist.destroy_process_group()


def test_means_over_ranks_with_different_names(tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    for rank in range(2):
        means = json.loads((tmp_path / f"{rank}.json").read_text())
        assert means == {"loss": 2.0, "accuracy": 0.5, "qa_loss": 3.0}


def test_file_gets_one_json_object_a_line_after_what_is_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, rank=0).write({"step": 1, "loss": 0.1})
    MetricsFile(path, rank=0).write({"step": 2, "kind": "valid"})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [{"step": 1, "loss": 0.1}, {"step": 2, "kind": "valid"}]


def test_other_ranks_write_nothing(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", rank=1).write({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_file_that_cant_be_written_is_named(tmp_path):
    path = tmp_path / "gone" / "metrics.jsonl"
    with pytest.raises(UserError) as error:
        MetricsFile(path, rank=0).write({"step": 1})
    assert str(error.value) == (f"{path} can't be written (No such file or directory); free space or change --output")
