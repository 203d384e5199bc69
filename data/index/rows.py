"""The rows of an index that is being built, and how they become one index."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.index.headers import Header
from data.index.image_index import ImageIndex, Strings, pack_texts, refuse_other_places, texts_of, whole_numbers


@dataclass(frozen=True)
class Rows:
    """Rows of an index: the images of one class folder or of one archive, and what was left out.

    Attributes:
        classes: names of the classes, also of those without images.
        paths: ``<class>/<file>`` of each image.
        targets: place in ``classes`` of each image.
        sizes: ``(n, 2)``, height and width in pixels.
        odd_colours: see :func:`data.index.headers.has_odd_colours`.
        lengths: bytes of each image's file.
        offsets: where each image begins in its archive, in bytes; zeros if each image is a file of its own.
        bad: a line for each file that was left out.
    """

    classes: list[str]
    paths: Strings
    targets: NDArray[np.int32]
    sizes: NDArray[np.int32]
    odd_colours: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    bad: list[str]

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(
        cls,
        paths: Sequence[str],
        class_of: Sequence[str],
        headers: Sequence[Header],
        bad: Sequence[str] = (),
        others: Sequence[str] = (),
    ) -> "Rows":
        """Rows of good images.

        Args:
            paths: ``<class>/<file>`` of each image.
            class_of: name of the class of each image.
            headers: header of each image.
            bad: a line for each file that was left out.
            others: further classes, those whose images are all bad.
        """
        classes = list(dict.fromkeys([*class_of, *others]))
        place = {name: target for target, name in enumerate(classes)}
        return cls(
            classes=classes,
            paths=Strings.pack(paths),
            targets=np.array([place[name] for name in class_of], dtype=np.int32),
            sizes=np.array([(header.height, header.width) for header in headers], dtype=np.int32).reshape(-1, 2),
            odd_colours=np.array([header.odd_colours for header in headers], dtype=bool),
            lengths=np.array([header.length for header in headers], dtype=np.int64),
            offsets=np.array([header.offset for header in headers], dtype=np.int64),
            bad=list(bad),
        )

    def arrays(self) -> dict[str, NDArray]:
        """The same as named arrays; :meth:`of_arrays` reads them."""
        columns = {name: getattr(self, name) for name in ("targets", "sizes", "odd_colours", "lengths", "offsets")}
        return columns | pack_texts(classes=self.classes, paths=self.paths, bad=self.bad)

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray]) -> "Rows":
        """The rows in named arrays.

        Raises:
            UNREADABLE: if they are damaged, or were made by another program.
        """
        texts = {name: texts_of(arrays, name) for name in ("classes", "paths", "bad")}
        refuse_other_places(texts["paths"])
        count, classes = len(texts["paths"]), list(texts["classes"])
        columns = {
            "targets": whole_numbers(arrays, "targets", count, len(classes) - 1),
            "sizes": whole_numbers(arrays, "sizes", (count, 2)),
            "odd_colours": arrays["odd_colours"].reshape(count).astype(bool),
            "lengths": whole_numbers(arrays, "lengths", count),
            "offsets": whole_numbers(arrays, "offsets", count),
        }
        return cls(classes, texts["paths"], bad=list(texts["bad"]), **columns)


def joined_index(rows: Sequence[Rows], classes: list[str] | None = None) -> ImageIndex:
    """The index of all rows, in their order.

    Args:
        rows: each with its own classes.
        classes: names of all classes, in the order of the index; ``None``: each class is in one of the rows alone, and
            they are in this order.
    """
    rows = rows or [Rows.of([], [], [])]
    classes = [name for part in rows for name in part.classes] if classes is None else classes
    place = {name: target for target, name in enumerate(classes)}
    of_part = [np.array([place[name] for name in part.classes], dtype=np.int32) for part in rows]
    sizes = np.concatenate([part.sizes for part in rows])
    return ImageIndex(
        classes=classes,
        paths=Strings.join([part.paths for part in rows]),
        targets=np.concatenate([places[part.targets] for places, part in zip(of_part, rows, strict=True)]),
        heights=np.ascontiguousarray(sizes[:, 0]),
        widths=np.ascontiguousarray(sizes[:, 1]),
        odd_colours=frozenset(np.flatnonzero(np.concatenate([part.odd_colours for part in rows])).tolist()),
        bad=[entry for part in rows for entry in part.bad],
        lengths=np.concatenate([part.lengths for part in rows]),
    )


def sorted_order(index: ImageIndex) -> NDArray[np.int64]:
    """The rows of an index in the order of their classes and, inside a class, of their paths."""
    paths, targets = list(index.paths), index.targets.tolist()
    return np.array(sorted(range(len(index)), key=lambda i: (targets[i], paths[i])), dtype=np.int64)


def reordered(index: ImageIndex, order: NDArray[np.int64]) -> ImageIndex:
    """The same images in another order, without ``extra``."""
    paths = list(index.paths)
    return ImageIndex(
        classes=index.classes,
        paths=Strings.pack([paths[i] for i in order.tolist()]),
        targets=index.targets[order],
        heights=index.heights[order],
        widths=index.widths[order],
        odd_colours=frozenset(np.flatnonzero(np.isin(order, list(index.odd_colours))).tolist()),
        bad=index.bad,
        lengths=None if index.lengths is None else index.lengths[order],
    )
