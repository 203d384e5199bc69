"""What a source is: the images of one split, wherever they are stored."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.config import DataConfig
from data.index import ImageIndex

PREPARE = "python scripts/prepare_imagenet.py"
PAUSES = (0.1, 0.4, 1.5)  # seconds to wait before each new attempt to read a file


class Source(ABC):
    """The images of one split.

    A source of image files is an :class:`EncodedSource`. Only a source whose images a backend makes without files is
    a bare ``Source``.

    Attributes:
        form: what the images of this kind are stored as, for messages.
        backend: the one backend that can make its images; ``None``: any backend that decodes files.
        place: where the split is, for messages.
        index: which images there are, as columns.
    """

    form: ClassVar[str] = "another form"
    backend: ClassVar[str | None] = None
    place: Path
    index: ImageIndex

    @classmethod
    @abstractmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """Whether the split is of this kind. This checks the options and which files there are, and reads no image.

        Args:
            cfg: the options. ``cfg.root`` is a full path, which may not exist, or ``None`` if the options name none.
            split: name of the split.
        """

    @classmethod
    @abstractmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "Source | None":
        """The source of a split that fits; its index is built if there is none.

        Args:
            cfg: the options, ``cfg.root`` as in :meth:`fits`.
            split: name of the split.
            build: whether to build an index that is missing or outdated; if not, ``None`` is returned in that case.

        Raises:
            DataError: if the split cannot be used. Bad images are no error here: ``index.bad`` names them.
        """

    @property
    def layout(self) -> str:
        """How the images are stored, for messages: it follows the word "in"."""
        return self.form

    @abstractmethod
    def name(self, i: int) -> str:
        """The name of image ``i`` in messages."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Advice:
    """What a user can do about a bad image, as the end of a sentence.

    Attributes:
        at_start: if it is not a readable image when the split is opened.
        in_run: if it cannot be decoded later, in a run that can only continue with the same images.
        changed: if it is not the image that the index describes.
    """

    at_start: str
    in_run: str
    changed: str


class EncodedSource(Source):
    """A source whose images are JPEG or PNG files, or byte ranges with the content of such files.

    Worker processes get the source pickled. Several threads may read from it at the same time.

    Attributes:
        advice: what users can do about bad images of this kind of source.
    """

    advice: ClassVar[Advice]

    @abstractmethod
    def content(self, i: int) -> bytes:
        """The undecoded file of image ``i``, read in one attempt.

        Raises:
            OSError: if it cannot be read, for any reason. Another error would end the run without naming the image.
        """

    def path(self, i: int) -> str | None:
        """The local file that holds image ``i`` and nothing else, or ``None`` if there is none.

        A source has such a file for every image or for none.
        """
        return None

    def name(self, i: int) -> str:
        """The name of image ``i`` in messages."""
        return str(self.place / self.index.paths[i])

    def read(self, i: int) -> bytes:
        """The undecoded file of image ``i``. Reading is tried a few times, because a network may fail for a moment.

        Raises:
            OSError: if it cannot be read.
        """
        for pause in PAUSES:
            try:
                return self.content(i)
            except OSError:
                time.sleep(pause)
        return self.content(i)
