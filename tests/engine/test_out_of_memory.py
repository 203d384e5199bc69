"""Too little memory, of a GPU or of the host: one line says what to try."""

import pytest
import torch

from data import BatchGeometry
from engine.errors import RunStopped, lacks_memory
from engine.loop import too_many_at_once
from engine.step import TrainStep
from tests.runs import SMALL, checkpoint, losses, run_here, train_here


@pytest.mark.parametrize(
    ("images", "group", "micro", "advice"),
    [
        (1024, 32, None, "1024 images at once: set micro_batch_size=512"),
        (1024, 32, 512, "512 images at once: set micro_batch_size=256"),
        (1000, 8, None, "1000 images at once: set micro_batch_size=512"),
        (72, 24, None, "72 images at once: set micro_batch_size=48"),
        (32, 32, None, "32 images at once: set model.grad_checkpointing=true, or use more GPUs"),
        (20, 32, None, "20 images at once: set model.grad_checkpointing=true, or use more GPUs"),
        (1, 1, None, "1 images at once: set model.grad_checkpointing=true, or use more GPUs"),
    ],
)
def test_the_advice_is_smaller_and_whole_mix_groups(images, group, micro, advice):
    geometry = BatchGeometry(images, group, micro_batch_size=micro)
    assert too_many_at_once(geometry) == f"the GPU has too little memory for {advice}"
    if "micro" in advice:
        smaller = BatchGeometry(images, group, micro_batch_size=int(advice.rpartition("=")[2]))
        assert smaller.largest_micro_batch < geometry.largest_micro_batch


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),  # of cuDNN 9
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
        (MemoryError("out of memory"), False),
    ],
    ids=lambda value: str(value).partition("\n")[0],
)
def test_the_driver_and_the_libraries_say_it_in_their_words(error, expected):
    """As when torch's allocator holds all memory, and the driver needs some for a CUDA graph or a kernel."""
    assert lacks_memory(error) is expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more lines"),
        torch.AcceleratorError("CUDA error: out of memory\nand more lines"),
    ],
    ids=["of torch", "of the driver"],
)
def test_a_step_that_runs_out_of_memory_ends_in_advice_that_works(error, small_images, here, monkeypatch):
    """The steps before it are saved, and the run continues with the smaller micro-batches."""
    real = TrainStep._backward

    def backward(self, batch):
        if self.stage == "gradients" and self.optimizer.state and len(batch.images) > 16:  # from the second step on
            raise error
        return real(self, batch)

    monkeypatch.setattr(TrainStep, "_backward", backward)
    common = (*SMALL, f"data.root={small_images}", "name=a", "max_steps=3")
    with pytest.raises(RunStopped) as stopped:
        train_here(*common)
    assert str(stopped.value) == "the GPU has too little memory for 32 images at once: set micro_batch_size=16"
    assert stopped.value.exit_code == 1 and checkpoint(here / "outputs/a")["step"] == 1
    train_here(*common, "micro_batch_size=16")
    assert sorted(losses(here / "outputs/a")) == [1, 2, 3]


def test_an_evaluation_that_runs_out_of_memory_is_not_blamed_on_the_step(small_images, here, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.loop.score", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=1")


@pytest.mark.parametrize("allocate", [lambda *_: torch.empty(2**50), lambda *_: bytes(2**60)])
def test_too_little_memory_of_the_host_is_one_line(allocate, small_images, here, monkeypatch):
    """On a CPU torch raises an error of no class of its own."""
    monkeypatch.setattr(TrainStep, "_backward", allocate)
    done = run_here("train.py", *SMALL, f"data.root={small_images}", "name=a", "max_steps=1", cwd=here)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: this machine gives the process too little memory: set micro_batch_size, eval.batch" in done.stderr
