"""Debian packages that tests of whole systems need."""

import os
import shutil
import subprocess

import pytest


def install(programs: tuple[str, ...], packages: tuple[str, ...]) -> None:
    """Install Debian packages if a program is missing. Skip the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if all(map(shutil.which, programs)):
        return
    if not shutil.which("apt-get"):
        pytest.skip(f"needs {', '.join(programs)}, and there is no apt-get to install them")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: starts no services
    update = ("apt-get", "update", "-qq")
    command = ("apt-get", "install", "-qq", "--no-install-recommends", *packages)
    for step in (update, command):
        done = subprocess.run(step, env=quiet, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"apt-get cannot install {', '.join(packages)}: {done.stderr.strip()}")
