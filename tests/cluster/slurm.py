"""A real SLURM cluster of three nodes on this machine: jobs use two, and the third replaces one that is lost."""

import os
import re
import secrets
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.namespaces import in_namespaces, kill
from tests.cluster.small_run import SMALL, steps, wait_for
from tests.runs import PROJECT, environment

NODES = ("n1", "n2", "n3")
# SLURM's defaults are 300 and the script's 60 seconds: the same ratio here.
NODE_TIMEOUT, STEP_WAIT = 20, 4

# cred_expire: a requeued job may start again only after its credentials have expired, by default minutes later.
# config_overrides: each node has two cores, whatever the machine has.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,bf_interval=1
SlurmdTimeout={timeout}
FirstJobId={first_job}
KillWait=4
Epilog={folder}/epilog
ReturnToService=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:2
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 Gres=gpu:2
"""
# A killed torchrun leaves its workers behind. On most clusters control groups end them; here a job's last script does.
EPILOG = """#!/bin/sh
for process in /proc/[0-9]*; do
    grep -qsz "^TORCHELASTIC_RUN_ID=$SLURM_JOB_ID$" "$process/environ" && kill -KILL "${process#/proc/}"
done
exit 0
"""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses."""
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in opened]


class Slurm:
    """A controller and its nodes.

    Args:
        folder: an empty folder for the files of all daemons.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the configuration, and start all daemons."""
        host = socket.gethostname()
        settings = {"folder": self.folder, "host": host, "ports": free_ports(4), "timeout": NODE_TIMEOUT}
        # Another test process has a cluster of its own, and the script derives a port from the number of its job.
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        settings["first_job"] = 1 + 1000 * worker
        for gpu in ("gpu0", "gpu1"):
            (self.folder / gpu).touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
        (self.folder / "epilog").write_text(EPILOG)
        (self.folder / "epilog").chmod(0o700)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge.key").chmod(0o400)
        files = (f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed", "log"))
        self._start("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        wait_for((self.folder / "munge.socket").exists, "munged has not started")
        self._start("slurmctld", "slurmctld", "-D", "-c")
        self.repair()

    def repair(self) -> None:
        """Cancel all jobs, and switch on all nodes that are off."""
        self.ask("scancel", "--user=root")
        for name in NODES:
            if name not in self.daemons:
                self.switch_on(name)
        states = ("sinfo", "--noheader", "--partition=all", "--Node", "--format=%t")
        wait_for(lambda: self.ask(*states).split() == ["idle"] * len(NODES), "the nodes are not idle")

    def switch_on(self, name: str) -> None:
        """Start a node that is off."""
        self._start(name, "slurmd", "-D", "-N", name)

    def set_state(self, node: str, state: str) -> None:
        """Let a node take no more jobs (``DRAIN``), or take them again (``RESUME``)."""
        self.ask("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test")

    def cut_power(self, name: str) -> None:
        """End a node (or another daemon) and all its processes at once. Nobody is told."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        """End all daemons."""
        for name in list(self.daemons):
            self.cut_power(name)

    def ask(self, *command: str, **variables: str) -> str:
        """Run one of SLURM's commands, and return its output."""
        done = subprocess.run(
            command, cwd=PROJECT, env=self._environment(**variables), capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def submit(
        self, folder: Path, *arguments: str, nodes: int = 2, flags: tuple[str, ...] = (), **variables: str
    ) -> "Job":
        """Submit the project's script, with a run directory in ``folder``."""
        out = folder / "job.out"
        script = ("scripts/slurm/train.sbatch", *arguments, f"output_dir={folder}/run")
        number = self._sbatch(f"--nodes={nodes}", f"--output={out}", *flags, *script, **variables)
        return Job(self, number, folder / "run", out)

    def submit_sweep(self, folder: Path, *lines: str) -> list["Job"]:
        """Submit a sweep of the project's small run, a node for each line of options."""
        (folder / "grid.txt").write_text(
            "".join(f"{line} output_dir={folder}/{n}\n" for n, line in enumerate(lines, 1))
        )
        array = ("--nodes=1", f"--array=1-{len(lines)}", f"--output={folder}/%a.out")
        number = self._sbatch(*array, "scripts/slurm/sweep.sbatch", f"{folder}/grid.txt", *SMALL)
        return [Job(self, f"{number}_{n}", folder / f"{n}", folder / f"{n}.out") for n in range(1, len(lines) + 1)]

    def _sbatch(self, *arguments: str, **variables: str) -> str:
        variables = {"SLURM_WAIT": str(STEP_WAIT)} | variables
        return self.ask("sbatch", "--parsable", *arguments, **variables).strip()

    def kill(self, node: str, program: str) -> None:
        """Send SIGKILL to the only process of a job on a node whose command line contains some words."""
        wanted = {f"SLURM_CONF={self.folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()}
        kill(program, lambda process: wanted <= set((process / "environ").read_bytes().split(b"\0")))

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            started = in_namespaces(self.folder / "hosts", *command)
            self.daemons[name] = subprocess.Popen(started, env=self._environment(), stdout=out, stderr=out)

    def _environment(self, **extra: str) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return environment(SLURM_CONF=f"{self.folder}/slurm.conf", PATH=path, **extra)


@dataclass(frozen=True)
class Job:
    """A submitted job, its run directory, and the file with its output."""

    slurm: Slurm
    number: str
    run_dir: Path
    out: Path

    def field(self, name: str) -> str:
        """What ``scontrol show job`` says."""
        shown = self.slurm.ask("scontrol", "--oneliner", "show", "job", self.number)
        found = re.search(rf"\b{name}=(\S+)", shown)
        assert found, f"job {self.number} has no {name}: {shown}"
        return found[1]

    @property
    def has_ended(self) -> bool:
        return self.field("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def wait_for_step(self, step: int) -> None:
        """Wait until the run has taken some steps, and is still running."""
        wait_for(lambda: self.has_ended or (steps(self.run_dir) or [0])[-1] >= step, f"no step {step}: {self.said()}")
        assert not self.has_ended, self.said()

    def wait_for_restart(self, count: int) -> None:
        """Wait until the job was queued again for the ``count``-th time, and has taken another step since."""
        restarted = f"not queued again {count} times: {self.said()}"
        wait_for(lambda: self.has_ended or self.field("Restarts") == str(count), restarted)
        self.wait_for_step((steps(self.run_dir) or [0])[-1] + 1)

    def wait(self, seconds: float = 240) -> tuple[str, int]:
        """Wait for the end, and return the job's state and how often it was queued again."""
        wait_for(lambda: self.has_ended, f"job {self.number} has not ended", seconds)
        return self.field("JobState"), int(self.field("Restarts"))

    def said(self) -> str:
        """The output so far."""
        return self.out.read_text() if self.out.is_file() else ""
