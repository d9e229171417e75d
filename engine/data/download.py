"""The original's data: what there is to fetch, and a download that goes on where it was interrupted.

1. plan      what is there and what is missing; fetches nothing
2. fetch     X.part grows by HTTP ranges; X.part.etag says which version of the file it is a part of
3. verify    size and sha256; then X.part becomes X, and X.sha256 (sha256sum's format) tells that X was verified
4. unpack    every image under a temporary name, then its own; FOLDER/.X.unpacked tells that all of X is there

Whatever is killed, and when: the same command goes on from there.
"""

import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from engine.data.unpacking import images_of, marker, open_zip, unpack_zip
from engine.errors import UserError
from engine.files import byte_bar, only_here, writing

CHUNK = 2**20  # bytes
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # in a row that gain nothing
BACK_OFF = 1.0  # seconds; doubles with each such attempt


@dataclass(frozen=True)
class Resource:
    """A file of the original's data."""

    name: str
    url: str
    target: str  # path below data_root
    size: int | None = None  # bytes, only where published exactly
    about: str = "size not published"  # said in place of an unknown size
    sha256: str | None = None
    folder: str | None = None  # of a zip: where its images go, below data_root, whatever folders they have inside
    mirrors: tuple[str, ...] = ()
    by_hand: bool = False  # not to be had by a plain GET; nobody needs it


def _coco(name: str, size: int, sha256: str) -> Resource:
    url = f"http://images.cocodataset.org/zips/{name}.zip"
    return Resource(name, url, f"mscoco/{name}.zip", size, sha256=sha256, folder=f"mscoco/{name}")


def _genome(name: str, size: int, sha256: str) -> Resource:
    url = f"https://cs.stanford.edu/people/rak248/VG_100K_2/{name}.zip"
    folder = "vg_raw_images/VG_100K"  # both zips' images in one
    return Resource(f"vg_{name}", url, f"vg_raw_images/{name}.zip", size, sha256=sha256, folder=folder)


def _unc(name: str, path: str, about: str = "size not published") -> Resource:
    # The original names the host without a scheme, LXMERT names nlp1, whose certificate needs wget's --no-check.
    mirrors = tuple(f"http://{host}.cs.unc.edu/data/lxmert_data/{path}" for host in ("nlp", "nlp1"))
    return Resource(name, f"https://nlp.cs.unc.edu/data/lxmert_data/{path}", path, about=about, mirrors=mirrors)


def _lxmert(name: str, path: str, about: str) -> Resource:
    return Resource(name, f"https://raw.githubusercontent.com/airsplay/lxmert/master/data/{path}", path, about=about)


