"""The original's data: what there is to fetch, and a download that goes on where it was interrupted.

1. plan      what is there and what is missing; fetches nothing
2. fetch     X.part grows by HTTP ranges; X.part.etag says which version of the file it is a part of
3. verify    size and sha256; then X.part becomes X, and X.sha256 (sha256sum's format) tells that X was verified
4. unpack    every image under a temporary name, then its own; FOLDER/.X.unpacked tells that all of X is there

Whatever is killed, and when: the same command goes on from there.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.data.downloads.checksums import verify_present
from engine.data.downloads.fetching import Failed, fetch
from engine.data.downloads.plan import Row, beside, free_bytes, gigabytes, missing_bytes, plan
from engine.data.downloads.resources import Resource
from engine.data.downloads.unpacking import unpack_zip
from engine.errors import UserError


def download(
    resources: Sequence[Resource],
    data_root: Path,
    *,
    unpack: bool = True,
    remove_zip: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fetch, verify and unpack what isn't there yet. The same call goes on after whatever interrupted it.

    A server that doesn't give its file doesn't keep the others from being fetched; that is told at the end.

    Returns:
        {"fetched_bytes": int, "seconds": float, "files": {name: {"state": fetched, present, unpacked or by hand}}}.

    Raises:
        UserError: too little space, a full disk, a file that can't be had, or one that isn't what was published.
    """
    start = time.monotonic()
    rows = plan(data_root, resources)
    _check_space(rows, data_root, unpack, remove_zip)
    files: dict[str, dict[str, str]] = {}
    failures: dict[str, str] = {}
    fetched = 0
    for row in rows:
        resource, target, state = row.resource, data_root / row.resource.target, row.state
        if resource.by_hand and state == "absent":
            state = "by hand"
        elif state in ("absent", "partial"):
            try:
                fetch(resource, target, progress)
            except Failed as error:
                failures[resource.name] = str(error)
                continue
            state, fetched = "fetched", fetched + target.stat().st_size - row.have
        elif state != "unpacked":
            verify_present(resource, target, progress)
        if resource.folder and unpack:
            if state != "unpacked":
                unpack_zip(target, data_root / resource.folder, progress=progress)
                state = "unpacked"
            if remove_zip:
                target.unlink(missing_ok=True)
                beside(target, ".sha256").unlink(missing_ok=True)
        files[resource.name] = {"state": state}
    if failures:
        first, *others = failures
        more = f" (not fetched either: {', '.join(others)})" if others else ""
        raise UserError(failures[first] + more)
    return {"fetched_bytes": fetched, "seconds": round(time.monotonic() - start, 3), "files": files}


def _check_space(rows: Iterable[Row], data_root: Path, unpack: bool, remove_zip: bool) -> None:
    to_fetch, to_unpack = missing_bytes(rows, data_root, unpack)
    needed = to_unpack + (max(to_fetch) if remove_zip else sum(to_fetch))
    if needed > (free := free_bytes(data_root)):
        what = f"{data_root} has {gigabytes(free)} free, {gigabytes(needed)} are needed"
        raise UserError(f"{what}; choose fewer files with --only, don't unpack, or take another disk")
