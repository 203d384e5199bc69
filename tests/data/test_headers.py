"""What the header of an image says about its colours."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from data.index.headers import Header, decoded, read_header

JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
SIZE = 96
ROOT = Path(__file__).resolve().parents[2]


def odd_colours(content: bytes) -> bool:
    header = read_header(BytesIO(content))
    assert isinstance(header, Header)
    return header.odd_colours


def rgb_jpeg(jfif: bool, transform: int | None, ids: bytes) -> bytes:
    """A JPEG that stores RGB, with these markers (``transform`` is in Adobe's, if any) and component ids."""
    file = BytesIO()
    photograph().save(file, "JPEG", quality=95, keep_rgb=True)
    content = file.getvalue()
    start, tables, frame, scan = (content.index(mark) for mark in (b"\xff\xee", b"\xff\xdb", b"\xff\xc0", b"\xff\xda"))
    assert (start, tables) == (2, 18)  # Adobe's marker is the first segment
    adobe = b"" if transform is None else content[2:17] + bytes([transform])
    patched = bytearray(content)
    for i, new in enumerate(ids):
        assert patched[frame + 10 + 3 * i] == patched[scan + 5 + 2 * i] == b"RGB"[i]
        patched[frame + 10 + 3 * i] = patched[scan + 5 + 2 * i] = new
    return content[:2] + JFIF * jfif + adobe + bytes(patched[18:])


def photograph() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()[:SIZE, :SIZE])


@pytest.mark.parametrize("jfif", [False, True])
@pytest.mark.parametrize("transform", [None, 0, 1, 2])
@pytest.mark.parametrize("ids", [b"RGB", b"\1\2\3", b"\0\1\2", b"rgb"])
def test_the_header_tells_where_pillow_takes_components_for_rgb(jfif: bool, transform: int | None, ids: bytes) -> None:
    content = rgb_jpeg(jfif, transform, ids)
    difference = np.abs(np.asarray(decoded(content), dtype=int) - np.asarray(photograph(), dtype=int)).mean()
    assert difference < 5 or difference > 40
    assert odd_colours(content) == (difference < 5)


def test_photographs_with_odd_colours_are_known(photographs: Path) -> None:
    files = sorted((photographs / "train" / "chelsea").iterdir())
    assert [file.name for file in files if odd_colours(file.read_bytes())] == ["cmyk.jpg", "rgb.jpg"]
    assert {"grey.jpg", "420.jpg", "rgb.png", "png.JPEG"} < {file.name for file in files}


def png(colour: int, bits: int, width: int, height: int, comment: bytes = b"") -> bytes:
    """A black PNG. ``colour`` is the colour type of its header; a comment moves the pixels away from the beginning."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    pixels = zlib.compress((b"\0" + bytes(width * channels * bits // 8)) * height)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tEXt", b"Comment\0" + comment), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["grey", "rgb", "grey_alpha", "rgba"])
@pytest.mark.parametrize(("width", "height", "comment"), [(16, 15, 0), (9, 160, 0), (15, 15, 1600 - 60), (116, 16, 0)])
def test_16_in_a_size_or_a_place_does_not_mean_16_bits(colour: int, width: int, height: int, comment: int) -> None:
    text = b"c" * comment
    assert isinstance(read_header(BytesIO(png(colour, 8, width, height, text))), Header)
    assert "has 16 bits per channel" in str(read_header(BytesIO(png(colour, 16, width, height, text))))


@pytest.mark.parametrize("kind", ["WebP", "AVIF", "GIF", "TIFF", "BMP", "JPEG 2000"])
def test_an_image_of_another_format_is_named_with_its_format(kind: str) -> None:
    file = BytesIO()
    photograph().save(file, kind.replace(" ", ""))
    assert read_header(file) == f"is not a JPEG or PNG image (it is {kind}: convert it)"


@pytest.mark.parametrize(
    ("begins", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a", "JPEG XL"),
    ],
)
def test_formats_that_pillow_cannot_write_are_named_too(begins: bytes, kind: str) -> None:
    assert read_header(BytesIO(begins)) == f"is not a JPEG or PNG image (it is {kind}: convert it)"


@pytest.mark.parametrize("content", [b"", b"no image", b"\0" * 99])
def test_what_is_no_image_is_said(content: bytes) -> None:
    assert read_header(BytesIO(content)) == "is not a JPEG or PNG image"


def test_a_large_image_is_no_reason_to_warn() -> None:
    file = BytesIO()
    photograph().save(file, "PNG")
    code = f"""
from io import BytesIO
from PIL import Image
from data.index.headers import read_header
Image.MAX_IMAGE_PIXELS = {SIZE * SIZE - 1}
print(read_header(BytesIO({file.getvalue()!r})))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.startswith("Header(") and not done.stderr
