"""The flight recorder: what a spike is, what is recorded, and the replay that reaches it again."""

import json
import math
import re
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.callbacks.flight_recorder import LEAST_HISTORY, MOST_SPIKES, FlightRecorder, is_spike
from engine.checkpoints.checkpoint import Checkpoints
from engine.errors import UserError
from engine.measuring.meter import Meter, Reading
from engine.options.config import MonitorConfig, TrainConfig
from engine.options.plain import as_container
from engine.processes.distributed import World
from engine.run_dir import RunDirectory
from engine.step import StepOutcome
from models.config import LipsFormerSwinConfig
from scripts.replay_crash import compare, find_record, read_record, replay_settings
from tests.runs import SMALL, cached_settings, checkpoint, command, environment, metrics, run, run_here, train_here

# The learning rate rises until the run diverges, after enough steps to know the usual loss.
BREAKS = (*SMALL, "epochs=8", "schedule.warmup_epochs=7", "optim.lr=1.5", "optim.clip=null", "log_every=4")
ALONE = World(0, 1, 0, 1)


@given(st.lists(st.floats(1.9, 2.1), min_size=LEAST_HISTORY, max_size=64), st.floats(0, 2.3))
def test_noise_is_no_spike(history, loss):
    assert not is_spike(history, loss)


def test_what_a_spike_is():
    noisy = [2.0, 2.2, 1.8, 2.1, 1.9] * 4
    assert not is_spike(noisy, 2.9) and is_spike(noisy, 3.3)
    falling = [7 - 0.1 * i for i in range(40)]
    assert not is_spike(falling, 6.9) and is_spike(falling, 20.0)
    assert not is_spike([2.0] * (LEAST_HISTORY - 1), 100.0)


def test_the_checkpoint_before_a_step_is_set_aside(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    place = tmp_path / "aside.pt"
    assert checkpoints.set_aside(5, place) is None and not place.exists()
    for step in (2, 4, 6):
        checkpoints.save({"step": step}, is_best=False)
    assert checkpoints.set_aside(7, place) == 6
    assert checkpoints.set_aside(6, place) == 4
    assert checkpoints.set_aside(3, tmp_path / "none.pt") is None  # the checkpoint of step 2 is no longer kept
    checkpoints.save({"step": 8}, is_best=False)
    checkpoints.save({"step": 10}, is_best=False)
    assert place.exists()


def test_copies_of_checkpoints_are_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=0)
    (tmp_path / "step_00000002.copy.pt").touch()
    for step in (2, 4):
        checkpoints.save({"step": step}, is_best=False)
    assert checkpoints.set_aside(5, tmp_path / "aside.pt") == 4
    assert (tmp_path / "step_00000002.copy.pt").exists()


def test_copies_of_records_are_left_alone(tmp_path):
    for name in ("step_00000002", "step_00000002.bak", "step_x"):
        (tmp_path / "crashes" / name).mkdir(parents=True)
        (tmp_path / "crashes" / name / "record.json").touch()
    for step in (None, 2):
        assert find_record(tmp_path, step).name == "step_00000002"
    with pytest.raises(UserError, match=r"no record of step 3: choose --step 2$"):
        find_record(tmp_path, 3)


def test_without_a_step_the_newest_record_is_replayed(tmp_path):
    for step in (2, 10, 3):
        (tmp_path / f"crashes/step_{step:08d}").mkdir(parents=True)
        (tmp_path / f"crashes/step_{step:08d}/record.json").touch()
    assert find_record(tmp_path, None).name == "step_00000010"


@pytest.mark.parametrize("content", ["", '{"step": 2, "ste', "[]", '{"step": 2}', "\0", "[" * 100_000])
def test_a_damaged_record_is_called_that(content, tmp_path):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UserError, match=r"record.json is damaged: choose another record"):
        read_record(tmp_path)


