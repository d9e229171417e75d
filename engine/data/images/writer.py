"""Writing an image store: several processes encode and one writes, again and again until it is complete."""

import contextlib
import io
import multiprocessing
import shutil
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from engine.data.images.decoding import IMAGE_ERRORS, UNREADABLE_SIZE, ImageShape, open_image, reason
from engine.data.images.folder import ImageFolder
from engine.data.images.lmdb_store import data_file, open_store, read_format, release, short
from engine.data.images.places import Place, is_originals
from engine.data.images.records import FORMAT_KEY, INDEX_ENTRY, INDEX_KEY, StoreFormat, key_of, pack
from engine.data.images.transforms import Size, placement, resize_rgb
from engine.errors import UserError
from engine.progress import Bar

FIRST_MAP_SIZE = 1 << 30  # bytes; doubled whenever it is full
COMMIT_RECORDS, COMMIT_BYTES = 1000, 64 << 20  # a transaction ends at whichever is reached first


@dataclass(frozen=True)
class StoreSummary:
    """What one call of `write_image_store` did."""

    written: int
    skipped_existing: int
    unreadable: list[str]  # "path: reason"
    bytes: int  # of the records written


class Encoded(NamedTuple):
    """An image's record, or the problem with it."""

    key: bytes
    record: bytes = b""
    size: Size = UNREADABLE_SIZE
    problem: str = ""


def write_image_store(
    path: Path,
    img_ids: Iterable[str],
    data_root: Path,
    *,
    resize: tuple[int, int] | None,
    quality: int,
    workers: int,
    progress: bool,
    places: Mapping[str, Place] | None = None,
) -> StoreSummary:
    """Write the images of a data root, or of places of one's own, to a store, or complete one.

    `workers` 0 encodes in this process.

    Without `resize` (min, max) a record holds the file as it is, and `quality` has no meaning. Images that are in the
    store already are skipped. Whatever ends the program, the images of all finished transactions stay.

    Raises:
        UserError: for a quality or size that is none, a store of other images, a store that can't be written (a full
            disk), and a worker that was killed.
    """
    if not 1 <= quality <= 100:
        raise UserError(f"--quality {quality} was given; JPEG has 1 to 100, and 95 loses little")
    if resize is not None and not 1 <= resize[0] <= resize[1]:
        raise UserError(f"--resize {resize[0]}x{resize[1]} was given; the short side comes first, as in 384x640")
    if workers < 0:
        raise UserError(f"--workers {workers} was given; give the number of processes, 0 for none but this one")
    store_format = StoreFormat(resize, quality if resize else None)
    images = ImageFolder(data_root, ImageShape(1, 1), places=places or {})
    wanted = dict.fromkeys(img_ids)
    written, size, unreadable = 0, 0, []
    with contextlib.closing(_Writer(path.resolve(), store_format)) as writer:
        stored = writer.stored()
        todo = [img_id for img_id in wanted if key_of(img_id) not in stored]
        images.missing(todo)  # refuses folders that can't be read and ids that may mean two files
        with contextlib.closing(_encode_all(todo, images, store_format, workers)) as encoded:
            for image in Bar(encoded, desc="images", total=len(todo), unit="image", disable=not progress):
                if image.problem:
                    unreadable.append(image.problem)
                    continue
                writer.add(image)
                written += 1
                size += len(image.record)
        writer.commit()
    return StoreSummary(written, len(wanted) - len(todo), sorted(unreadable), size)


