"""Which images there are, where they lie and how large they are: read once, kept in a file, and mapped from it."""

from data.index.image_index import VERSION, ImageIndex, Strings, differing, synthetic_index
from data.index.opening import PACKED_INDEX, load_index

__all__ = ["PACKED_INDEX", "VERSION", "ImageIndex", "Strings", "differing", "load_index", "synthetic_index"]
