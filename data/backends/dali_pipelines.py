"""DALI's pipelines. They take images and crops, and return the decoded images and the shapes of the full images.

These settings give the same pixels as Pillow: no EXIF rotation, libjpeg's fancy upsampling, antialiased resizing. An
image is given as its path or as its file's content; DALI reads paths in its own threads.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types

from data.backends.encoded import Encoded
from data.planning.crops import Crops

CUBIC, LINEAR = (np.int32(kind) for kind in (types.INTERP_CUBIC, types.INTERP_LINEAR))
Feed = Callable[[], tuple[Encoded, Crops]]


@pipeline_def(enable_conditionals=False)
def cpu_pipeline(feed: Feed, from_paths: bool):
    """Decodes only the boxes of the images, (height, width, channels)."""

    def columns():
        encoded, crops = feed()
        return encoded, *_boxes(crops)

    image, start, extent = fn.external_source(
        source=columns, num_outputs=3, batch=True, dtype=[types.UINT8, types.INT32, types.INT32]
    )
    return _decoded(image, from_paths, "cpu", start, extent)


@pipeline_def(enable_conditionals=False)
def gpu_pipeline(feed: Feed, from_paths: bool, side: int, hw_decoder_load: float):
    """Decodes the boxes on a GPU and makes the batch there, (channels, height, width)."""

    def columns():
        encoded, crops = feed()
        return encoded, *_boxes(crops), *_changes(crops)

    image, start, extent, size, window, flip, interpolation = fn.external_source(
        source=columns,
        num_outputs=7,
        batch=True,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.INT32, types.INT32, types.INT32],
    )
    images, shapes = _decoded(image, from_paths, "mixed", start, extent, hw_decoder_load=hw_decoder_load)
    # An external source cannot give values of INTERP_TYPE, so it gives integers, which are reinterpreted here.
    interpolation = fn.reinterpret(interpolation, dtype=types.INTERP_TYPE)
    images = fn.resize(images, size=size, interp_type=interpolation, antialias=True)
    # Named arguments stay on the host. As inputs, these numbers would be copied to the GPU and back for each batch.
    images = fn.slice(images, start=window, shape=[side, side], axes=[0, 1], out_of_bounds_policy="pad")
    return fn.crop_mirror_normalize(images, mirror=flip, dtype=types.UINT8, output_layout="CHW"), shapes


def _decoded(image, from_paths: bool, device: str, start, extent, **options):
    encoded = fn.io.file.read(image) if from_paths else image
    images = fn.decoders.image_slice(
        encoded,
        start=start,
        shape=extent,
        axes=[0, 1],
        device=device,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        **options,
    )
    return images, fn.peek_image_shape(encoded, adjust_orientation=False)


# DALI takes one array with a row for each image in a seventh of the time that it takes for a list of arrays.
def _boxes(crops: Crops) -> tuple[NDArray, ...]:
    return np.ascontiguousarray(crops.box[:, :2]), np.ascontiguousarray(crops.box[:, 2:])


def _changes(crops: Crops) -> tuple[NDArray, ...]:
    interpolation = np.where(crops.cubic, CUBIC, LINEAR)
    return crops.size.astype(np.float32), crops.window, crops.flip.astype(np.int32), interpolation
