"""scripts/slurm/train.sbatch on a real SLURM cluster: what ends a job, what queues it again, and what is lost."""

import time
from pathlib import Path

import pytest

from engine.callbacks import wandb_files
from scripts.studies.results import read_rows
from tests.cluster.slurm import Job
from tests.cluster.small_run import SMALL, STEPS, assert_every_step_once, lost, steps, wait_for
from tests.runs import metrics

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_one_node_runs_a_process_for_each_gpu(slurm, tmp_path, happened):
    job = slurm.submit(tmp_path, *SMALL, nodes=1, flags=("--gpus-per-node=2",))
    assert job.wait() == ("COMPLETED", 0), job.said()
    assert "on 2 × CPU" in job.said()
    assert_every_step_once(job.run_dir)
    happened(f"2 processes on {job.field('NodeList')} took {STEPS} steps")


def test_two_nodes_compute_what_one_process_computes(slurm, tmp_path, alone, happened):
    job = slurm.submit(tmp_path, *SMALL)
    assert job.wait() == ("COMPLETED", 0), job.said()
    assert_every_step_once(job.run_dir)
    far = 0.0
    for line, expected in zip(metrics(job.run_dir), metrics(alone), strict=True):
        assert (line["split"], line["step"]) == (expected["split"], expected["step"])
        for name in {"loss", "grad_norm", "lr", "top1", "top5"} & line.keys():
            assert line[name] == pytest.approx(expected[name], abs=1e-4), f"{name} at step {line['step']}"
        far = max(far, abs(line["loss"] - expected["loss"]))
    happened(f"the losses of {job.field('NodeList')} differ by {far:.0e} at most")


def test_a_job_survives_preemption_a_job_of_higher_priority_and_a_killed_worker(slurm, tmp_path, happened):
    """One after the other, because every start of a job takes longer than its steps."""
    last = 4 * STEPS  # SLURM takes seconds to end a job for another one, and the run must not end before
    wandb = ("logger=wandb", "logger.mode=offline")
    job = slurm.submit(tmp_path, *SMALL, f"max_steps={last}", *wandb, PET_MAX_RESTARTS="1")
    job.wait_for_step(5)
    slurm.ask("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for_restart(1)
    assert "stopped by a signal" in job.said()
    slurm.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    job.wait_for_restart(2)
    assert "A job of higher priority takes the nodes." in job.said()
    slurm.kill("n2", "-u train.py")
    assert job.wait() == ("COMPLETED", 2), job.said()
    assert_every_step_once(job.run_dir, last)
    assert_wandb_has_every_step(job.run_dir)
    happened(f"queued again twice, then started again by torchrun: {lost(job.run_dir)}")


def assert_wandb_has_every_step(run_dir: Path) -> None:
    """W&B's files belong to one run, and hold the steps of the metrics."""
    files = list(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1
    rows = [row for file in files for _, row in wandb_files.read_rows(file) if "train/epoch" in row]
    assert sorted(row["step"] for row in rows) == steps(run_dir)


def test_a_preempted_run_of_a_sweep_goes_on_and_the_others_do_not_notice(slurm, tmp_path, happened):
    first, second = slurm.submit_sweep(tmp_path, "optim.lr=1e-3", "optim.lr=2e-3 seed=1")
    first.wait_for_step(3)
    slurm.ask("scancel", "--batch", "--signal=USR1", first.number)
    assert first.wait() == ("COMPLETED", 1), first.said()
    assert second.wait() == ("COMPLETED", 0), second.said()
    for run, lr in ((first, 1e-3), (second, 2e-3)):
        assert_every_step_once(run.run_dir)
        assert metrics(run.run_dir, "train")[0]["lr"] == lr
    happened(f"the first run was saved and queued again: {lost(first.run_dir)}")


def test_a_mistake_is_not_queued_again(slurm, tmp_path, happened):
    since = time.monotonic()
    job = slurm.submit(tmp_path, *SMALL, "batch_size=1")
    assert job.wait() == ("FAILED", 0), job.said()
    assert "A node does not answer" not in job.said()
    (line, *_) = (line for line in job.said().splitlines() if line.startswith("error: "))
    happened(f"ended after {time.monotonic() - since:.0f} s: {line}")


def test_a_job_array_trains_the_parts_of_a_study(slurm, tmp_path, happened):
    """Two jobs add to one table. The first is ended, and goes on when it is submitted again."""
    lab = "exec python scripts/lab.py postln_preln phase=train part=$SLURM_ARRAY_TASK_ID/16 at_once=1"
    small = "data=fashion_mnist model.patch_size=7 model.depth=1 max_steps=4 log_every=1 device=cpu borrow=false"
    wrap = f"--wrap={lab} {small} to={tmp_path}/to runs={tmp_path}/runs"

    def submitted(array: str) -> list[Job]:
        number = slurm.ask("sbatch", "--parsable", f"--array={array}", f"--output={tmp_path}/%a.out", wrap).strip()
        return [Job(slurm, f"{number}_{n}", tmp_path, tmp_path / f"{n}.out") for n in array.split(",")]

    table = tmp_path / "to/postln_preln/results.csv"
    first, second = submitted("1,2")
    wait_for(lambda: table.is_file() and "pre,none,0.001,0," in table.read_text(), f"no row: {first.said()}")
    slurm.ask("scancel", "--signal=TERM", "--full", first.number)
    assert first.wait() == ("FAILED", 0) and "the same command goes on" in first.said(), first.said()
    (again,) = submitted("1")
    assert again.wait() == second.wait() == ("COMPLETED", 0), again.said() + second.said()
    rows = read_rows(table)
    assert len(rows) == 6 and len({(*row.values(),)[:4] for row in rows}) == 6
    happened(f"{len(rows)} trainings of two parts; a part was ended after its first training and went on")
