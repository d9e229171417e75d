"""What every format of annotations gives: sentences with the ids of their images, as a stream."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from engine.data.annotations.answers import no_such_file
from engine.data.images.places import Place
from engine.errors import UserError
from engine.progress import Bar

CHUNK = 1 << 20


class Texts(NamedTuple):
    """The sentences of one category of one image."""

    img_id: str
    category: str
    texts: list[str]
    labels: list[dict[str, float]] | None  # answers with scores, one dict for each question; None for captions
    question_id: int | None = None  # of the only text, in a format that has ids


class FieldError(Exception):
    """An item that isn't as it should be; the message says which part."""

    def __init__(self, reason: str, remedy: str = "mend or remove it") -> None:
        super().__init__(reason)
        self.remedy = remedy


class AnnotationFile(ABC):
    """One file of annotations. Making one opens nothing.

    Images of the original's data have ids without a slash. All other ids are PLACE/NAME; see `place`.
    """

    format: ClassVar[str]
    unit: ClassVar[str] = "item"  # what `number` counts
    has_question_ids: ClassVar[bool] = False
    repeats_images: ClassVar[bool] = False  # whether the sentences of an image may be in several items

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0  # of the item that was read last
        self.dropped: Counter[str] = Counter()  # what was left out in reading, by its reason
        self.read = 0  # items that were read, broken ones not among them
        self.on_broken: Callable[[UserError], None] | None = None  # what to do with a broken item instead of a stop

    @property
    def place(self) -> tuple[str, Place] | None:
        """Where its images lie, and the name that their ids begin with; None for the original's folders."""
        return None

    @property
    def identity(self) -> list[Any]:
        """What the sentences depend on beside the file's content, as plain values."""
        return []

    def size(self) -> int:
        """Bytes that reading it advances a bar by."""
        return self.path.stat().st_size

    def digest(self) -> str:
        """Changes when the content does: the file's sha256.

        Raises:
            UserError: if it can't be read.
        """
        digest = hashlib.sha256()
        try:
            with self.path.open("rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    digest.update(data)
        except OSError as error:
            raise no_such_file(self.path, error) from None
        return digest.hexdigest()

    @abstractmethod
    def texts(self, bar: Bar | None = None) -> Iterator[Texts]:
        """All sentences in the order of the file; `bar` advances by bytes.

        Raises:
            UserError: for a file that can't be read or isn't of its format, naming the place.
        """

    @abstractmethod
    def was(self, digest: str) -> bool:
        """Whether what `texts` has read to its end is what `digest` had seen."""

    def nothing_found(self) -> UserError | None:
        """What to say if neither this file nor the others of its part have a sentence; None if that is no error."""
        return None

    def pass_over(self, error: UserError) -> None:
        """Leave out a broken item where `on_broken` says so; else raise what is wrong with it."""
        if self.on_broken is None:
            raise error from None
        self.on_broken(error)

    def error(self, reason: FieldError) -> UserError:
        """What to say of the item that was read last."""
        return UserError(f"{self.path}, {self.unit} {self.number}: {reason}; {reason.remedy}")
