"""Writes the images in parquet files, as Hugging Face publishes them, into WebDataset tar files, one for each.

A parquet file gives no single image: it is read and decompressed a group of rows at a time. So training from it would
read many images for each one. The tar files hold the same bytes, and every image can be read alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data.errors import DataError
from data.prepare.originals import Split
from data.prepare.target import Part, Target
from data.prepare.writing import Written, new_tar, shrunk, write_member
from data.sources.file_sets import complete_set, file_set
from data.sources.webdataset import class_name

ROWS = 64  # read at a time
SIGNATURES = {b"\xff\xd8": "jpg", b"\x89PNG": "png"}
INSTALL = "reading parquet files needs pyarrow: install it with pip install pyarrow"


class Sample(NamedTuple):
    """An image: its key in the tar file, its class, and its bytes."""

    key: str
    label: str
    content: bytes


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file with images.

    Attributes:
        image: name of its column of images: structs of ``bytes`` and ``path``.
        label: name of its column of class numbers or names.
    """

    path: Path
    image: str
    label: str

    @property
    def name(self) -> str:
        """Name of the file and of the columns: the plan of a begun set, which must not change, has it."""
        return f"{self.path.name}|{self.image}|{self.label}"

    @property
    def size(self) -> int:
        """Bytes of the tar file, or a little more: two members of a sample have up to 3 kB of headers and filling."""
        return self.path.stat().st_size + 3072 * int(_opened(self.path).metadata.num_rows)

    def refuse_other_columns(self) -> None:
        """Raise if the file has other columns. Only its end is read."""
        columns = {field.name: field.type for field in _opened(self.path).schema_arrow}
        if missing := [name for name in (self.image, self.label) if name not in columns]:
            has = ", ".join(columns)
            raise DataError(
                f"{self.path} has no column '{missing[0]}' but {has}: set --image-column and --label-column"
            )
        kind = columns[self.image]
        if not (kind.num_fields and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}):
            raise DataError(
                f"{self.path}: column '{self.image}' is {kind}, no images: they are structs of bytes and path"
            )
        if not _are_classes(columns[self.label]):
            raise DataError(
                f"{self.path}: column '{self.label}' is {columns[self.label]}, no classes: they are whole numbers or "
                "names; convert it, or set --label-column"
            )

    def samples(self) -> Iterator[Sample | str]:
        """The image of each row, or what is wrong with the row.

        Raises:
            DataError: if the file is damaged.
        """
        opened, row = _opened(self.path), 0
        import pyarrow

        try:
            for batch in opened.iter_batches(ROWS, columns=[self.image, self.label]):
                images, labels = (batch.column(name).to_pylist() for name in (self.image, self.label))
                for image, label in zip(images, labels, strict=True):
                    if image is None or not image["bytes"] or label is None:
                        yield f"{self.path}: row {row} has no image or no label"
                    elif (name := class_name(str(label))) is None:
                        yield f"{self.path}: row {row} has the label {label!r}, which is no class"
                    else:
                        stem = PurePosixPath(image["path"] or f"{self.path.stem}-{row:06}").stem.replace(".", "_")
                        yield Sample(f"{name}/{stem}", name, image["bytes"])
                    row += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(self.path, error) from error


def _are_classes(kind: Any) -> bool:
    """Whether a column of this type holds whole numbers or text. Numbers with a fraction would be other classes."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(is_kind(kind) for is_kind in (types.is_integer, types.is_string, types.is_large_string))


def _opened(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(INSTALL) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged or cut short ({str(error).splitlines()[0]}): get it again")


def parquet_target(root: Path, split: str, to: Path, shorter_side: int | None, image: str, label: str) -> Target:
    """The tar files to be written from the parquet files of a split.

    Args:
        root: the folder with the parquet files, or with a folder ``data`` that holds them.
        split: name of the split.
        to: the folder of the split that is written.
        shorter_side: see :class:`data.prepare.Task`.
        image: name of the column of images.
        label: name of the column of labels.

    Raises:
        DataError: if files are missing, damaged, or have other columns.
    """
    if file_set(root, split, ".parquet") is None:
        raise DataError(f"{root} holds no parquet files of {split}, such as {split}-00000-of-00294.parquet")
    files = [ParquetFile(path, image, label) for path in complete_set(root, split, ".parquet")]
    for file in files:
        file.refuse_other_columns()
    parts = [Part(to / f"{file.path.stem}.tar", [file]) for file in files]
    return Target(to, Split(split, []), parts, "tars", shorter_side)


def write_tar(part: Part, shorter_side: int | None) -> Written:
    """Write the images of a parquet file to a tar file, unless it exists. The same file gives the same bytes.

    Rows without an image or a class are left out.

    Raises:
        DataError: if the parquet file cannot be read or no row has both, or if the tar file cannot be written.
    """
    if part.path.is_file():
        return Written([], kept=True)
    (source,) = part.sources
    assert isinstance(source, ParquetFile)
    keys: set[str] = set()
    left_out: list[str] = []
    with new_tar(part.path) as tar:
        for row, sample in enumerate(source.samples()):
            if isinstance(sample, str):
                left_out.append(sample)
                continue
            key, label, content = sample
            if key in keys:  # its path differs only in its folder, for example
                key = f"{key}-{row:06}"
            keys.add(key)
            extension = next((kind for begin, kind in SIGNATURES.items() if content.startswith(begin)), "jpg")
            write_member(tar, f"{key}.{extension}", shrunk(content, shorter_side))
            write_member(tar, f"{key}.cls", label.encode())
        if left_out and not keys:
            raise DataError(f"{left_out[0]}, and no other row has both: get it again, or set --label-column")
    return Written(left_out)
