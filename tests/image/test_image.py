"""The image, as another user than its own, with read-only data: training, evaluation, the check of a machine."""

import json

import pytest

from tests.image.container import USER
from tests.runs import checkpoint, metrics

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

RUN = "experiment=quickstart"
STEPS = ("max_steps=3", "batch_size=64", "log_every=1", "checkpoint.every_steps=3", "logger=none", "name=run")


def test_it_trains_and_evaluates(image, happened):
    said = image.start(RUN, "data=folder", "data.root=/data", *STEPS)
    assert [line["step"] for line in metrics(image.folder / "run", "train")] == [1, 2, 3], said
    assert checkpoint(image.folder / "run")["step"] == 3
    assert (image.folder / "run/checkpoints/last.pt").stat().st_uid == USER
    said = image.start(
        "--nproc-per-node=1", "eval.py", "checkpoint=outputs/run/checkpoints/last.pt", "output=outputs/eval.json"
    )
    scores = json.loads((image.folder / "eval.json").read_text())
    assert scores["images"] == 80, said
    happened(f"top-1 {scores['top1']} % after 3 steps")


def test_the_same_command_unpacks_the_embedded_images_and_goes_on(image):
    image.start(RUN, "max_steps=1", "logger=none")
    assert "continuing from step 1" in image.start(RUN, "max_steps=2", "logger=none")


def test_the_check_of_a_machine_finds_nothing_bad(image, happened):
    said = image.run("python", "scripts/check_machine.py", "--data-root=/data", "--output-dir=/outputs")
    happened(said.strip().splitlines()[-1])


def test_no_file_names_a_library_that_the_image_leaves_out(image, happened):
    """cuda.pathfinder knows the places of all of CUDA's libraries, and opens those that somebody asks for."""
    search = "grep -rlE --include='*.so*' 'libcusolverMg|libnvrtc.*alt' /opt/venv/lib; du -sm /opt/venv"
    said = image.run("sh", "-c", search)
    assert ".so" not in said, said
    happened(f"{said.split()[0]} MB in /opt/venv")


def test_triton_compiles_for_a_gpu(image, happened):
    happened(image.run("python", "/probes/compile_kernel.py").strip())


def test_a_compiler_finds_the_headers_of_python(image):
    headers = "$(python -c 'import sysconfig; print(sysconfig.get_path(\"include\"))')"
    image.run("sh", "-c", f"echo '#include <Python.h>' | gcc -fsyntax-only -I{headers} -x c -")
