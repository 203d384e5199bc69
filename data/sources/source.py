"""What a source is: the images of one split, wherever they lie."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.config import DataConfig
from data.index import ImageIndex

PAUSES = (0.1, 0.4, 1.5)  # seconds before a file that could not be read is tried again


class Source(ABC):
    """The images of one split.

    A source of image files is an :class:`EncodedSource`. Only one whose images some backend makes without any file
    is a bare ``Source``.

    Attributes:
        backend: the one backend that can make its images; ``None``: any that decodes files.
        place: where the split lies, for people.
        index: which images there are, as columns.
    """

    backend: ClassVar[str | None] = None
    place: Path
    index: ImageIndex

    @classmethod
    @abstractmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """Whether the split is one of this kind; a look at the options and at what lies there, which reads no image.

        Args:
            cfg: the options. ``cfg.root`` is a full path, or ``None`` where nothing is named. It need not exist.
            split: name of the split.
        """

    @classmethod
    @abstractmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "Source | None":
        """The source of a split that fits; its index is made where there is none.

        Args:
            cfg: the options, ``cfg.root`` as in :meth:`fits`.
            split: name of the split.
            build: whether an index is built that is missing or no longer true; otherwise ``None`` is returned then.

        Raises:
            DataError: if the split cannot be used. Images that are bad are named in ``index.bad`` instead.
        """

    @property
    @abstractmethod
    def layout(self) -> str:
        """How the images lie, for people: it follows the word "in"."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What image ``i`` is called, for people who look for it."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Advice:
    """What a user does about a bad image, as the end of a sentence.

    Attributes:
        at_start: where it is no readable image when the split is opened.
        in_run: where it cannot be decoded later, in a run that goes on only with the same images.
        changed: where it is another image than the one that the index holds.
    """

    at_start: str
    in_run: str
    changed: str


class EncodedSource(Source):
    """A source whose images are files of JPEG or PNG, or stretches of bytes that could be such files.

    Worker processes get it pickled, and read from it in several threads at a time.

    Attributes:
        advice: what users do about bad images of this kind of source.
    """

    advice: ClassVar[Advice]

    @abstractmethod
    def content(self, i: int) -> bytes:
        """The file of image ``i``, undecoded; one attempt.

        Raises:
            OSError: if it cannot be read, whatever the reason: other errors end the run without naming the image.
        """

    def path(self, i: int) -> str | None:
        """The local file that holds image ``i`` and nothing else; ``None`` where there is none.

        A source has such a file for every image or for none.
        """
        return None

    def name(self, i: int) -> str:
        """What image ``i`` is called, for people who look for it."""
        return str(self.place / self.index.paths[i])

    def read(self, i: int) -> bytes:
        """The file of image ``i``, undecoded; tried a few times, for networks may fail for a moment.

        Raises:
            OSError: if it cannot be read.
        """
        for pause in PAUSES:
            try:
                return self.content(i)
            except OSError:
                time.sleep(pause)
        return self.content(i)
