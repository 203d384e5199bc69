"""A container of the image, in which commands run."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

USER = 4242  # whom the image does not know
PROBES = Path(__file__).resolve().parent / "probes"


@dataclass(frozen=True)
class Image:
    """A container of the image.

    Args:
        buildah: the start of buildah's commands.
        container: its name.
        folder: an empty folder for outputs, which the user may write to.
        data: an image folder, which the container may only read.
    """

    buildah: tuple[str, ...]
    container: str
    folder: Path
    data: Path

    def run(self, *arguments: str) -> str:
        """Run a command as ``docker run --user`` does, and return its output and errors."""
        mounts = (f"--volume={self.data}:/data:ro", f"--volume={self.folder}:/outputs", f"--volume={PROBES}:/probes:ro")
        # Docker's containers find their own name in /etc/hosts, buildah's do not, and torchrun looks it up.
        run = ("run", "--isolation=chroot", "--hostname=localhost", f"--user={USER}:{USER}", *mounts)
        command = (*self.buildah, *run, self.container, "--", *arguments)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, *arguments: str) -> str:
        """Run the image's entry point with arguments."""
        inspect = (*self.buildah, "inspect", self.container)
        shown = json.loads(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)
        return self.run(*shown["OCIv1"]["config"]["Entrypoint"], *arguments)
