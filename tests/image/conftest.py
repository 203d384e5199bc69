"""The image of the Dockerfile, built and run by buildah, which needs no service and no GPU."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.container import USER, Image
from tests.runs import PROJECT
from tests.system_packages import install

ROOM = 30e9  # bytes: buildah's plain storage copies the 6 GB of packages for each stage
# What the packages come through: a machine behind a proxy has its own certificates, and pip's settings.
OF_THIS_MACHINE = ("etc/ssl/certs/ca-certificates.crt", "etc/pip.conf")


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The start of buildah's commands, with a storage of their own, which is removed at the end."""
    install(("buildah", "debootstrap"), ("buildah", "debootstrap"))
    folder = tmp_path_factory.mktemp("storage")
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        pytest.skip(f"needs {ROOM / 1e9:.0f} GB in {folder.parent}, where {free / 1e9:.0f} are free")
    yield ("buildah", "--storage-driver=vfs", f"--root={folder}/root", f"--runroot={folder}/run")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def image(buildah: tuple[str, ...], small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A container of the image, which has Debian bookworm as its base."""
    said = tmp_path_factory.mktemp("logs") / "build.log"

    def call(*command: str | Path) -> str:
        with said.open("a") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
            log.write(done.stdout)
        assert done.returncode == 0, said.read_text()[-5000:]
        return done.stdout.strip()

    base = tmp_path_factory.mktemp("base")
    call("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", base)
    for name in OF_THIS_MACHINE:
        if (Path("/") / name).is_file():
            shutil.copy(Path("/") / name, base / name)
    empty = call(*buildah, "from", "scratch")
    call(*buildah, "copy", empty, base, "/")
    call(*buildah, "commit", "--rm", empty, "localhost/base")
    shutil.rmtree(base)
    build = ("bud", "--isolation=chroot", "--layers=false", "--pull-never", "--tag=coldstart")
    call(*buildah, *build, "--build-arg=BASE_IMAGE=localhost/base", PROJECT)
    folder = tmp_path_factory.mktemp("outputs")
    os.chown(folder, USER, USER)
    small_images.chmod(0o755)
    return Image(buildah, call(*buildah, "from", "--pull-never", "localhost/coldstart"), folder, small_images)
