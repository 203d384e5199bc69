"""A GPU that fails inside DALI is not taken for an image that cannot be decoded."""

from pathlib import Path

import pytest
from nvidia.dali import Pipeline

from data.backends.dali_errors import gpu_failure
from data.errors import BadImage, DataError
from data.sources import EncodedSource
from tests.crop_requests import build, images_of, make_crops, options, run

NO_MEMORY = "the GPU has too little memory for DALI's decoding beside the model"


def raised(text: str) -> RuntimeError:
    """An error as DALI words it: where, what, and what follows from it."""
    return RuntimeError(
        "Critical error in pipeline:\nError in MIXED operator `nvidia.dali.fn.decoders.image_slice`,\n"
        'which was used in the pipeline definition with the following traceback:\n\n  File "p.py", line 6, in p\n'
        f"    images = fn.decoders.image_slice(\n\nencountered:\n\n{text}\nCurrent pipeline object is no longer valid."
    )


# The texts are those of dali/core/cuda_error.h, and of reports to DALI's developers.
@pytest.mark.parametrize(
    "text",
    [
        "CUDA allocation failed",
        "Can't allocate 129499136 bytes on device 0.",
        "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory",
        "CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2):\nout of memory",
        'Error in thread 0: NVJPEG error "5" : NVJPEG_STATUS_ALLOCATOR_FAILURE n02130308/val_00033687.JPEG',
        "nvImageCodec failure: '#5'",
    ],
)
def test_too_little_memory_is_named_with_what_to_do(text: str) -> None:
    said = str(gpu_failure(raised(text)))
    assert said == f"{NO_MEMORY}: set a lower micro_batch_size, or data.backend=torch"


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        (
            "CUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access was encountered",
            "CUDA runtime API error cudaErrorIllegalAddress (700): an illegal memory access was encountered",
        ),
        (
            "CUDA driver API error CUDA_ERROR_LAUNCH_FAILED (719):\nunspecified launch failure",
            "CUDA driver API error CUDA_ERROR_LAUNCH_FAILED (719): unspecified launch failure",
        ),
        ("CUDA runtime API error <unknown error> (1234)", "CUDA runtime API error <unknown error> (1234)"),
    ],
)
def test_another_error_of_cuda_is_quoted_in_one_line(text: str, quoted: str) -> None:
    said = str(gpu_failure(raised(text)))
    assert said.startswith(f"DALI's decoding failed with {quoted}: run the same command again")
    assert "\n" not in said


@pytest.mark.parametrize("text", ["Failed to decode sample #3 : a/3.jpg", "nvImageCodec failure: '#3'"])
def test_a_bad_image_is_no_failure_of_the_gpu(text: str) -> None:
    assert gpu_failure(raised(text)) is None


@pytest.mark.parametrize("place", ["build", "run"])
def test_no_image_is_blamed_or_read_again(photographs: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def fail(*_: object) -> None:
        raise raised("CUDA allocation failed")

    source, cfg = images_of(photographs), options("bicubic", 64)
    monkeypatch.setattr(Pipeline, place, fail)
    monkeypatch.setattr(EncodedSource, "read", None)
    with pytest.raises(DataError, match=NO_MEMORY) as refused:
        run(build("dali", source, cfg), [make_crops(source, cfg, "train")])
    assert not isinstance(refused.value, BadImage)
