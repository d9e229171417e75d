"""Archives of images to folders of images."""

import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from engine.errors import UserError
from engine.files import byte_bar, only_here, writing

CHUNK = 2**20  # bytes
# What zipfile raises on a damaged zip.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError, OverflowError)


def marker(zip_path: Path, folder: Path) -> Path:
    # In the folder of the images, so that it goes when they do.
    return folder / f".{zip_path.name}.unpacked"


def unpack_zip(path: Path, folder: Path, *, progress: bool = False) -> int:
    """Unpack the images of a zip into one folder, without the folders that they have inside.

    An image that is there already is compared (size and CRC-32) and kept. Nothing ever lies half written under an
    image's name.

    Returns:
        The number of images of the zip.

    Raises:
        UserError: a damaged zip, a member that isn't a plain file or that leaves the folder, another image of the
            same name, a full disk.
    """
    temporary = folder / f".{path.name}.tmp"
    with path.open("rb") as lock, open_zip(path) as archive:
        only_here(lock, path)
        images = images_of(archive)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        bar = byte_bar(f"unpacking {path.name}", sum(info.file_size for info in images.values()), 0, progress)
        with bar:
            for name, info in images.items():
                if not _is_there(folder / name, info, path):
                    _unpack(archive, info, temporary, path)
                    with writing(folder / name):
                        temporary.replace(folder / name)
                bar.update(info.file_size)
        os.sync()  # once: the marker must not outlive images in a crash of the machine
        with writing(folder):
            temporary.write_text(f"{len(images)}\n")
            temporary.replace(marker(path, folder))
    return len(images)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (*DAMAGE, OSError) as error:
            raise UserError(f"{path} is no complete zip ({error}); remove it and run the same command again") from None
        with archive:
            yield archive


def images_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by their file name. Everything is checked before anything is written."""
    images: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR) and not info.flag_bits & 1
        if not parts or info.filename.startswith("/") or ".." in parts or "\\" in info.filename or not plain:
            what = "leaves the folder or isn't a plain file"
            raise UserError(f"{_name(archive)}: the member {info.filename!r} {what}; get the zip from its own source")
        if info.is_dir() or parts[-1].startswith("."):  # .DS_Store and the like
            continue
        first = images.setdefault(parts[-1], info)
        if (first.file_size, first.CRC) != (info.file_size, info.CRC):
            what = f"{first.filename!r} and {info.filename!r} differ, but have one name"
            raise UserError(f"{_name(archive)}: {what}; get the zip from its own source")
    return images


def _name(archive: zipfile.ZipFile) -> str:
    return str(getattr(archive.fp, "name", "zip"))


def _is_there(target: Path, info: zipfile.ZipInfo, path: Path) -> bool:
    size = target.stat().st_size if target.is_file() else 0
    if not size:  # not there, or what a crash of the machine leaves of a file
        return False
    if size == info.file_size and _crc(target) == info.CRC:
        return True
    what = f"{target} ({size:,} bytes) isn't the image of that name in {path} ({info.file_size:,} bytes)"
    raise UserError(f"{what}; remove one of them and run the same command again")


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, temporary: Path, path: Path) -> None:
    try:
        with writing(temporary), archive.open(info) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)
    except DAMAGE as error:
        temporary.unlink(missing_ok=True)
        what = f"{path}: the member {info.filename!r} is damaged ({error})"
        raise UserError(f"{what}; remove the zip and run the same command again") from None
    except UserError:
        temporary.unlink(missing_ok=True)
        raise