class _Writer:
    """The one process that writes: collects records and commits them with their index entries."""

    def __init__(self, path: Path, store_format: StoreFormat) -> None:
        self.path = path
        self.pending: list[Encoded] = []
        self.pending_bytes = 0
        release(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            data = data_file(path)
            is_new = not data.exists() or data.stat().st_size == 0 or self._check(store_format)
        except OSError as error:
            raise UserError(
                f"the image store {path} can't be made ({error.strerror}); give a folder that may be written"
            ) from None
        with self._told():
            self.environment = lmdb.open(str(path), map_size=FIRST_MAP_SIZE, max_dbs=1, readahead=False, meminit=False)
            with self.environment.begin(write=True) as transaction:
                self.index = self.environment.open_db(INDEX_KEY, txn=transaction)
                if is_new:
                    transaction.put(FORMAT_KEY, pack(asdict(store_format)))

    def _check(self, wanted: StoreFormat) -> bool:
        """Whether the store is new; UserError if it is another one than wanted, or damaged."""
        with contextlib.closing(open_store(self.path)) as environment:
            found = read_format(environment, self.path)
            if found is None and environment.stat()["entries"]:
                raise UserError(f"{self.path} is another program's LMDB; name another folder for the image store")
        if found is not None and found != wanted:
            raise UserError(
                f"the image store {self.path} holds {found}, but {wanted} were asked for; "
                "give the same --resize and --quality, or name another folder"
            )
        return found is None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns LMDB's errors into one line. A full disk comes as an input/output error, so the free space is told."""
        try:
            yield
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            free = shutil.disk_usage(self.path).free
            raise UserError(
                f"the image store {self.path} can't be written ({short(error)}; {free / 1e6:,.0f} MB of its disk are "
                "free); make room and run the same command again, the images that were stored stay"
            ) from None

    def stored(self) -> set[bytes]:
        """The keys of the images that are in the store."""
        with self.environment.begin(db=self.index) as transaction:
            return set(transaction.cursor().iternext(keys=True, values=False))

    def add(self, image: Encoded) -> None:
        self.pending.append(image)
        self.pending_bytes += len(image.record)
        if len(self.pending) >= COMMIT_RECORDS or self.pending_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """All pending records and their index entries in one transaction, with a larger map if need be."""
        while self.pending:
            try:
                with self._told(), self.environment.begin(write=True) as transaction:
                    for image in self.pending:
                        transaction.put(image.key, image.record)
                        transaction.put(image.key, INDEX_ENTRY.pack(*image.size), db=self.index)
            except lmdb.MapFullError:
                with self._told():
                    self.environment.set_mapsize(2 * self.environment.info()["map_size"])
            else:
                self.pending, self.pending_bytes = [], 0

    def close(self) -> None:
        self.environment.close()


def encode(img_id: str, images: ImageFolder, store_format: StoreFormat) -> Encoded:
    """One image's record. An image that is kept as it is gets decoded all the same: damage is told now."""
    key = key_of(img_id)
    if key is None:
        return Encoded(b"", problem=f"{images.where(img_id)}: {img_id!r} can't be a key of the store")
    try:
        with images.open(img_id) as file:
            content = file.read()
        as_original = images.as_original(img_id)
        with open_image(content, as_original=as_original) as image:
            size = image.size
            if store_format.resize is None:
                image.rgb()
            else:
                buffer = io.BytesIO()
                resized, _ = placement(size, *store_format.resize)
                resize_rgb(image.rgb(resized), resized).save(buffer, "JPEG", quality=store_format.quality)
                content = buffer.getvalue()
    except IMAGE_ERRORS as error:
        return Encoded(key, problem=f"{images.where(img_id)}: {reason(error)}")
    record: dict[str, object] = {"jpeg": content, "size": size}
    if is_originals(img_id) and not as_original:
        record["own"] = True
    return Encoded(key, pack(record), size)


def _encode_all(
    img_ids: Sequence[str], images: ImageFolder, store_format: StoreFormat, workers: int
) -> Generator[Encoded, None, None]:
    """Each image, in the order in which the workers have them ready.

    Workers are spawned, not forked: the LMDB environment and tqdm's thread don't survive a fork, and a spawned worker
    holds only its own end of its pipe, so it ends by itself when this process ends, however that happens. A pipe each
    instead of a Pool, which would wait for ever for a worker that was killed.
    """
    if workers == 0:
        yield from (encode(img_id, images, store_format) for img_id in img_ids)
        return
    context = multiprocessing.get_context("spawn")
    processes: dict[Any, Any] = {}
    shares = [share for number in range(workers) if (share := img_ids[number::workers])]
    resource_tracker.ensure_running()  # starting the first process would, and unblock the signal
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit it: Ctrl-C is for us alone
    try:
        try:
            for _ in shares:
                pipe, far_end = context.Pipe()
                with far_end:
                    process = context.Process(target=_work, args=(far_end, images, store_format), daemon=True)
                    process.start()
                processes[pipe] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        running = dict(processes)
        for pipe, share in zip(processes, shares, strict=True):
            with contextlib.suppress(OSError):  # a worker that died is met below
                pipe.send(share)
        while running:
            ready: list[Any] = connection.wait(list(running))
            for pipe in ready:
                try:
                    yield pipe.recv()
                except (EOFError, OSError):
                    _check_end(running.pop(pipe))
    finally:
        for pipe, process in processes.items():
            pipe.close()
            process.join()


def _work(pipe: Any, images: ImageFolder, store_format: StoreFormat) -> None:
    """A worker: receives its share of the ids, sends their records, ends when the other side has."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        for img_id in pipe.recv():
            pipe.send(encode(img_id, images, store_format))


def _check_end(process: Any) -> None:
    process.join()
    if process.exitcode != 0:
        raise UserError(
            f"a process that encodes images ended with code {process.exitcode} (-9: killed, often for lack of memory); "
            "run the same command again, perhaps with fewer --workers: the images that were stored stay"
        )
