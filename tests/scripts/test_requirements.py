"""The lock files and the workflow: what Docker and continuous integration install and run."""

import re

import pytest
from omegaconf import OmegaConf

from tests.runs import PROJECT

PIN = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_the_lock_file_has_every_pin_with_a_hash(name: str) -> None:
    wanted = {normal(package): version for package, version in PIN.findall((PROJECT / f"{name}.txt").read_text())}
    text = (PROJECT / f"{name}.lock").read_text()
    locked = {normal(package): version for package, version in PIN.findall(text)}
    assert wanted.items() <= locked.items(), "run `make lock`"
    blocks = re.split(r"\n(?=[a-z])", text)
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text, "a lock file names no server"


def test_both_lock_files_agree() -> None:
    users, developers = (
        dict(PIN.findall((PROJECT / f"{n}.lock").read_text())) for n in ("requirements", "requirements-dev")
    )
    assert users.items() <= developers.items()


def test_docker_and_make_install_from_the_lock_files() -> None:
    assert (
        "pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.lock"
        in (PROJECT / "Dockerfile").read_text()
    )
    assert "-r requirements-dev.lock" in (PROJECT / "Makefile").read_text()


def test_the_workflow_runs_what_ci_runs_and_audits_what_users_install() -> None:
    jobs = OmegaConf.load(PROJECT / ".github/workflows/ci.yml").jobs
    assert [step.run for step in jobs.tests.steps if "run" in step] == ["bash .ci/run"]
    (audit,) = [step.run for step in jobs.dependencies.steps if "pip-audit --" in step.get("run", "")]
    assert "--strict" in audit and "requirements.lock" in audit
