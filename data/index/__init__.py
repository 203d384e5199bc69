"""The index: which images there are, their classes and sizes. It is built once and kept in a file."""

from data.index.building import Listed, cached_index, scanned
from data.index.image_index import VERSION, ImageIndex, Strings, are_few_changed, differing
from data.index.pieces import Pieces

__all__ = [
    "VERSION",
    "ImageIndex",
    "Listed",
    "Pieces",
    "Strings",
    "are_few_changed",
    "cached_index",
    "differing",
    "scanned",
]
