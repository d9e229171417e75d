"""A run's checkpoints on the disk: whole or not there, verified, and never at the cost of the one before."""

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch import nn

import engine.checkpoint.saving
from engine.checkpoint.formats.pretrained import whole_folder
from engine.checkpoint.manifest import (
    MANIFEST,
    best_or_newest,
    complete_checkpoints,
    fingerprint,
    newest_checkpoint,
    read_manifest,
    sweep,
    verify,
)
from engine.checkpoint.saving import Checkpoints
from engine.checkpoint.shards import MODEL_STATES, load_shard
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig
from engine.training.run_folder import RunFolder
from engine.training.start import find_start
from tests.conftest import small_tmpfs

OPTIM_STATES = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
VALUES = 100_000  # 400 kB a file


class Engine:
    """As much of DeepSpeed's engine as saving asks for: two files, through the checkpoint engine that it was given."""

    global_rank = 0

    def __init__(self) -> None:
        self.module = nn.Linear(2, 2)
        self.weights, self.moments = torch.zeros(VALUES), torch.zeros(VALUES)
        self.scaler = {"cur_scale": 1.0}
        self.checkpoint_engine = None
        self.frozen_weights: dict[str, torch.Tensor] = {}

    def step(self) -> None:
        self.weights += 1
        self.moments += 2
        self.scaler["cur_scale"] *= 2

    def save_checkpoint(self, folder, tag, client_state, save_latest):
        path = Path(folder, tag)
        path.mkdir(exist_ok=True)
        self.checkpoint_engine.save({"module": self.weights, **client_state}, str(path / MODEL_STATES))
        self.checkpoint_engine.save({"moments": self.moments, "scaler": self.scaler}, str(path / OPTIM_STATES))


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def save(checkpoints: Checkpoints, step: int, *, weights_file: bool = False) -> Path:
    name = f"Step{step:06d}"
    checkpoints.engine.step()
    checkpoints.save(name, step, {"word": step}, weights_file=weights_file)
    assert checkpoints.finish() == name
    return checkpoints.folder / name


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


def test_a_checkpoint_is_complete_named_last_and_described(tmp_path: Path) -> None:
    folder = save(Checkpoints(Engine(), tmp_path), 7, weights_file=True)
    manifest = read_manifest(folder)
    assert (manifest["step"], manifest["world_size"]) == (7, 1)
    assert set(manifest["files"]) == {MODEL_STATES, OPTIM_STATES}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    verify(folder)
    shard = load_shard(folder / MODEL_STATES)
    assert shard["word"] == 7
    assert torch.equal(shard["module"], torch.ones(VALUES))
    assert (tmp_path / "latest").read_text() == "Step000007"
    assert set(torch.load(tmp_path / "Step000007_LXRT.pth", weights_only=True)) == {"module.weight", "module.bias"}
    assert hidden(tmp_path) == []