# Sizes and checksums: COCO from tensorflow/datasets, url_checksums/coco.txt; Visual Genome from huggingface/datasets,
# datasets/visual_genome/dataset_infos.json; 700 MB from LXMERT's read-me; characters counted in copies of its files.
_FOUR = "one of four, about 700 MB in total"
RESOURCES = (
    _coco("train2014", 13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    _coco("val2014", 6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    _coco("test2015", 13_270_587_935, "1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca"),
    _genome("images", 9_731_705_982, "51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646"),
    _genome("images2", 5_471_658_058, "99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5"),
    _unc("mscoco_train", "lxmert/mscoco_train.json", _FOUR),
    _unc("mscoco_nominival", "lxmert/mscoco_nominival.json", _FOUR),
    _unc("mscoco_minival", "lxmert/mscoco_minival.json", _FOUR),
    _unc("vgnococo", "lxmert/vgnococo.json", _FOUR),
    _lxmert("all_ans", "lxmert/all_ans.json", "about 1 MB: 986,576 characters"),
    _unc("vqa_train", "vqa/train.json"),
    _unc("vqa_nominival", "vqa/nominival.json"),
    _unc("vqa_minival", "vqa/minival.json"),
    _unc("vqa_test", "vqa/test.json"),
    _lxmert("vqa_ans2label", "vqa/trainval_ans2label.json", "about 64 kB: 64,332 characters"),
    _lxmert("vqa_label2ans", "vqa/trainval_label2ans.json", "about 47 kB: 46,668 characters"),
    Resource(
        "width_heigths",
        "https://drive.google.com/file/d/1i7NbLQ-j3edv3zjFwX7paudkYPPtUdy4/view",
        "mscoco/width_heigths.json",
        about="optional; `prepare.py sizes` makes it",
        by_hand=True,
    ),
)

# Published numbers of images. A folder with so many needs no zip: who has the original's data has unpacked it.
IMAGES = {
    "mscoco/train2014": 82_783,
    "mscoco/val2014": 40_504,
    "mscoco/test2015": 81_434,
    "vg_raw_images/VG_100K": 108_249,
}


def choose(names: str, resources: Sequence[Resource] = RESOURCES) -> list[Resource]:
    """The resources of a list "NAME,NAME", or all if it is empty.

    Raises:
        UserError: for a name that there isn't.
    """
    known = {resource.name: resource for resource in resources}
    wanted = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"--only: there is no {', '.join(unknown)}; the names are {', '.join(known)}")
    return [known[name] for name in wanted] or list(resources)


@dataclass(frozen=True)
class Row:
    """A resource as it stands on this disk."""

    resource: Resource
    state: str  # unpacked, present, wrong size, partial or absent
    have: int  # bytes of the file or its .part


def plan(data_root: Path, resources: Iterable[Resource] = RESOURCES) -> list[Row]:
    """What is there. Looks at names and sizes only, fetches and writes nothing."""
    return [_row(resource, data_root) for resource in resources]


def _row(resource: Resource, data_root: Path) -> Row:
    target = data_root / resource.target
    have = _size(target)
    if _is_unpacked(resource, data_root):
        return Row(resource, "unpacked", have or 0)
    if have is not None:
        return Row(resource, "present" if resource.size in (None, have) else "wrong size", have)
    have = _size(_beside(target, ".part")) or 0
    return Row(resource, "partial" if have else "absent", have)


def print_plan(rows: Sequence[Row], data_root: Path, *, unpack: bool = True) -> None:
    """The dry run: every URL with size, checksum, place and state, then what is missing and the free space."""
    for row in rows:
        resource = row.resource
        size = resource.about if resource.size is None else f"{resource.size:,} bytes"
        state = "by hand" if resource.by_hand and row.state == "absent" else row.state
        if state == "partial":
            part = f"{row.have:,} bytes" if resource.size is None else f"{100 * row.have / resource.size:.1f}%"
            state = f"partial, {part}"
        into = f", unpacked into {data_root / resource.folder}" if resource.folder and unpack else ""
        print(f"{resource.name:<18}{size:<40}{state}")
        print(f"    {resource.url}", *resource.mirrors, sep="\n    or ")
        print(f"    to {data_root / resource.target}{into}")
        print(f"    sha256 {resource.sha256 or 'none published'}")
    known = sum(row.resource.size or 0 for row in rows)
    unknown = sum(row.resource.size is None for row in rows)
    to_fetch, to_unpack = _missing(rows, data_root, unpack)
    print(f"in all {_gb(known)} in {len(rows) - unknown} files, and {unknown} files without a published exact size")
    print(f"missing here: {_gb(sum(to_fetch))} to fetch, {_gb(to_unpack)} to unpack; free: {_gb(_free(data_root))}")


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
                _fetch(resource, target, progress)
            except _Failed as error:
                failures[resource.name] = str(error)
                continue
            state, fetched = "fetched", fetched + target.stat().st_size - row.have
        elif state != "unpacked":
            _verify_present(resource, target, progress)
        if resource.folder and unpack:
            if state != "unpacked":
                unpack_zip(target, data_root / resource.folder, progress=progress)
                state = "unpacked"
            if remove_zip:
                target.unlink(missing_ok=True)
                _beside(target, ".sha256").unlink(missing_ok=True)
        files[resource.name] = {"state": state}
    if failures:
        first, *others = failures
        more = f" (not fetched either: {', '.join(others)})" if others else ""
        raise UserError(failures[first] + more)
    return {"fetched_bytes": fetched, "seconds": round(time.monotonic() - start, 3), "files": files}


# What is there


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int | None:
    """Bytes of a file, None if there is none."""
    return path.stat().st_size if path.is_file() else None


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def _free(data_root: Path) -> int:
    folder = data_root.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _is_unpacked(resource: Resource, data_root: Path) -> bool:
    if resource.folder is None or not (folder := data_root / resource.folder).is_dir():
        return False
    wanted = IMAGES.get(resource.folder)
    with suppress(OSError, ValueError):
        wanted = int(marker(data_root / resource.target, folder).read_text())
    return wanted is not None and sum(entry.name[:1] != "." for entry in os.scandir(folder)) >= wanted


def _missing(rows: Iterable[Row], data_root: Path, unpack: bool) -> tuple[list[int], int]:
    """Bytes that each file misses, and bytes of images to unpack; unknown sizes count as nothing."""
    to_fetch, to_unpack = [0], 0
    for row in rows:
        resource = row.resource
        if row.state in ("absent", "partial"):
            to_fetch.append(max((resource.size or 0) - row.have, 0))
        if resource.folder and unpack and row.state != "unpacked":
            if row.state == "present":
                folder = data_root / resource.folder
                with suppress(UserError), open_zip(data_root / resource.target) as archive:
                    images = images_of(archive).items()
                    to_unpack += sum(info.file_size for name, info in images if not (folder / name).exists())
            else:
                to_unpack += resource.size or 0  # JPEGs are no smaller in a zip
    return to_fetch, to_unpack


def _check_space(rows: Iterable[Row], data_root: Path, unpack: bool, remove_zip: bool) -> None:
    to_fetch, to_unpack = _missing(rows, data_root, unpack)
    needed = to_unpack + (max(to_fetch) if remove_zip else sum(to_fetch))
    if needed > (free := _free(data_root)):
        what = f"{data_root} has {_gb(free)} free, {_gb(needed)} are needed"
        raise UserError(f"{what}; choose fewer files with --only, don't unpack, or take another disk")


# Fetching


class _Failed(Exception):
    """A file that can't be had from where it should be."""


class _Interrupted(Exception):
    """An answer that another request may complete."""


def _fetch(resource: Resource, target: Path, progress: bool) -> None:
    """Fetch a file from the first of its places that has it, verify it, and only then give it its name."""
    part = _beside(target, ".part")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab", buffering=0)
    with file:
        only_here(file, part)
        if target.exists():  # Another process had the lock until now, and finished.
            part.unlink(missing_ok=True)
            return
        reasons = []
        for url in (resource.url, *resource.mirrors):
            try:
                _fetch_from(resource, url, file, part, progress)
                break
            except _Failed as error:
                reasons.append(f"{url} can't be fetched: {error}")
        else:
            raise _Failed(f"{'; '.join(reasons)}; fetch it by hand to {target}, then run the same command again")
        digest = _verify_part(resource, part, progress)
        with writing(part):
            os.fsync(file.fileno())
            part.replace(target)
            _beside(target, ".sha256").write_text(f"{digest}  {target.name}\n")
            _beside(part, ".etag").unlink(missing_ok=True)


def _fetch_from(resource: Resource, url: str, file: IO[bytes], part: Path, progress: bool) -> None:
    """Request after request until the file is complete, with growing pauses while they gain nothing."""
    most = before = part.stat().st_size
    failures = 0
    while True:
        try:
            return _request(resource, url, file, part, progress)
        except HTTPError as error:
            error.close()
            reason = f"the server answered {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise _Failed(reason) from None
        except URLError as error:
            reason = str(error.reason)
            unknown_host = isinstance(error.reason, socket.gaierror) and most == before
            if unknown_host or isinstance(error.reason, ssl.SSLCertVerificationError):
                raise _Failed(reason) from None
        except TimeoutError:
            reason = f"no answer for {TIMEOUT:g} s"
        except (_Interrupted, OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        size = part.stat().st_size
        # Only more than ever counts as gain: a server that always starts anew and breaks off gains nothing.
        failures = 0 if size > most else failures + 1
        most = max(most, size)
        if failures == ATTEMPTS:
            raise _Failed(f"{reason} ({ATTEMPTS} attempts)")
        time.sleep(BACK_OFF * 2**failures)


def _request(resource: Resource, url: str, file: IO[bytes], part: Path, progress: bool) -> None:
    """One request for the rest of the file, or for all of it if the server won't resume."""
    version_file = _beside(part, ".etag")
    have = part.stat().st_size
    version = version_file.read_text() if version_file.exists() else ""
    if have and resource.size == have:
        return
    if not (version or resource.sha256):
        have = 0  # Nothing would tell a mixture of two versions.
    headers = {"User-Agent": "clipvil-engine", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # It was killed between the last byte and the renaming.
        _start_anew(file, part)
        raise _Interrupted("the server has less than is here already") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _Failed("the server sent a web page in its place")
        length = response.headers.get("Content-Length") or ""
        total = int(length) if length.isdigit() else None
        if response.status == 206:
            total = _resumed_total(response.headers, have, version)
            if total is None:
                _start_anew(file, part)
                raise _Interrupted("the server resumed at another place or with another version of the file")
        else:
            have = 0
            _start_anew(file, part)
            with writing(version_file):
                version_file.write_text(_version(response.headers))
        if resource.size is not None and total not in (None, resource.size):
            raise _Failed(f"{total:,} bytes are there, {resource.size:,} were published")
        if total is not None and total - have > (free := _free(part.parent)):
            raise UserError(
                f"{part.parent} has {_gb(free)} free, {part.name} needs {_gb(total - have)} more; free some"
            )
        with byte_bar(resource.name, total, have, progress) as bar:
            while chunk := response.read1(CHUNK):
                _append(file, chunk, part)
                have += len(chunk)
                bar.update(len(chunk))
        if total is not None and have < total:
            raise _Interrupted(f"the connection broke off after {have:,} of {total:,} bytes")


def _version(headers: Message) -> str:
    """What If-Range may name: a strong ETag, else the date; empty if the server tells neither."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified") or ""


def _resumed_total(headers: Message, have: int, version: str) -> int | None:
    """The whole file's bytes if the answer goes on after `have` bytes of the same version, else None."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range") or "")
    same = not version or _version(headers) in ("", version)
    return int(found[2]) if found and same and have and int(found[1]) == have else None


def _start_anew(file: IO[bytes], part: Path) -> None:
    with writing(part):
        file.truncate(0)


def _append(file: IO[bytes], chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    while rest:  # A write that fills the disk is short; the next one says why.
        with writing(part):
            rest = rest[file.write(rest) :]


# Verifying


def _digest(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file, byte_bar(f"sha256 of {path.name}", _size(path), 0, progress) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _verify_part(resource: Resource, part: Path, progress: bool) -> str:
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
    _beside(part, ".etag").unlink(missing_ok=True)
    raise UserError(f"{resource.url} {what}; it lies in {bad}: remove that and run the same command again")


def _verify_present(resource: Resource, target: Path, progress: bool) -> None:
    """A file that was there before, once: X.sha256 remembers."""
    size = target.stat().st_size
    if resource.size not in (None, size):
        what = f"{target} has {size:,} bytes, {resource.size:,} were published"
        raise UserError(f"{what}; rename it to {target.name}.part to go on from there, or remove it")
    if resource.sha256 is None:
        return
    record = _beside(target, ".sha256")
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
