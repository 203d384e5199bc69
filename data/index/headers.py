"""Reads the header of an image file, and decodes the whole image."""

import os
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from data.errors import in_one_line

# A file with one of these is an image of the set, so one that cannot be read is named and not passed over.
EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"}
EXTENSIONS |= {".avif", ".heic", ".heif", ".jxl", ".jp2"}
READABLE = ("JPEG", "PNG")  # by content; the file name does not matter
BEGINNINGS = (4096, 65536)  # bytes that are read first to find the header of an image in an archive
# How files of other formats begin; a dot is any byte.
OTHERS = {
    "WebP": rb"RIFF....WEBP",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    "GIF": rb"GIF8",
    "TIFF": rb"II\*\0|MM\0\*",
    "BMP": rb"BM....\0\0\0\0",
}
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for damaged files


# Pillow warns of every image above a half of its limit; such images train like others.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Header(NamedTuple):
    """What an index stores of an image.

    Height and width are in pixels as stored (an EXIF rotation is not applied). ``odd_colours`` is what
    :func:`has_odd_colours` finds. ``length`` is the file's size in bytes, and ``offset`` where it begins in an archive.
    """

    height: int
    width: int
    odd_colours: bool
    length: int
    offset: int = 0


def read_header(source: Path | IO[bytes]) -> Header | str:
    """The header of an image, or what is wrong with the file."""
    try:
        if isinstance(source, Path):
            with open(source, "rb", opener=nonblocking) as file:
                return read_header(file)
        with Image.open(source, formats=READABLE) as image:
            if image.mode.startswith("I") or (image.format == "PNG" and _has_16_bits(image)):
                return "has 16 bits per channel, which the decoders read differently"
            odd_colours = has_odd_colours(image)
            source.seek(0, os.SEEK_END)
            return Header(image.height, image.width, odd_colours, source.tell())
    except UnidentifiedImageError:
        assert not isinstance(source, Path)  # a path is opened above
        return _said_of_another(source)
    except Image.DecompressionBombError:
        return "has too many pixels"
    except (OSError, ValueError) as error:
        return f"cannot be read ({in_one_line(error)})"


def _said_of_another(file: IO[bytes]) -> str:
    """What is wrong with a file that Pillow does not take for a JPEG or PNG image."""
    file.seek(0)
    begins = file.read(16)
    kind = next((name for name, pattern in OTHERS.items() if re.match(pattern, begins, re.DOTALL)), None)
    return "is not a JPEG or PNG image" + (f" (it is {kind}: convert it)" if kind else "")


def read_header_at(file: int, offset: int, length: int) -> Header | str:
    """The header of an image that is a part of a large file, or what is wrong with it.

    Args:
        file: descriptor of the large file.
        offset: where the image begins, in bytes.
        length: bytes of the image.
    """
    for most in (*BEGINNINGS, length):  # only a large EXIF or ICC part needs more
        try:
            header = read_header(BytesIO(os.pread(file, min(most, length), offset)))
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if isinstance(header, Header):
            return header._replace(length=length, offset=offset)
    return header


def _has_16_bits(png: Image.Image) -> bool:
    """Whether a PNG has 16 bits per channel. Pillow keeps only 8; its decoder's arguments tell, such as RGB;16B."""
    tiles: Any = getattr(png, "tile")  # noqa: B009  (Pillow's types leave it out)
    return any("16" in str(tile.args) for tile in tiles)


def has_odd_colours(image: Image.Image) -> bool:
    """Whether an image is a JPEG that stores CMYK, YCCK or RGB, not YCbCr or grey as nearly all do.

    DALI decodes these differently from Pillow. The rule for three components is libjpeg's
    (``default_decompress_parms`` in jdapimin.c), which Pillow uses. The mode of the image does not show it.
    """
    if image.mode == "CMYK":
        return True
    if not isinstance(image, JpegImageFile) or image.mode != "RGB":
        return False
    if "jfif" in image.info:
        return False
    if "adobe_transform" in image.info:
        return bool(image.info["adobe_transform"] == 0)
    return bytes(component[0] for component in image.layer) == b"RGB"


def nonblocking(path: str, flags: int) -> int:
    """An opener for :func:`open`: without it, opening a pipe would wait until something writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def decoded(content: bytes) -> Image.Image:
    """The decoded image in a file's content.

    Raises:
        BROKEN: if it is damaged or cut short.
    """
    with Image.open(BytesIO(content), formats=READABLE) as image:
        image.verify()  # checks every part of a PNG, also those after the pixels
    image = Image.open(BytesIO(content), formats=READABLE)
    image.load()
    return image
