"""Which images there are, of which classes and how large: read once, kept in a file, and mapped from it."""

from data.index.building import cached_index, scanned
from data.index.image_index import VERSION, ImageIndex, Strings, differing

__all__ = ["VERSION", "ImageIndex", "Strings", "cached_index", "differing", "scanned"]
