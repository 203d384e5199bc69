"""Debian packages that tests of whole systems need."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

LOCK = Path(tempfile.gettempdir()) / "coldstart-tests-install.lock"


def install(programs: tuple[str, ...], packages: tuple[str, ...]) -> None:
    """Install Debian packages if a program is missing. Skip the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with open(LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt-get fails while another test process runs it
        if not all(map(shutil.which, programs)):
            _install(programs, packages)


def _install(programs: tuple[str, ...], packages: tuple[str, ...]) -> None:
    if not shutil.which("apt-get"):
        pytest.skip(f"needs {', '.join(programs)}, and there is no apt-get to install them")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: starts no services
    update = ("apt-get", "update", "-qq")
    command = ("apt-get", "install", "-qq", "--no-install-recommends", *packages)
    for step in (update, command):
        done = subprocess.run(step, env=quiet, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"apt-get cannot install {', '.join(packages)}: {done.stderr.strip()}")