def test_what_is_written_is_the_state_when_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while the thread writes, and changes tensors and the loss scaler in place."""
    may_write, write = threading.Event(), engine.checkpoint.saving.write_verified
    monkeypatch.setattr(
        engine.checkpoint.saving, "write_verified", lambda value, path: may_write.wait(20) and write(value, path)
    )
    training = Engine()
    checkpoints = Checkpoints(training, tmp_path)
    training.step()
    checkpoints.save("Step000001", 1, {}, weights_file=False)
    assert checkpoints.is_busy
    assert complete_checkpoints(tmp_path) == []
    training.step()
    may_write.set()
    checkpoints.finish()
    assert not checkpoints.is_busy
    shard = load_shard(tmp_path / "Step000001" / OPTIM_STATES)
    assert torch.equal(shard["moments"], torch.full((VALUES,), 2.0))
    assert shard["scaler"] == {"cur_scale": 2.0}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [MODEL_STATES, OPTIM_STATES])
@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncate, "bytes, .* were written"), (flip, "not those that were written"), (Path.unlink, "can't be read")],
    ids=["truncated", "flipped_bit", "missing"],
)
def test_damage_is_found_and_an_older_checkpoint_taken(tmp_path: Path, capsys, damage, words: str, name: str) -> None:
    checkpoints = Checkpoints(Engine(), tmp_path)
    older, newer = save(checkpoints, 9), save(checkpoints, 10)
    assert newest_checkpoint(tmp_path) == newer
    damage(newer / name)
    with pytest.raises(UserError, match=words):
        verify(newer)
    capsys.readouterr()
    assert newest_checkpoint(tmp_path) == older
    (told,) = capsys.readouterr().out.splitlines()
    assert str(newer / name) in told
    assert "trying an older checkpoint" in told
    # A run that goes on from there comes by again, and puts a whole one in its place.
    assert save(checkpoints, 10) == newer
    assert newest_checkpoint(tmp_path) == newer
    assert hidden(tmp_path) == []


def test_damage_of_all_checkpoints_is_no_reason_to_start_anew(tmp_path: Path) -> None:
    flip(save(Checkpoints(Engine(), tmp_path), 1) / MODEL_STATES)
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* is whole"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_whose_manifest_is_damaged_is_told_and_counts(tmp_path: Path, capsys) -> None:
    """Else a run would go on from an older one without a word, or start anew over what it has saved."""
    checkpoints = Checkpoints(Engine(), tmp_path)
    older, newer = save(checkpoints, 9), save(checkpoints, 10)
    (tmp_path / "tensorboard").mkdir()
    (newer / MANIFEST).write_text("")
    capsys.readouterr()
    assert newest_checkpoint(tmp_path) == older
    (told,) = capsys.readouterr().out.splitlines()
    assert told.startswith(f"{newer / MANIFEST} is damaged (")
    assert told.endswith("; trying another checkpoint")
    (older / MANIFEST).write_text("")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* is whole"):
        find_start(PretrainConfig(resume="auto"), RunFolder(tmp_path), ALONE)
    assert (tmp_path / "metrics.jsonl").exists()


def save_model(folder: Path) -> Path:
    with whole_folder(folder) as unfinished:
        (unfinished / "weights").write_bytes(b"weights")
        (unfinished / MANIFEST).write_text(
            json.dumps({"step": 0, "files": {"weights": fingerprint(unfinished / "weights")}})
        )
    return folder


def test_the_folder_of_a_run_stands_for_its_best_else_its_newest_whole_model(tmp_path: Path, capsys) -> None:
    def taken(**more: bool) -> Path | None:
        capsys.readouterr()
        return best_or_newest(tmp_path, **more)

    assert taken() is None
    last = save_model(tmp_path / "LAST")
    assert taken() == last
    checkpoints = Checkpoints(Engine(), tmp_path)
    older, newer = save(checkpoints, 9), save(checkpoints, 10)
    assert taken() == newer
    assert capsys.readouterr().out == f"{tmp_path} holds a run: its newest whole checkpoint is taken, {newer.name}\n"
    flip(newer / MODEL_STATES)
    assert taken() == older
    assert capsys.readouterr().out.splitlines() == [
        f"{newer / MODEL_STATES} is damaged: its bytes are not those that were written; trying an older checkpoint",
        f"{tmp_path} holds a run: its newest whole checkpoint is taken, {older.name}",
    ]
    assert taken(hashes=False) == newer  # a first look reads no bytes, and says nothing
    truncate(newer / OPTIM_STATES)
    assert taken(hashes=False) == older
    assert capsys.readouterr().out == ""

    best = save_model(tmp_path / "BEST")
    assert taken() == best
    assert capsys.readouterr().out == f"{tmp_path} holds a run: its best model is taken, BEST\n"
    truncate(best / "weights")
    for hashes in (True, False):
        with pytest.raises(
            UserError, match=rf"BEST/weights is damaged.*; name another model of {tmp_path}: Step000010, "
        ):
            taken(hashes=hashes)


def test_a_disk_that_ranks_do_not_share_is_told(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Engine(), tmp_path)
    checkpoints.save("Step000001", 1, {}, weights_file=False)
    checkpoints.writer.finish()
    (tmp_path / ".Step000001.unfinished" / OPTIM_STATES).unlink()
    checkpoints.writer.files = {OPTIM_STATES: checkpoints.writer.thread.submit(dict)}  # "written", elsewhere
    with pytest.raises(UserError, match="another machine is not here; --output has to be on a disk that all share"):
        checkpoints.finish()


@pytest.mark.parametrize("content", ["", "{", '{"step": "x", "files": {}}', "[]"])
def test_a_damaged_manifest_makes_no_checkpoint(tmp_path: Path, content: str) -> None:
    folder = save(Checkpoints(Engine(), tmp_path), 1)
    (folder / "manifest.json").write_text(content)
    assert complete_checkpoints(tmp_path) == []
    with pytest.raises(UserError, match="damaged"):
        verify(folder)


def test_old_checkpoints_go_when_the_new_one_is_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Engine(), tmp_path, keep=2)
    for step in (8, 9, 10, 11):
        save(checkpoints, step, weights_file=True)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["Step000011", "Step000010"]
    assert len(list(tmp_path.glob("*_LXRT.pth"))) == 4  # weights stay
    assert hidden(tmp_path) == []


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Room for one checkpoint of 800 kB and a half."""
    with small_tmpfs(tmp_path / "disk", "1200k"):
        checkpoints = Checkpoints(Engine(), tmp_path / "disk")
        folder = save(checkpoints, 1)
        checkpoints.save("Step000002", 2, {}, weights_file=False)
        with pytest.raises(UserError, match=r"Step000002 can't be written \(.*the disk is full\).* --resume auto"):
            checkpoints.finish()
        assert newest_checkpoint(tmp_path / "disk") == folder
        assert (tmp_path / "disk" / "latest").read_text() == "Step000001"
        assert hidden(tmp_path / "disk") == []


