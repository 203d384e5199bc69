"""Files that are no images, and classes without any: named, or left out where asked for."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import indexing
from tests.indexing import index_of, paint, paths, refused, touch_later

root = indexing.root


def text_file(path: Path) -> None:
    path.write_text("this is text")


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def sixteen_bit_png(path: Path) -> None:
    Image.fromarray(np.full((6, 8), 40000, dtype=np.uint16)).save(path, format="PNG")


def write_png(path: Path, width: int, height: int, bits: int, lines: bytes) -> None:
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    content = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))


def sixteen_bit_colour_png(path: Path) -> None:
    """Written by hand: Pillow reads such a file as if it had 8 bits, and cannot write one."""
    lines = b"".join(b"\0" + np.full((8, 3), 40000, dtype=">u2").tobytes() for _ in range(6))
    write_png(path, 8, 6, 16, lines)


def gif(path: Path) -> None:
    Image.new("RGB", (8, 6)).save(path, format="GIF")


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere.png")


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def png_with_a_short_chunk(path: Path) -> None:
    """Damage for which Pillow raises another exception than usual."""
    paint(path.with_suffix(".png"))
    content = path.with_suffix(".png").read_bytes()
    path.with_suffix(".png").unlink()
    chunk = struct.pack(">I", 2) + b"pHYs\0\0" + struct.pack(">I", zlib.crc32(b"pHYs\0\0"))
    path.write_bytes(content[:33] + chunk + content[33:])


def huge_png(path: Path) -> None:
    """Some bytes that would become 1.2 GB of pixels."""
    write_png(path, 20_000, 20_000, 8, b"")


BAD = {
    "text.jpg": text_file,
    "empty.png": empty_file,
    "deep.png": sixteen_bit_png,
    "deep-colour.png": sixteen_bit_colour_png,
    "huge.png": huge_png,
    "moving.gif": gif,
    "moving.JPEG": gif,
    "link.jpg": dangling_link,
    "pipe.jpg": named_pipe,
    "chunk.PNG": png_with_a_short_chunk,
}


def test_a_folder_that_cannot_be_read_is_named(root: Path) -> None:
    loop = root / "train" / "a" / "loop"
    loop.symlink_to(loop)
    touch_later(root / "train" / "a")
    assert f"{loop} cannot be read (Too many levels of symbolic links)" in refused(root)


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_image_is_named(root: Path, name: str) -> None:
    BAD[name](root / "train" / "a" / name)
    touch_later(root / "train" / "a")
    for _ in ("built", "read"):
        message = refused(root)
        assert str(root / "train" / "a" / name) in message
        assert "on_bad_image=skip" in message


def test_files_that_are_no_images_are_left_out_where_asked_for(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, write in BAD.items():
        write(root / "train" / "a" / name)
    touch_later(root / "train" / "a")
    assert f"and {len(BAD) - 1} more" in refused(root)
    for _ in ("built", "read"):
        caplog.clear()
        index = index_of(root, on_bad_image="skip")
        assert paths(index) == ["a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"]
        assert index.targets.tolist() == [0, 0, 1, 1]
        assert sorted(entry.split(" ")[0] for entry in index.bad) == sorted(str(root / "train/a" / n) for n in BAD)
        assert f"left out {len(BAD)} files" in caplog.text


def test_a_file_mended_in_place_is_accepted(root: Path) -> None:
    file = root / "train" / "a" / "0.png"
    file.write_text("no image")
    touch_later(root / "train" / "a")
    assert str(file) in refused(root)
    before = os.stat(file.parent).st_mtime_ns
    paint(file)
    os.utime(file.parent, ns=(before, before))
    assert paths(index_of(root))[0] == "a/0.png"


def test_a_class_without_images_is_refused_by_name(root: Path) -> None:
    (root / "train" / "ab").mkdir()
    touch_later(root / "train")
    for _ in ("built", "read"):
        assert f"class {root / 'train' / 'ab'} holds no images" in refused(root)
    paint(root / "train" / "ab" / "1.png")
    touch_later(root / "train" / "ab")
    assert index_of(root).classes == ["a", "ab", "b"]


def test_a_class_of_which_all_images_are_left_out_is_refused(root: Path) -> None:
    (root / "train" / "ab").mkdir()
    text_file(root / "train" / "ab" / "1.png")
    touch_later(root / "train")
    assert "ab holds no images" in refused(root, on_bad_image="skip")
