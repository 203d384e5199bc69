"""The SLURM scripts with small programs in place of SLURM's: what they start, and what they refuse.

``tests/cluster`` runs train.sbatch on a real cluster.
"""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.runs import PROJECT

SCRIPTS = PROJECT / "scripts/slurm"
# Each program writes its name and arguments to the file "called". srun runs what follows its options, here.
CALLED = '#!/bin/bash\necho "${0##*/} $*" >>called\n'
PROGRAMS = {
    "scontrol": '[[ $1 != show ]] || echo "n1"',
    "scancel": "touch stopped",
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "apptainer": 'while [[ $1 != bash ]]; do shift; done; exec "$@"',
    "module": "",
    "torchrun": "for ((i = 0; i < 300; i++)); do [[ ! -f waits || -f stopped ]] || sleep 0.1; done; [[ ! -f waits ]]",
}
# Reads a variable that is not set, as real scripts of conda do.
CONDA = 'conda() { echo "conda $* $NOT_SET" >>called; }\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with both scripts and what they look for."""
    (tmp_path / "train.py").touch()
    (tmp_path / "scripts/slurm").mkdir(parents=True)
    for script in SCRIPTS.iterdir():
        (tmp_path / "scripts/slurm" / script.name).write_text(script.read_text())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, body in PROGRAMS.items():
        program = tmp_path / ".venv/bin" / name
        program.write_text(CALLED + body)
        program.chmod(0o700)
    (tmp_path / "miniconda3/etc/profile.d").mkdir(parents=True)
    (tmp_path / "miniconda3/etc/profile.d/conda.sh").write_text(CONDA)
    (tmp_path / "grid.txt").write_text("optim.lr=1e-3 seed=1\noptim.lr=2e-3  name=b augment.scale=[0.5,1.0]\n\nseed=3")
    return tmp_path


