"""The processes of the torch backend: that they end, and the shared memory for their batches."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.backends.workers import SharedMemory
from data.errors import DataError
from tests.crop_requests import build, images_of, in_batches, make_crops, options
from tests.runs import PROJECT, run

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

STREAM = """
import os, sys
from pathlib import Path
from tests.crop_requests import build, images_of, in_batches, make_crops, options
source = images_of(Path(sys.argv[1]))
def stream(side, workers=2, times=1):
    cfg = options("bicubic", side)
    requests = times * in_batches(make_crops(source, cfg, "train"), 2)
    return build("torch", source, cfg, workers, max_batch=2).batches(iter(requests))
"""


def processes_of(group: int) -> list[str]:
    """The living processes of a process group, from the files in /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # the process has ended meanwhile
        if int(its_group) == group and state != "Z":
            found.append(str(stat.parent))
    return found


@needs_proc
@pytest.mark.slow
def test_no_process_outlives_a_trainer_that_was_killed(photographs: Path) -> None:
    code = STREAM + 'kept = stream(64)\nnext(kept)\nprint("ready", flush=True)\nsys.stdin.read()'
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, photographs],
        cwd=PROJECT,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == b"ready\n"
    assert len(processes_of(trainer.pid)) == 5  # trainer, two workers, forkserver, resource tracker
    trainer.send_signal(signal.SIGKILL)
    trainer.communicate()
    deadline = time.monotonic() + 100
    while processes_of(trainer.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(trainer.pid) == []


def message_after(event: str, photographs: Path) -> str:
    """The error of a stream of batches when something happens after its first batch."""
    code = f"""{STREAM}
import resource, signal
from multiprocessing import active_children
from data.errors import DataError
kept = stream(64)
next(kept)
{event}
try:
    list(kept)
except DataError as error:
    print(error)
"""
    return subprocess.run(
        [sys.executable, "-c", code, photographs], cwd=PROJECT, check=True, capture_output=True, text=True, timeout=250
    ).stdout


@needs_proc
@pytest.mark.slow
def test_a_worker_that_was_killed_is_an_error(photographs: Path) -> None:
    said = message_after("for process in active_children(): os.kill(process.pid, signal.SIGKILL)", photographs)
    assert said.startswith("a data worker was killed, perhaps because memory ran out: lower max_workers")


@needs_proc
@pytest.mark.slow
def test_it_is_the_same_error_where_the_news_of_its_end_comes_late(photographs: Path) -> None:
    # The forkserver, parent of the workers, reports their ends. Here it stands still for a second when they are killed.
    said = message_after(
        """
from threading import Timer
from time import sleep
killed = [process.pid for process in active_children()]
forkserver = int(Path(f"/proc/{killed[0]}/stat").read_text().rpartition(")")[2].split()[1])
sleep(1)  # so that their next batches are on the way
os.kill(forkserver, signal.SIGSTOP)
for process in killed: os.kill(process, signal.SIGKILL)
Timer(1, os.kill, (forkserver, signal.SIGCONT)).start()
""",
        photographs,
    )
    assert said.startswith("a data worker was killed, perhaps because memory ran out: lower max_workers")


@pytest.mark.slow
def test_a_process_that_may_open_no_more_files_says_so(photographs: Path) -> None:
    said = message_after("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))", photographs)
    assert said.startswith("this process has as many open files as the system allows (`ulimit -Hn`): ask for a higher")


def with_little_shared_memory(megabytes: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    mount = f"mount -t tmpfs -o size={megabytes}m none /dev/shm"
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", f'{mount} && exec "$@"', "bash", *command],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def can_mount() -> bool:
    try:
        return with_little_shared_memory(1, ["true"]).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not can_mount(), reason="only the superuser may mount a small /dev/shm"
)


@pytest.mark.slow
def test_more_workers_than_cores_are_no_warning(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """torch would warn twice at every epoch."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    source, cfg = images_of(photographs), options("bicubic", 32)
    batches = build("torch", source, cfg, 2, max_batch=2).batches(iter(in_batches(make_crops(source, cfg, "train"), 2)))
    assert len(next(batches)) == 2
    batches.close()
    assert not [warning for warning in recwarn if "DataLoader" in str(warning.message)]


def test_a_worker_that_cannot_send_a_batch_ends(tmp_path: Path) -> None:
    """As where no thread can be started (`ulimit -u`). Python would drop the batch, and the run would wait for ever."""
    code = """
import multiprocessing, time
from data.backends import workers
workers.end_with_parent = lambda: None
workers.start_worker(0)
multiprocessing.get_context("spawn").Queue().put(lambda: "cannot be pickled")
time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert re.match(r"a data worker cannot send a batch \(.*\)\n", ended.stderr) and "Traceback" not in ended.stderr


class TestLittleSharedMemory:
    @needs_mount
    @pytest.mark.slow
    def test_it_is_refused_before_the_first_step(self, small_images: Path, tmp_path: Path) -> None:
        options = ("experiment=quickstart", "data=folder", f"data.root={small_images}", "data.backend=torch")
        more = ("max_workers=2", "batch_size=256", "logger=none", f"output_dir={tmp_path / 'run'}", "device=cpu")
        done = with_little_shared_memory(1, [sys.executable, "train.py", *options, *more])
        assert done.returncode == 2
        assert "the data workers need" in done.stderr
        assert "/dev/shm has 1.0 MB free" in done.stderr
        assert "--shm-size" in done.stderr
        assert "max_workers=0" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_machine_without_it_is_told_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("data.backends.workers.SHARED", Path("/proc/none"))
        with pytest.raises(DataError, match=r"need shared memory, but /proc/none cannot be written: .*max_workers=0$"):
            SharedMemory(workers=1, batch=1, processes=1)

    @needs_mount
    @pytest.mark.slow
    def test_where_others_fill_it_later_the_batch_is_an_error(self, photographs: Path) -> None:
        code = (
            STREAM
            + """
from data.errors import DataError
kept = stream(224, times=9)  # more than the workers make in advance
next(kept)
with open("/dev/shm/other", "wb") as file:
    try:
        while file.write(bytes(4096)):
            file.flush()
    except OSError:
        pass
    try:
        list(kept)
    except DataError as error:
        print(error)
"""
        )
        done = with_little_shared_memory(3, [sys.executable, "-c", code, str(photographs)])
        # Batches that are used up free some of it again, before the message is made.
        assert re.match(
            r"a data worker found no shared memory for a batch \(/dev/shm has 0\.\d MB free\)", done.stdout
        ), done


@pytest.mark.slow
def test_a_folder_of_a_package_s_name_where_the_command_is_typed_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    options = ("experiment=quickstart", "data.backend=torch", "max_workers=1", "max_steps=1", "data.subset=0.02")
    done = run("train.py", *options, "logger=none", "device=cpu", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
