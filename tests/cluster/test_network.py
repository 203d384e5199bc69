"""torchrun on two hosts, as docs/clusters.md says: what a killed worker, a cut link and a lost host cost."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import pytest
import torch

from tests.cluster.network import Network
from tests.cluster.small_run import SMALL, STEPS, assert_every_step_once, lost, steps, wait_for
from tests.runs import checkpoint, metrics

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TIMEOUT = 8  # seconds; less might end a healthy run on a busy machine
# While the first process works alone, as after each reading, a lost process is noticed late. These runs read only after
# their first and last step. They take one image at a time, so the steps between are long enough to lose a host there.
SLOW_STEPS = ("micro_batch_size=1", "log_every=100", "checkpoint.every_steps=100", f"ddp_timeout={TIMEOUT}")
# torchrun waits for more hosts after the fewest have come, by default for 30 seconds.
ELASTIC = ("--nnodes=1:2", "--max-restarts=3", "--rdzv-conf=last_call_timeout=4")


@dataclass
class Command:
    """The command of docs/clusters.md for several machines, and the run directory that it writes."""

    network: Network
    folder: Path
    options: tuple[str, ...]
    arguments: tuple[str, ...]
    agents: dict[str, Popen[bytes]] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self, *hosts: str) -> "Command":
        """Start it on some hosts."""
        torchrun = ("torchrun", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=h1:29400", *self.options)
        train = ("train.py", *self.arguments, f"output_dir={self.run_dir}")
        for host in hosts:
            self.agents[host] = self.network.start_in(
                host, *torchrun, *train, out=self.folder / host, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
            )
        return self

    def wait_for_step(self, step: int) -> None:
        """Wait until the metrics have a step, and the run goes on."""
        wait_for(lambda: self.ended() or step in steps(self.run_dir), f"no step {step}: {self.said()}")
        assert not self.ended(), self.said()

    def wait(self, seconds: float = 300) -> dict[str, int | None]:
        """Wait until all hosts have ended, and return their exit codes."""
        wait_for(lambda: len(self.ended()) == len(self.agents), f"not all have ended: {self.said()}", seconds)
        return self.ended()

    def ended(self) -> dict[str, int | None]:
        """The exit codes of the hosts on which the command has ended."""
        return {host: agent.returncode for host, agent in self.agents.items() if agent.poll() is not None}

    def said(self) -> str:
        """The output of all hosts so far."""
        return "\n".join(f"{host}: {(self.folder / host).read_text()}" for host in self.agents)

    def lines(self, host: str, pattern: str) -> list[str]:
        """The lines of a host's output that match a pattern from their beginning."""
        return [line for line in (self.folder / host).read_text().splitlines() if re.match(pattern, line)]


def assert_nothing_differs(run_dir: Path, alone: Path) -> None:
    """The weights and the validation are those of one process that nothing disturbed, so each step was taken once."""
    assert [file.name for file in run_dir.glob("metrics*")] == ["metrics.jsonl"]
    expected = checkpoint(alone)["model"]
    for name, weights in checkpoint(run_dir)["model"].items():
        torch.testing.assert_close(weights, expected[name], atol=1e-3, rtol=1e-3)
    (scores,), (wanted,) = (metrics(each, "val") for each in (run_dir, alone))
    assert scores["step"] == wanted["step"] == STEPS
    assert scores["loss"] == pytest.approx(wanted["loss"], abs=1e-3)


def test_a_link_cut_for_a_moment_costs_that_moment_and_a_killed_worker_restarts_both_hosts(network, tmp_path, happened):
    options = ("--nnodes=2", "--max-restarts=3")
    command = Command(network, tmp_path, options, (*SMALL, "ddp_timeout=60")).start("h1", "h2")
    command.wait_for_step(12)
    network.unplug("h2")
    time.sleep(5)
    first_afterwards = steps(command.run_dir)[-1] + 1
    network.plug("h2")
    command.wait_for_step(first_afterwards)
    assert not command.lines("h1", "continuing from")
    network.kill("h2", "-u train.py")
    assert command.wait() == {"h1": 0, "h2": 0}, command.said()
    assert len(command.lines("h1", "continuing from")) == 1
    assert_every_step_once(command.run_dir)
    happened(lost(command.run_dir))


def test_a_link_that_stays_cut_ends_both_hosts_and_the_same_command_goes_on(network, tmp_path, alone, happened):
    command = Command(network, tmp_path, ("--nnodes=2",), (*SMALL, *SLOW_STEPS)).start("h1", "h2")
    command.wait_for_step(1)
    time.sleep(1.5)
    network.unplug("h2")
    since = time.monotonic()
    wait_for(lambda: all(command.lines(host, "error: ") for host in ("h1", "h2")), f"no error: {command.said()}")
    seconds = time.monotonic() - since
    assert seconds < TIMEOUT + 20
    (first,) = command.lines("h1", "error: ")
    assert first.startswith("error: no answer from rank 1 on h2:"), first
    (second,) = command.lines("h2", "error: ")
    assert second.startswith("error: no answer from rank 0 on h1 or the store of the processes on h1:"), second
    network.plug("h2")  # until then, torchrun on h2 hangs: it reads from the store on h1 without a time-out
    assert command.wait() == {"h1": 1, "h2": 1}, command.said()
    assert command.start("h1", "h2").wait() == {"h1": 0, "h2": 0}, command.said()
    assert_nothing_differs(command.run_dir, alone)
    happened(f"{first.split(':')[1].strip()}, said {seconds:.0f} s after the cut")


def test_a_lost_host_leaves_the_other_alone_until_it_comes_back(network, tmp_path, alone, happened):
    command = Command(network, tmp_path, ELASTIC, (*SMALL, *SLOW_STEPS)).start("h1", "h2")
    command.wait_for_step(1)
    time.sleep(1.5)
    network.cut_power("h2")
    del command.agents["h2"]
    wait_for(lambda: command.lines("h1", "continuing from"), f"h1 does not go on: {command.said()}")
    network.switch_on("h2")
    assert command.start("h2").wait() == {"h1": 0, "h2": 0}, command.said()
    assert len(command.lines("h1", "continuing from")) == 2, "once alone, once with the host that came back"
    assert_nothing_differs(command.run_dir, alone)
    happened(lost(command.run_dir))