def job(
    repository: Path, script: str, *arguments: str, index: int | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start a script as SLURM does."""
    array = {} if index is None else {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": str(index)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    slurm = {"SLURM_JOB_ID": "70", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    found = {"HOME": str(repository), "PATH": f"{repository}/.venv/bin:{os.environ['PATH']}", "SLURMD_NODENAME": "n1"}
    return subprocess.Popen(
        ["bash", f"scripts/slurm/{script}", *arguments],
        cwd=repository,
        env=inherited | slurm | array | variables | found,
        stderr=subprocess.PIPE,
        text=True,
    )


def called(repository: Path, name: str) -> list[str]:
    """The arguments of each call of a program."""
    file = repository / "called"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@pytest.mark.parametrize(
    ("index", "line"), [(1, "optim.lr=1e-3 seed=1"), (2, "optim.lr=2e-3 name=b augment.scale=[0.5,1.0]"), (4, "seed=3")]
)
def test_a_job_of_a_sweep_trains_with_its_line(repository: Path, index: int, line: str) -> None:
    sweep = job(repository, "sweep.sbatch", "grid.txt", "model=deit_small", "data.root=a b", index=index)
    assert f"Line {index} of grid.txt: {line}\n" in sweep.communicate()[1]
    assert sweep.returncode == 0
    (started,) = called(repository, "torchrun")
    assert started.endswith(f"train.py model=deit_small data.root=a b {line}")


@pytest.mark.parametrize(
    ("index", "arguments", "message"),
    [
        (0, ("grid.txt",), "Line 0 of grid.txt has no options: submit with --array=1-4, and leave no line empty."),
        (3, ("grid.txt",), "Line 3 of grid.txt has no options: submit with --array=1-4, and leave no line empty."),
        (5, ("grid.txt",), "Line 5 of grid.txt has no options: submit with --array=1-4, and leave no line empty."),
        (None, ("grid.txt",), "A sweep is a job array: submit it with --array=1-N for N lines of grid.txt."),
        (1, ("seed=1",), "The first argument must be a file with a line of options for each run, not 'seed=1'."),
        (1, (), "The first argument must be a file with a line of options for each run, not ''."),
        (
            1,
            ("grid.txt", "name=x"),
            "All runs of the sweep would share the directory of name=x: write it into the lines of grid.txt instead.",
        ),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line(
    repository: Path, index: int | None, arguments: tuple[str, ...], message: str
) -> None:
    sweep = job(repository, "sweep.sbatch", *arguments, index=index)
    assert sweep.communicate()[1] == message + "\n"
    assert (sweep.returncode, called(repository, "srun")) == (2, [])


def test_a_preempted_job_of_an_array_stops_and_queues_only_itself(repository: Path) -> None:
    """Its number, 70, is also that of the whole array."""
    (repository / "waits").touch()
    sweep = job(repository, "sweep.sbatch", "grid.txt", index=2)
    while not called(repository, "torchrun"):
        assert sweep.poll() is None
        time.sleep(0.01)
    sweep.send_signal(10)
    assert "Queueing job 70_2 again." in sweep.communicate(timeout=250)[1]
    assert called(repository, "scancel") == ["--signal=TERM 70_2"]
    assert "requeue 70_2" in called(repository, "scontrol")


@pytest.mark.parametrize(
    ("line", "program", "start"),
    [
        ("module load", "module", "load python/3.11"),
        ("source ~", "conda", "activate coldstart"),
        (
            "container=(--container-image",
            "srun",
            "{srun} --container-image=./coldstart.sqsh --container-mounts={mounts}",
        ),
        ("container=(apptainer", "srun", "{srun} apptainer exec --nv --bind {mounts} coldstart.sif bash -c"),
        ("container=(apptainer", "apptainer", "exec --nv --bind {mounts} coldstart.sif bash -c"),
    ],
)
def test_one_line_chooses_the_environment(repository: Path, line: str, program: str, start: str) -> None:
    script = repository / "scripts/slurm/train.sbatch"
    chosen, count = re.subn(rf"^# ({re.escape(line)})", r"\1", script.read_text(), flags=re.M)
    assert count == 1
    script.write_text(chosen)
    train = job(repository, "train.sbatch", "seed=1")
    assert train.wait(250) == 0
    mounts = f"{repository},/path/to/imagenet:/data:ro"
    (arguments,) = called(repository, program)
    assert arguments.startswith(start.format(srun="--cpu-bind=none --kill-on-bad-exit=0", mounts=mounts))
    assert called(repository, "torchrun")[0].endswith("train.py seed=1")


def test_both_scripts_ask_slurm_for_the_same() -> None:
    asked = [re.findall(r"^#SBATCH .*", (SCRIPTS / f"{name}.sbatch").read_text(), re.M) for name in ("train", "sweep")]
    assert asked[0] == asked[1] != []


def replaced(repository: Path, name: str, body: str) -> None:
    """Put a small program in the place of another one."""
    program = repository / ".venv/bin" / name
    program.write_text(CALLED + body)
    program.chmod(0o700)


def test_processes_get_a_port_of_their_job_one_thread_and_the_cores_that_were_asked_for(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SRUN_CPUS_PER_TASK", raising=False)
    replaced(repository, "torchrun", 'echo "$RDZV_ENDPOINT $OMP_NUM_THREADS ${SRUN_CPUS_PER_TASK-}" >got')
    got = []
    for number, cores in (("70", {}), ("71", {"SLURM_CPUS_PER_TASK": "8"}), ("20070", {"OMP_NUM_THREADS": "2"})):
        assert job(repository, "train.sbatch", SLURM_JOB_ID=number, **cores).wait(250) == 0
        got.append((repository / "got").read_text().rstrip("\n"))
    assert got == ["n1:10070 1 ", "n1:10071 1 8", "n1:10070 2 "]


def test_a_run_that_fails_gives_its_status_to_the_job_which_is_not_queued_again(repository: Path) -> None:
    replaced(repository, "torchrun", "exit 3")
    assert job(repository, "train.sbatch").wait(250) == 3
    assert called(repository, "srun")[-1] == "--overlap true"  # all nodes answer
    assert not [line for line in called(repository, "scontrol") if line.startswith("requeue")]


def test_a_run_that_finishes_before_the_time_limit_is_not_queued_again(repository: Path) -> None:
    replaced(repository, "torchrun", "until [[ -f stopped ]]; do sleep 0.05; done")
    train = job(repository, "train.sbatch")
    while not called(repository, "torchrun"):
        assert train.poll() is None
        time.sleep(0.01)
    train.send_signal(10)
    assert train.wait(250) == 0
    assert called(repository, "scancel") == ["--signal=TERM 70"]
    assert not [line for line in called(repository, "scontrol") if line.startswith("requeue")]


def test_a_job_waits_until_slurm_has_noticed_that_a_node_is_lost(repository: Path) -> None:
    replaced(repository, "torchrun", "exit 1")
    replaced(repository, "srun", '[[ $1 != --overlap ]] || exit 1; while [[ $1 == --* ]]; do shift; done; exec "$@"')
    config = 'echo "SlurmdTimeout           = 300 sec"'
    replaced(repository, "scontrol", f'case "$2" in hostnames) echo n1;; config) {config};; esac')
    replaced(repository, "sleep", "")  # which would take ten minutes
    train = job(repository, "train.sbatch")
    assert "waiting up to 600 seconds" in train.communicate(timeout=250)[1]
    assert (train.returncode, called(repository, "sleep")) == (1, ["600"])
