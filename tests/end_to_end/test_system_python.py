"""The project runs on the distribution's own Python, which may be an early patch release."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import PROJECT, environment, metrics

SYSTEM = Path("/usr/bin/python3.11")
PACKAGES = next((path for path in sys.path if path.endswith("site-packages")), "")


def version(python: Path) -> str:
    return subprocess.run([python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not SYSTEM.exists(), reason=f"there is no {SYSTEM} (Debian, Ubuntu: apt-get install python3.11)")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the packages here are of another version")
def test_it_trains_in_an_empty_home(tmp_path: Path) -> None:
    if version(SYSTEM) == sys.version:
        pytest.skip(f"{SYSTEM} is the Python of all these tests, so the others have shown it already")
    options = ("experiment=quickstart", "max_steps=3", "log_every=1", "logger=none", f"output_dir={tmp_path / 'run'}")
    home = {"HOME": str(tmp_path), "PYTHONPATH": PACKAGES}
    inherited = {name: value for name, value in environment(**home).items() if name != "XDG_CACHE_HOME"}
    done = subprocess.run(
        [SYSTEM, PROJECT / "train.py", *options], cwd=tmp_path, env=inherited, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), os.linesep.join([done.stdout, done.stderr])
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [1, 2, 3]
    assert (tmp_path / ".cache" / "coldstart").is_dir()
