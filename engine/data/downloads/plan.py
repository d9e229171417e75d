"""What of the original's data is there, and what is missing. Looks only; fetches and writes nothing."""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.data.downloads.resources import IMAGES, Resource
from engine.data.downloads.unpacking import images_of, marker, open_zip
from engine.errors import UserError


@dataclass(frozen=True)
class Row:
    """A resource as it stands on this disk."""

    resource: Resource
    state: str  # unpacked, present, wrong size, partial or absent
    have: int  # bytes of the file or its .part


def plan(data_root: Path, resources: Iterable[Resource]) -> list[Row]:
    """What is there. Looks at names and sizes only, fetches and writes nothing."""
    return [_row(resource, data_root) for resource in resources]


def _row(resource: Resource, data_root: Path) -> Row:
    target = data_root / resource.target
    have = size_of(target)
    if _is_unpacked(resource, data_root):
        return Row(resource, "unpacked", have or 0)
    if have is not None:
        return Row(resource, "present" if resource.size in (None, have) else "wrong size", have)
    have = size_of(beside(target, ".part")) or 0
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
    to_fetch, to_unpack = missing_bytes(rows, data_root, unpack)
    published = f"{gigabytes(known)} in {len(rows) - unknown} files"
    print(f"in all {published}, and {unknown} files without a published exact size")
    missing = f"{gigabytes(sum(to_fetch))} to fetch, {gigabytes(to_unpack)} to unpack"
    print(f"missing here: {missing}; free: {gigabytes(free_bytes(data_root))}")


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def size_of(path: Path) -> int | None:
    """Bytes of a file, None if there is none."""
    return path.stat().st_size if path.is_file() else None


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def free_bytes(data_root: Path) -> int:
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


def missing_bytes(rows: Iterable[Row], data_root: Path, unpack: bool) -> tuple[list[int], int]:
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
