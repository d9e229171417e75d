"""Which checkpoints are in a folder, and whether their files are those that were written."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.progress import Bar

MANIFEST = "manifest.json"  # of a complete checkpoint: its step, and every file's size and hash
BEST, LAST = "BEST", "LAST"  # models in the folder of a fine-tuning
UNFINISHED, DELETED = ".unfinished", ".deleted"  # behind a name that begins with a dot
CHUNK = 1 << 22


def fingerprint(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> dict[str, Any]:
    """A file's size and hash."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            size += len(chunk)
            on_bytes(len(chunk))
    return {"bytes": size, "sha256": sha256.hexdigest()}


def sync_folder(folder: Path) -> None:
    """Names are on the disk, too, only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what was never finished and what was being deleted."""
    for path in [*folder.glob(f".*{UNFINISHED}"), *folder.glob(f".*{DELETED}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises UserError if the folder has none, or one that isn't whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest["step"], int) or not isinstance(manifest["files"], dict):
            raise ValueError("it lacks its fields")
    except FileNotFoundError:
        raise UserError(f"{folder} has no {MANIFEST}, so it is no complete checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged ({error})") from None
    return dict(manifest)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Training states, the newest first. Complete is not yet verified."""
    found = []
    for path in folder.glob(f"[!.]*/{MANIFEST}"):
        try:
            manifest = read_manifest(path.parent)
        except UserError:
            continue
        if "world_size" in manifest:  # else a model without what training needs, such as BEST
            found.append((manifest["step"], path.stat().st_mtime, path.parent))
    return [path for *_, path in sorted(found, reverse=True)]


def unread_manifests(folder: Path) -> list[str]:
    """What is wrong with checkpoints that `complete_checkpoints` can't see, as they can't be looked into."""
    problems = []
    for path in sorted(path for path in folder.glob("[!.]*") if path.is_dir()):
        try:
            read_manifest(path)
        except UserError as error:
            if path.name not in (BEST, LAST) and (os.path.lexists(path / MANIFEST) or not os.access(path, os.X_OK)):
                problems.append(str(error))
    return problems


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has left training states in a folder, damaged ones included."""
    return bool(complete_checkpoints(folder) or unread_manifests(folder))


def verify(folder: Path, *, hashes: bool = True, progress: bool = False) -> None:
    """Compare every file of a checkpoint with its manifest.

    Args:
        hashes: whether all bytes are read; without, only sizes are compared.

    Raises:
        UserError: naming the first file that is missing, truncated or changed.
    """
    files = read_manifest(folder)["files"]
    total = sum(entry["bytes"] for entry in files.values())
    bar = Bar(desc=f"verifying {folder.name}", total=total, unit="B", unit_scale=True, delay=2, disable=not progress)
    with bar:
        for name, entry in files.items():
            path = folder / name
            try:
                size = path.stat().st_size
                if size != entry["bytes"]:
                    raise UserError(f"{path} is damaged: it has {size:,} bytes, {entry['bytes']:,} were written")
                if hashes and fingerprint(path, bar.update) != entry:
                    raise UserError(f"{path} is damaged: its bytes are not those that were written")
            except OSError as error:
                raise UserError(f"{path} can't be read ({error.strerror})") from None


def newest_checkpoint(folder: Path, *, hashes: bool = True, progress: bool = False) -> Path | None:
    """The newest checkpoint that verifies, or None where there is none; says which ones don't.

    Args:
        hashes: see verify; without, nothing is said, as this is a first look.

    Raises:
        UserError: if there are some, and none of them verifies.
    """
    candidates = complete_checkpoints(folder)
    if hashes:
        for problem in unread_manifests(folder):
            print(f"{problem}; trying another checkpoint")
    for path in candidates:
        try:
            verify(path, hashes=hashes, progress=progress)
            return path
        except UserError as error:
            if hashes:
                print(f"{error}; trying an older checkpoint")
    if candidates:
        raise none_whole(folder)
    return None


def none_whole(folder: Path) -> UserError:
    """What to say of a run whose checkpoints are all damaged."""
    number = len(complete_checkpoints(folder)) + len(unread_manifests(folder))
    return UserError(
        f"none of the {number} checkpoints in {folder} is whole; restore one from a copy, or start another run, with "
        "another --output (a --load of an EpochNN_LXRT.pth there starts from its weights)"
    )


def best_or_newest(folder: Path, *, hashes: bool = True, progress: bool = False) -> Path | None:
    """What the folder of a run stands for where a model is asked for; says which one it is.

    1. BEST
    2. else its newest checkpoint that is whole
    3. else LAST
    4. else nothing: None

    Args:
        hashes: see verify; without, nothing is said, as this is a first look.

    Raises:
        UserError: if BEST or LAST is damaged, which no other model stands in for, or if no checkpoint is whole.
    """
    best, last = folder / BEST, folder / LAST
    if best.is_dir():
        found, kind = best, "its best model"
        _verify_model(best, hashes=hashes, progress=progress)
    elif (newest := newest_checkpoint(folder, hashes=hashes, progress=progress)) is not None:
        found, kind = newest, "its newest whole checkpoint"
    elif last.is_dir():
        found, kind = last, "the model at its end"
        _verify_model(last, hashes=hashes, progress=progress)
    else:
        return None
    if hashes:
        print(f"{folder} holds a run: {kind} is taken, {found.name}", flush=True)
    return found


def _verify_model(model: Path, *, hashes: bool, progress: bool) -> None:
    """Raises UserError if it is damaged, with what else of its run there is to name."""
    try:
        verify(model, hashes=hashes, progress=progress)
    except UserError as error:
        models = [*complete_checkpoints(model.parent), model.parent / LAST]
        others = [path.name for path in models if path.is_dir() and path != model]
        remedy = f"name another model of {model.parent}: {', '.join(others)}" if others else "restore it from a copy"
        raise UserError(f"{error}; {remedy}") from None
