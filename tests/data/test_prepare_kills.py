"""prepare_imagenet.py is killed, and the same command goes on where it was."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.official import files_in, run, write_official
from tests.runs import PROJECT, environment

# The command, which waits before each image once a folder holds two finished parts: it can be killed there.
HALTING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "{project}")
from data.prepare import writing
from scripts import prepare_imagenet

def halting(*given, shrunk=writing.shrunk):
    while len(list(Path("{folder}").glob("{pattern}"))) >= 2:
        time.sleep(1)
    return shrunk(*given)

writing.shrunk = halting
if __name__ == "__main__":
    prepare_imagenet.main()
"""


def children(process: int) -> list[int]:
    """All child processes of a process, and their children."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, parent = (place.parent.name, place.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if int(parent) == process:
            found += [int(number), *children(int(number))]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("layout", "pattern"), [("shards", "shard-*.tar"), ("folder", "n*")])
def test_a_killed_command_goes_on_to_the_same_result(tmp_path: Path, layout: str, pattern: str) -> None:
    write_official(tmp_path / "tars", images=40)
    options = ("--layout", layout, "--shard-size", "20K", "--workers", 2, "--splits", "train")

    def arguments(to: str) -> tuple[object, ...]:
        return ("--tars", tmp_path / "tars", "--to", tmp_path / to, *options)

    whole = run(*arguments("whole")).stdout.splitlines()
    train = tmp_path / "set" / "train"
    program = tmp_path / "halting.py"
    program.write_text(HALTING.format(project=PROJECT, folder=train, pattern=pattern))
    process = subprocess.Popen([sys.executable, str(program), *map(str, arguments("set"))], env=environment())
    while process.poll() is None and len(list(train.glob(pattern))) < 2:
        time.sleep(0.01)
    below = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 100
    while any(Path(f"/proc/{number}").exists() for number in below):  # the children end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (train / ".partial-12345678-left").mkdir()
    finished = {path: path.stat().st_mtime_ns for path in train.glob(pattern)}
    everything = len(list((tmp_path / "whole" / "train").glob(pattern)))
    assert 2 <= len(finished) < everything
    done = run(*arguments("set"))
    assert done.returncode == 0, done.stderr
    assert f"{len(finished)} of {everything} shards or class folders had been written before" in done.stdout
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in finished.items())
    assert files_in(tmp_path / "set") == files_in(tmp_path / "whole")
    assert not list(train.glob(".*"))
    assert whole[0].replace("whole", "set") == done.stdout.splitlines()[0]
