"""One file from one of its places, by HTTP ranges: what an interruption left is gone on with."""

import http.client
import os
import re
import socket
import ssl
import time
from email.message import Message
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from engine.data.downloads.checksums import CHUNK, verify_part
from engine.data.downloads.plan import beside, free_bytes, gigabytes
from engine.data.downloads.resources import Resource
from engine.errors import UserError
from engine.files import byte_bar, only_here, writing

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # in a row that gain nothing
BACK_OFF = 1.0  # seconds; doubles with each such attempt


class Failed(Exception):
    """A file that can't be had from where it should be."""


class _Interrupted(Exception):
    """An answer that another request may complete."""


def fetch(resource: Resource, target: Path, progress: bool) -> None:
    """Fetch a file from the first of its places that has it, verify it, and only then give it its name."""
    part = beside(target, ".part")
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
            except Failed as error:
                reasons.append(f"{url} can't be fetched: {error}")
        else:
            raise Failed(f"{'; '.join(reasons)}; fetch it by hand to {target}, then run the same command again")
        digest = verify_part(resource, part, progress)
        with writing(part):
            os.fsync(file.fileno())
            part.replace(target)
            beside(target, ".sha256").write_text(f"{digest}  {target.name}\n")
            beside(part, ".etag").unlink(missing_ok=True)


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
                raise Failed(reason) from None
        except URLError as error:
            reason = str(error.reason)
            unknown_host = isinstance(error.reason, socket.gaierror) and most == before
            if unknown_host or isinstance(error.reason, ssl.SSLCertVerificationError):
                raise Failed(reason) from None
        except TimeoutError:
            reason = f"no answer for {TIMEOUT:g} s"
        except (_Interrupted, OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        size = part.stat().st_size
        # Only more than ever counts as gain: a server that always starts anew and breaks off gains nothing.
        failures = 0 if size > most else failures + 1
        most = max(most, size)
        if failures == ATTEMPTS:
            raise Failed(f"{reason} ({ATTEMPTS} attempts)")
        time.sleep(BACK_OFF * 2**failures)


def _request(resource: Resource, url: str, file: IO[bytes], part: Path, progress: bool) -> None:
    """One request for the rest of the file, or for all of it if the server won't resume."""
    version_file = beside(part, ".etag")
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
            raise Failed("the server sent a web page in its place")
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
            raise Failed(f"{total:,} bytes are there, {resource.size:,} were published")
        if total is not None and total - have > (free := free_bytes(part.parent)):
            raise UserError(
                f"{part.parent} has {gigabytes(free)} free, {part.name} needs {gigabytes(total - have)} more; free some"
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
