"""The clusters."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.namespaces import in_namespaces
from tests.cluster.network import Network
from tests.cluster.slurm import Slurm
from tests.cluster.small_run import SMALL
from tests.runs import train_here
from tests.system_packages import install

SLURM_PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
SLURM_PROGRAMS = ("slurmctld", "slurmd", "srun", "munged")


def need_namespaces() -> None:
    """Skip the test where the kernel allows no namespaces."""
    command = in_namespaces(Path("/etc/hosts"), "true", also=("--net", "--uts"))
    probe = subprocess.run(command, capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"this machine allows no namespaces: {probe.stderr.strip()}")


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A SLURM cluster, started once."""
    install(SLURM_PROGRAMS, SLURM_PACKAGES)
    need_namespaces()
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture
def images(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs find the embedded images unpacked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(embedded.parent.parent))


@pytest.fixture
def slurm(started: Slurm, images: None) -> Iterator[Slurm]:
    """A SLURM cluster with idle nodes."""
    yield started
    started.repair()


@pytest.fixture
def network(tmp_path: Path, images: None) -> Iterator[Network]:
    """Two hosts on a switch."""
    install(("ip",), ("iproute2",))
    need_namespaces()
    network = Network(tmp_path)
    try:
        network.start()
        yield network
    finally:
        network.stop()


@pytest.fixture(scope="session")
def alone(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process that nothing disturbs. Its images are indexed for all other runs, too."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(embedded.parent.parent))
        train_here(*SMALL, f"output_dir={run_dir}")
    return run_dir