def replay(*arguments: str, cwd, processes: int = 1):
    """Run the script as a user does."""
    return subprocess.run(
        command("scripts/replay_crash.py", *arguments, processes=processes),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_a_crash_is_recorded_and_replayed(small_images, here):
    out = run("train.py", *BREAKS, f"data.root={small_images}", "name=a", "checkpoint.every_steps=4", cwd=here)
    assert "the loss is" in out.stdout + out.stderr
    records = sorted((here / "outputs/a/crashes").glob("step_*"))
    record = json.loads((records[0] / "record.json").read_text())
    step, start = record["step"], record["checkpoint_step"]
    assert LEAST_HISTORY < step and step - 5 < start < step
    assert record["steps"][-1]["step"] == step
    assert torch.load(records[0] / "checkpoint.pt", weights_only=True)["step"] == start
    # The record names all images of the step.
    assert len(record["images"]) == 32 and len({image["path"] for image in record["images"]}) == 32

    again = replay("outputs/a", "--step", str(step), cwd=here)
    assert again.returncode == 0, again.stderr
    assert re.search(r"\d recorded steps replayed: equal bit for bit", again.stdout)
    folder = records[0] / "replay"
    readings = [json.loads(line)["step"] for line in (folder / "stability.jsonl").read_text().splitlines()]
    assert readings[0] == start + 1 and readings[-1] in (step - 1, step)
    # If rounding makes it crash in the step after a checkpoint, there is only one reading and no curve is drawn.
    assert (folder / "plots/stability.png").is_file() == (len(readings) > 1)
    assert not (folder / "crashes").exists()

    twice = replay("outputs/a", "--step", str(step), cwd=here)
    assert twice.returncode == 2 and re.fullmatch(r"error: .* holds a replay: .*\n", twice.stderr)
    other = replay("outputs/a", "--step", "3", cwd=here)
    assert other.returncode == 2 and re.fullmatch(
        r"error: .* has no record of step 3: choose --step .*\n", other.stderr
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_replay_what_as_many_processes_did(small_images, here):
    common = (*BREAKS, f"data.root={small_images}", "name=a", "checkpoint.every_steps=4")
    run("train.py", *common, cwd=here, processes=2)
    alone = replay("outputs/a", cwd=here)
    assert alone.returncode == 2 and "the run had 2 processes, but this replay has 1: use torchrun" in alone.stderr
    together = replay("outputs/a", cwd=here, processes=2)
    assert together.returncode == 0, together.stderr
    assert re.search(r"\d recorded steps replayed: equal bit for bit", together.stdout)


def test_a_run_without_a_crash_has_no_record(small_images, here):
    train_here(*SMALL, f"data.root={small_images}", "name=calm")
    assert not (here / "outputs/calm/crashes").exists()
    out = run_here("scripts/replay_crash.py", "outputs/calm", cwd=here)
    assert out.returncode == 2 and "has no record of a crash" in out.stderr and out.stderr.count("\n") == 1
    assert checkpoint(here / "outputs/calm")["step"] == 20 and metrics(here / "outputs/calm", "val")


def recorder_of(folder, keep: int = 64) -> FlightRecorder:
    """A recorder of a single process. Each step has one image, the number of the step counted from 0."""
    plan = SimpleNamespace(images_of=lambda step: [step])
    data = SimpleNamespace(plan=plan, train_set=SimpleNamespace(source=SimpleNamespace(name="{}.png".format)))
    cfg = TrainConfig(model=LipsFormerSwinConfig(), monitor=MonitorConfig(history=keep))
    parts = {"data": data, "checkpoints": Checkpoints(folder, keep=1)}
    runtime = SimpleNamespace(world=ALONE)
    run = SimpleNamespace(cfg=cfg, runtime=runtime, directory=RunDirectory(folder), **parts)
    return FlightRecorder(run)  # type: ignore[arg-type]


def reading_of(losses: list[float]) -> Reading:
    """A meter's reading of these losses, each with a gradient norm of 1."""
    meter = Meter(SimpleNamespace(world=ALONE, device=torch.device("cpu"), amp="off"), batch_size=1)  # type: ignore[arg-type]
    for step, loss in enumerate(losses, start=1):
        meter.add(StepOutcome(step, torch.tensor(loss), torch.tensor(1.0), 0.1, None), waited=0.0)  # type: ignore[arg-type]
    return meter.read(votes=[])


def recorded(recorder: FlightRecorder, losses: list[float]) -> list[tuple[int, str]]:
    """Run through these losses, and return the step and the kind of each record."""
    recorder.on_reading(reading_of(losses))
    records = [json.loads(path.read_text()) for path in sorted(recorder.crashes.glob("*/record.json"))]
    return [(record["step"], record["kind"]) for record in records]


def test_a_spike_is_recorded_also_where_the_loss_breaks_soon_after(tmp_path):
    losses = [2.0] * 20 + [9.0, 5.0, math.nan, math.nan]
    assert recorded(recorder_of(tmp_path), losses) == [(21, "spike"), (23, "not finite")]


def test_a_record_names_the_images_of_its_step(tmp_path):
    assert recorded(recorder_of(tmp_path), [2.0] * 20 + [8.5]) == [(21, "spike")]
    record = json.loads((tmp_path / "crashes/step_00000021/record.json").read_text())
    assert record["images"] == [{"index": 20, "path": "20.png"}]
    assert [line["loss"] for line in record["steps"]] == [2.0] * 20 + [8.5]
    assert record["steps"][0] == {"step": 1, "loss": 2.0, "grad_norm": 1.0, "lr": 0.1}


def test_a_record_has_the_readings_since_its_first_step(tmp_path):
    recorder = recorder_of(tmp_path, keep=16)
    recorder.run.directory.stability.write_text("".join(f'{{"step": {step}, "layers": {{}}}}\n' for step in (5, 6, 20)))
    recorded(recorder, [2.0] * 20 + [8.5])
    record = json.loads((tmp_path / "crashes/step_00000021/record.json").read_text())
    assert record["steps"][0]["step"] == 6 and record["readings"] == [
        {"step": 6, "layers": {}},
        {"step": 20, "layers": {}},
    ]


def test_the_end_of_a_run_is_recorded_whatever_came_before(tmp_path):
    losses = ([2.0] * 20 + [9.0]) * (MOST_SPIKES + 1) + [math.nan]
    found = recorded(recorder_of(tmp_path, keep=16), losses)
    assert found == [*((21 * i, "spike") for i in range(1, MOST_SPIKES + 1)), (len(losses), "not finite")]


def record_of(*options: str) -> dict[str, Any]:
    """The record of a crash in step 5, in a run that had no checkpoint before."""
    config = as_container(cached_settings(*SMALL, *options))
    whole = {"family": "lipsformer_swin", "processes": 1, "config": config, "step": 5, "checkpoint_step": None}
    return whole | {"steps": []}


def test_a_replay_starts_where_the_run_did(tmp_path, here):
    """It uses the settings in the record, also if another command has followed."""
    record = record_of(f"resume={here}/other.pt", "epochs=3")
    found = replay_settings(tmp_path, record)
    assert (found.resume, found.epochs, found.max_steps, found.output_dir) == (
        str(here / "other.pt"),
        3,
        5,
        f"{tmp_path}/replay",
    )
    assert replay_settings(tmp_path, record | {"checkpoint_step": 4}).resume == str(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"compile_options": {"cpp": {"cxx": ["./evil"]}}},
            r"sets compile_options.cpp.cxx=\['./evil'\], which may",
        ),
        (
            {"compile_options": {"cuda.cuda_cxx": "./evil"}},
            "sets compile_options.cuda.cuda_cxx=./evil, which may",
        ),
        ({"name": "${oc.env:SOME_TOKEN}"}, "name holds the secret of the environment variable SOME_TOKEN"),
    ],
)
def test_a_record_of_somebody_else_runs_no_program(changed, message, tmp_path, here):
    """torch's compiler starts the program that an option names."""
    config = as_container(cached_settings(*SMALL, "+compile_options.combo_kernels=true"))
    record = {"family": "lipsformer_swin", "processes": 1, "config": config, "step": 5, "checkpoint_step": None}
    assert replay_settings(tmp_path, record).compile_options == {"combo_kernels": True}
    with pytest.raises(UserError, match=message):
        replay_settings(tmp_path, record | {"config": config | changed})


