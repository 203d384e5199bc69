"""Files of a run that somebody has damaged, also where they are still valid YAML or JSON."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.errors import UserError
from engine.options.plain import as_container
from engine.run_dir import GROUPS, RunDirectory
from scripts import choose_tau, upload_wandb
from tests.runs import cached_settings

OPTIONS = ("experiment=quickstart", "optim=adamw2")
NO_YAML = ["a: *x", "\0", "? [a]\n: b\n", "a: ${b}", "a: [", "\t", "a: " + "[" * 2000]
NO_OPTIONS = ["5", "true", "[1, 2]", "- a\n- b\n"]


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{10 * f'*a{i - 1},'}]\n" for i in range(1, 10))  # 10**9 times x


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run with a checkpoint."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.pt").touch()
    (tmp_path / "metrics.jsonl").write_text('{"split": "train", "step": 1, "epoch": 1.0, "step_ratio_p99": 0.1}\n')
    return RunDirectory(tmp_path)


def written(directory: RunDirectory, **changes: Any) -> None:
    """Write the settings of the run with other values."""
    directory.config.write_text(yaml.safe_dump(as_container(cached_settings(*OPTIONS)) | changes))


def refusal(directory: RunDirectory) -> str:
    with pytest.raises(UserError) as refused:
        directory.settings()
    assert str(directory.config) in str(refused.value) and "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("text", [*NO_YAML, *NO_OPTIONS, LAUGHS])
def test_a_file_without_options_is_one_line_and_the_checkpoint_is_what_counts(
    directory: RunDirectory, text: str
) -> None:
    directory.config.write_text(text)
    assert "config.yaml is damaged (" in refusal(directory)
    directory.refuse_conflict(cached_settings(*OPTIONS))
    assert directory.backend_of(cached_settings(*OPTIONS)) is None


@pytest.mark.parametrize("value", [5, "x", [1], None, True])
@pytest.mark.parametrize("group", sorted(GROUPS))
def test_a_group_of_options_that_is_none_is_named(directory: RunDirectory, group: str, value: Any) -> None:
    written(directory, **{group: value})
    assert f"({group} is {value}, and no group of options): restore it" in refusal(directory)
    directory.refuse_conflict(cached_settings(*OPTIONS))
    assert directory.backend_of(cached_settings(*OPTIONS)) is None


@pytest.mark.parametrize("value", [5, "x", [1], None, {"a": 1}])
def test_a_backend_that_is_none_is_chosen_again(directory: RunDirectory, value: Any) -> None:
    settings = cached_settings(*OPTIONS, "data.backend=auto")
    written(directory, data=as_container(settings)["data"] | {"backend": "torch"})
    assert directory.backend_of(settings) == "torch"
    written(directory, data=as_container(settings)["data"] | {"backend": value})
    assert directory.backend_of(settings) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"name": "adamw2", "tau": "x"}}, "(optim.tau is x, and no number): restore it"),
        ({"optim": {"name": "adamw2", "tau": 1e9}, "schedule": {}}, "(schedule.warmup_epochs is None, and no number)"),
        ({"optim": 5}, "(optim is 5, and no group of options)"),
        ({"optim": {}}, "was not trained with optim=adamw2"),
    ],
)
def test_choosing_tau_names_what_it_cannot_read(directory: RunDirectory, changes: dict[str, Any], message: str) -> None:
    written(directory, **changes)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        choose_tau.readings(directory.path)
    assert message in str(refused.value)


@pytest.mark.parametrize("changes", [{"logger": 5}, {"data": [1]}])
def test_an_upload_names_what_it_cannot_read(
    directory: RunDirectory, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written(directory, **changes)
    monkeypatch.setattr("sys.argv", ["upload_wandb.py", str(directory.path), "--offline"])
    assert upload_wandb.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {directory.config} is damaged (") and said.count("\n") == 1


def test_an_upload_sends_no_secret(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_S0me-secret")
    written(directory, name="${oc.env:HF_TOKEN}")
    monkeypatch.setattr("sys.argv", ["upload_wandb.py", str(directory.path), "--offline"])
    assert upload_wandb.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: name holds the secret of the environment variable HF_TOKEN: ")
    assert said.count("\n") == 1 and "hf_S0me-secret" not in said


ENDLESS = ["[" * 100_000, '{"step": ' + "9" * 5000 + "}"]
NO_LINES = ["{", "5", "[1]", "{}", '{"step": "x"}', '{"step": 3}', '{"step": 3, "split": 4, "layers": []}', *ENDLESS]


@pytest.mark.parametrize("text", NO_LINES)
def test_what_is_no_line_of_metrics_or_readings_is_left_out(directory: RunDirectory, text: str) -> None:
    good = ['{"split": "train", "step": 1}', '{"step": 1, "layers": {}}']
    for file, line in zip((directory.metrics, directory.stability), good, strict=True):
        file.write_text(f"{text}\n{line}\n{text}\n")
    assert (len(directory.read_metrics()), len(directory.read_stability())) == (1, 1)


def test_a_folder_of_checkpoints_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to("/proc/self")  # where nobody can write, not even root
    with pytest.raises(UserError, match=rf"^output_dir={tmp_path} cannot be written \(.*\): set output_dir to another"):
        RunDirectory(tmp_path).refuse_unwritable()


def test_a_lock_that_cannot_be_opened_is_one_line(directory: RunDirectory) -> None:
    directory.lock.symlink_to(".lock")
    message = r"\.lock cannot be written \(Too many levels of symbolic links\): free space or allow writing"
    with pytest.raises(UserError, match=message), directory.locked():
        pass