def test_what_a_kill_left_is_swept(tmp_path: Path) -> None:
    folder = save(Checkpoints(Engine(), tmp_path), 1)
    (tmp_path / ".Step000002.unfinished").mkdir()
    (tmp_path / ".Step000002.unfinished" / "x").write_text("half")
    (tmp_path / ".Step000002_LXRT.pth.unfinished").write_text("half")
    folder.rename(tmp_path / ".Step000001.deleted")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


class Hostile:
    """A pickle that would write a file if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_shard_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"module": Hostile(tmp_path / "harm")}, tmp_path / MODEL_STATES)
    with pytest.raises(UserError, match=f"{MODEL_STATES} is no readable file of tensors .*never run"):
        load_shard(tmp_path / MODEL_STATES)
    assert not (tmp_path / "harm").exists()


class ByName:
    """A pickle of getattr(owner, name), as Python 3.11.2 writes the members of enumerations."""

    def __init__(self, owner: object, name: str) -> None:
        self.of = owner, name

    def __reduce__(self):
        return getattr, self.of


def test_a_stage_that_was_written_by_name_is_read_and_nothing_else_is_got(tmp_path: Path) -> None:
    torch.save({"zero_stage": ByName(ZeroStageEnum, "gradients")}, tmp_path / MODEL_STATES)
    assert load_shard(tmp_path / MODEL_STATES) == {"zero_stage": ZeroStageEnum.gradients}
    for owner, name in ((ZeroStageEnum, "__init__"), (LossScaler, "backward")):
        torch.save({"module": ByName(owner, name)}, tmp_path / MODEL_STATES)
        with pytest.raises(UserError, match=f"{MODEL_STATES} is no readable file of tensors"):
            load_shard(tmp_path / MODEL_STATES)


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    folder = save(Checkpoints(Engine(), tmp_path), 3)
    assert set(json.loads((folder / "manifest.json").read_text())) == {"step", "world_size", "files"}