def test_a_run_that_starts_anew_sets_old_records_aside(tmp_path):
    run = RunDirectory(tmp_path)
    for text in ("first", "second"):
        (run.crashes / "step_00000003").mkdir(parents=True)
        (run.crashes / "step_00000003/record.json").write_text(text)
        run.cut_metrics(2, 2)
        assert run.crashes.exists()
        run.cut_metrics(0, 0)
        assert not run.crashes.exists()
        assert (tmp_path / "crashes.before/step_00000003/record.json").read_text() == text


def test_a_replay_reads_every_step_and_leaves_nothing_but_its_readings(tmp_path):
    found = replay_settings(tmp_path, record_of("+callbacks.mine=my.Callback", "monitor.every=7"))
    assert (found.monitor.every, found.monitor.history, found.log_every, found.callbacks) == (1, 0, 1, {})
    saves = found.checkpoint
    assert (saves.every_steps, saves.every_epochs, saves.every_minutes) == (None, None, None)


@pytest.mark.parametrize(("had", "has"), [(2, 1), (1, 4)])
def test_a_replay_needs_as_many_processes_as_the_run_had(had, has, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(has))
    with pytest.raises(UserError, match=f"the run had {had} processes, but this replay has {has}: use torchrun"):
        replay_settings(tmp_path, record_of() | {"processes": had})


def test_a_replay_that_ended_without_a_checkpoint_is_not_written_over(tmp_path, here):
    place = tmp_path / "crashes/step_00000005"
    (place / "replay").mkdir(parents=True)
    (place / "record.json").write_text(json.dumps(record_of()))
    (place / "replay/metrics.jsonl").write_text('{"split": "train", "step": 1}\n')
    done = run_here("scripts/replay_crash.py", str(tmp_path), cwd=here)
    assert done.returncode == 2 and re.fullmatch(r"error: .*/replay holds a replay: look at it, .*\n", done.stderr)


def test_recorded_losses_that_were_not_finite_are_not_compared():
    def losses(*values: float | None) -> list[dict[str, Any]]:
        return [{"split": "train", "step": step, "loss": loss} for step, loss in enumerate(values)]

    assert compare({"steps": losses(2.0, None)}, losses(2.0, 3.0)) == "1 recorded steps replayed: equal bit for bit"
    assert compare({"steps": losses(2.0, 2.5)}, losses(2.0, 2.75)) == (
        "2 recorded steps replayed: the largest difference of a loss is 0.25"
    )
    assert compare({"steps": losses(None)}, losses(2.0)).startswith("no recorded step was replayed")
