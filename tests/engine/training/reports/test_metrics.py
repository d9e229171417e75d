import json
import os
from datetime import datetime, timedelta, timezone

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from engine.benchmark.counting import Traffic
from engine.errors import UserError
from engine.model.metrics import MetricSums
from engine.training.reports.metrics import Metrics, MetricsFile

CPU = torch.device("cpu")


def sums(**pairs):
    return MetricSums.of({name: tuple(map(torch.tensor, map(float, pair))) for name, pair in pairs.items()})


def test_means_weigh_each_batch_by_its_count():
    metrics = Metrics(CPU)
    metrics.add(sums(loss=(6, 3), accuracy=(1, 2)))
    metrics.add(sums(loss=(2, 1)))
    assert metrics.means() == {"loss": 2.0, "accuracy": 0.5}


def test_totals_start_anew_once_they_are_read():
    metrics = Metrics(CPU)
    metrics.add(sums(loss=(6, 3)))
    assert metrics.totals() == {"loss": (6.0, 3.0)}
    assert metrics.totals() == {}
    metrics.add(sums(loss=(1, 1)))
    assert metrics.totals() == {"loss": (1.0, 1.0)}


def test_mean_of_nothing_is_left_out():
    metrics = Metrics(CPU)
    metrics.add(sums(qa_loss=(0, 0), loss=(0, 2)))
    assert metrics.means() == {"loss": 0.0}
    assert Metrics(CPU).means() == {}


def test_small_values_beside_large_sums_are_not_lost():
    metrics = Metrics(CPU)
    metrics.add(sums(loss=(2**24, 1)))
    for _ in range(3):
        metrics.add(sums(loss=(1, 1)))  # 2**24 + 1 is no fp32 number
    assert metrics.totals() == {"loss": (2.0**24 + 3, 4.0)}


def test_gradients_are_not_kept():
    metrics = Metrics(CPU)
    metrics.add(MetricSums.of({"loss": (torch.ones(1, requires_grad=True).sum(), torch.ones(()))}))
    assert not metrics.sums["loss",].requires_grad


def test_a_batch_costs_one_operator():
    """Behind the first, which makes the sums: one addition, whatever the number of names."""
    metrics, batch = Metrics(CPU), sums(loss=(6, 3), accuracy=(1, 2), qa_loss=(2, 2))
    metrics.add(batch)
    with Traffic() as counted:
        metrics.add(batch)
    assert counted.operators == 1
    assert metrics.totals()["loss"] == (12, 6)


def test_sums_go_on_from_a_checkpoint_bit_for_bit():
    """Names that came together, and one that comes alone; with numbers whose sum depends on the order."""
    batches = [sums(loss=(2.0**40, 1), accuracy=(0.1, 1)), sums(loss=(1e-4, 1), accuracy=(0.7, 1))]
    whole, before, after = (Metrics(CPU) for _ in range(3))
    for metrics, taken in ((whole, batches * 4), (before, batches * 2)):
        for batch in taken:
            metrics.add(batch)
        metrics.count("unreadable", 2)
    after.load_state_dict(before.state_dict())
    for batch in batches * 2:
        after.add(batch)
    assert after.totals() == whole.totals()
    whole.count("unreadable", 3)
    assert whole.totals() == {"unreadable": (3, 1)}


def rank_of_two(rank, folder):
    """Rank 1 has a metric of its own and lacks one of rank 0's, as a rank without a batch would."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metrics = Metrics(CPU)
    metrics.add(sums(loss=(4, 1), accuracy=(1, 2)) if rank == 0 else sums(qa_loss=(3, 1), loss=(2, 2)))
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
    for record in records:
        written = datetime.fromisoformat(record.pop("time"))
        assert written.utcoffset() == timedelta(0)
        assert abs(datetime.now(timezone.utc) - written) < timedelta(minutes=1)
        assert 0 <= record.pop("seconds") < 60
    assert records == [{"step": 1, "loss": 0.1}, {"step": 2, "kind": "valid"}]


def test_lines_of_steps_that_are_done_again_are_dropped_and_a_validation_of_the_checkpoint_stays(tmp_path):
    """The checkpoint of step 2 was written when there were two reports, before the validation there."""
    file = MetricsFile(tmp_path / "metrics.jsonl", rank=0)
    reports = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    valid = {"kind": "valid", "step": 2}

    def left(*records, cut=0):
        for record in reports[:2]:
            file.write(record)
        size = file.size()
        for record in records:
            file.write(record)
        os.truncate(file.path, file.size() - cut)
        file.truncate(size, step=2)
        kept = [{name: record[name] for name in valid} for record in file.read()]
        file.path.unlink()
        return kept[2:]

    assert left() == []
    assert left(valid) == left(valid, reports[2]) == [valid]
    assert left(reports[2], valid) == []  # of what an epoch leaves over, which is done again before the validation
    assert left({**valid, "step": 3}) == []
    assert left(valid, cut=1) == left(valid, cut=5) == []  # a run that was killed while it wrote


def test_other_ranks_write_nothing(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", rank=1).write({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_file_that_cant_be_written_is_named(tmp_path):
    path = tmp_path / "gone" / "metrics.jsonl"
    with pytest.raises(UserError) as error:
        MetricsFile(path, rank=0).write({"step": 1})
    assert str(error.value) == (f"{path} can't be written (No such file or directory); free space or change --output")
