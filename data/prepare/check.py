"""Decodes every image of a split once, to find those that are damaged or unusual."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path, PurePath

from PIL import Image
from tqdm import tqdm

from data.errors import in_one_line
from data.index.headers import BROKEN, decoded, has_odd_colours
from data.prepare.jobs import run_jobs
from data.sources import EncodedSource

CHUNK = 256  # images in one job
ORIENTATION = 0x0112  # EXIF tag; any value but 1 asks viewers to rotate or mirror the image
JPEG_ENDINGS = {".jpg", ".jpeg"}
# MPO is a JPEG that holds further pictures, as some cameras write them.
ENDINGS = {"JPEG": JPEG_ENDINGS, "MPO": JPEG_ENDINGS, "PNG": {".png"}}


@dataclass
class Findings:
    """What a check of some images has found; each list holds names of images."""

    images: int = 0
    grey: int = 0
    bad: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    odd_colours: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)

    @classmethod
    def sum(cls, parts: Iterable["Findings"]) -> "Findings":
        """The findings of all parts together, in their order."""
        total = cls()
        for part in parts:
            for one in fields(cls):
                setattr(total, one.name, getattr(total, one.name) + getattr(part, one.name))
        return total

    def report(self, split: str, most: int | None = None) -> str:
        """The findings as text, with at most ``most`` names of each kind."""
        lines = [f"{split}: {self.images} images checked, {len(self.bad)} bad, {self.grey} greyscale"]
        lists = (
            ("bad: incomplete or not decodable", self.bad),
            ("with an extension that does not match their content; they can be used as they are", self.misnamed),
            (
                "with CMYK or RGB colours in a JPEG; they can be used as they are, because Pillow decodes them",
                self.odd_colours,
            ),
            ("with an EXIF rotation, which is ignored, as in Pillow and torchvision", self.turned),
        )
        for title, names in lists:
            if names:
                lines += [f"  {len(names)} {title}:", *(f"    {name}" for name in names[:most])]
                lines += [f"    and {len(names) - most} more"] if most is not None and len(names) > most else []
        return "\n".join(lines)


def check_images(source: EncodedSource, workers: int) -> Findings:
    """Decode every image of a source."""
    total = len(source)
    chunks = [range(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
    parts: dict[int, Findings] = {}
    with tqdm(total=total, desc=f"check {source.place.name}", unit=" images", disable=None, leave=False) as bar:
        for number, found in run_jobs([partial(check_rows, source, rows) for rows in chunks], workers):
            parts[number] = found
            bar.update(found.images)
    found = Findings.sum(parts[number] for number in sorted(parts))
    found.bad = source.index.bad + found.bad
    found.images += len(source.index.bad)
    return found


def check_rows(source: EncodedSource, rows: range) -> Findings:
    """Decode some images of a source."""
    found = Findings(images=len(rows))
    for row in rows:
        name = source.name(row)
        try:
            image = decoded(source.read(row))
        except BROKEN as error:
            found.bad.append(f"{name} cannot be decoded ({in_one_line(error)})")
            continue
        ending = PurePath(source.index.paths[row]).suffix.lower()
        if ending and ending not in ENDINGS[image.format or ""]:
            found.misnamed.append(f"{name} is a {image.format}")
        if has_odd_colours(image):
            found.odd_colours.append(name)
        if _is_turned(image):
            found.turned.append(name)
        found.grey += image.mode in ("1", "L", "LA")
    return found


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) != 1
    except (*BROKEN, struct.error, KeyError, TypeError):  # damaged EXIF does no harm: the decoders ignore it
        return False


def report_file(source: EncodedSource) -> Path:
    """The path of a check's report: beside the file of the index."""
    assert source.index.file is not None
    path = source.index.file.path
    return path.with_name(f"{path.stem.removeprefix('.')}-check.txt")
