"""Tells DALI's errors about the GPU from those about an image. Both are RuntimeErrors, so the text decides."""

import re

from data.errors import DataError

NO_MEMORY = re.compile(
    r"CUDA allocation failed|Can't allocate \d+ bytes on device|out of memory"
    r"|NVJPEG_STATUS_ALLOCATOR_FAILURE|nvImageCodec failure: '#5'"  # 5: NVIMGCODEC_STATUS_ALLOCATOR_FAILURE
)
# DALI's CUDAError (dali/core/cuda_error.h) has a second line that describes the error.
CUDA_ERROR = re.compile(r"CUDA (?:runtime|driver) API error [^\n]*(?:(?<=:)\n[^\n]*)?")


def gpu_failure(error: RuntimeError) -> DataError | None:
    """The error to raise instead if the GPU failed. ``None`` if the error says nothing of it: an image may be bad."""
    if NO_MEMORY.search(str(error)):
        return DataError(
            "the GPU has too little memory for DALI's decoding beside the model: set a lower micro_batch_size, "
            "or data.backend=torch"
        )
    if found := CUDA_ERROR.search(str(error)):
        return DataError(
            f"DALI's decoding failed with {' '.join(found.group().split())}: run the same command again to continue; "
            "data.backend=torch decodes without the GPU"
        )
    return None
