"""Whether a file is the one that was published: size and sha256."""

import hashlib
from contextlib import suppress
from pathlib import Path

from engine.data.downloads.plan import beside, size_of
from engine.data.downloads.resources import Resource
from engine.errors import UserError
from engine.files import byte_bar

CHUNK = 2**20  # bytes


def _digest(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file, byte_bar(f"sha256 of {path.name}", size_of(path), 0, progress) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def verify_part(resource: Resource, part: Path, progress: bool) -> str:
    """The sha256 of a complete download; a wrong one is put aside as X.bad, so that the next run starts anew."""
    size, digest = part.stat().st_size, _digest(part, progress)
    if resource.size not in (None, size):
        what = f"has {size:,} bytes, {resource.size:,} were published"
    elif resource.sha256 not in (None, digest):
        what = f"has the sha256 {digest}, {resource.sha256} was published"
    else:
        return digest
    bad = part.with_suffix(".bad")
    part.replace(bad)
    beside(part, ".etag").unlink(missing_ok=True)
    raise UserError(f"{resource.url} {what}; it lies in {bad}: remove that and run the same command again")


def verify_present(resource: Resource, target: Path, progress: bool) -> None:
    """A file that was there before, once: X.sha256 remembers."""
    size = target.stat().st_size
    if resource.size not in (None, size):
        what = f"{target} has {size:,} bytes, {resource.size:,} were published"
        raise UserError(f"{what}; rename it to {target.name}.part to go on from there, or remove it")
    if resource.sha256 is None:
        return
    record = beside(target, ".sha256")
    # The time of change, not of writing: cp -p and wget set the latter back.
    if record.exists() and record.stat().st_mtime_ns >= target.stat().st_ctime_ns:
        digest = record.read_text().partition(" ")[0]
    else:
        digest = _digest(target, progress)
        with suppress(OSError):  # Whoever may only read this folder verifies again next time.
            record.write_text(f"{digest}  {target.name}\n")
    if digest != resource.sha256:
        what = f"{target} has the sha256 {digest}, {resource.sha256} was published"
        raise UserError(f"{what}; remove it and run the same command again")
