"""Secrets of the environment: no option may hold one, and messages do not show them."""

import pytest

from engine.credentials import masked, refuse_secrets
from engine.errors import UserError
from tests.runs import run_here, settings

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("LONGER_TOKEN", f"{KEY}-more")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("KEYBOARD", "deutsch-nodeadkeys")
    monkeypatch.setenv("TRAIN_KEY", "imagenet")
    monkeypatch.setenv("SSH_KEY", "/home/me/key")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (f"run-{KEY}", "the secret of the environment variable WANDB_API_KEY"),
        ("${oc.env:NOT_SET_SECRET,null}", "the secret of the environment variable NOT_SET_SECRET"),
        (["a", f"b{KEY}"], "the secret of the environment variable WANDB_API_KEY"),
        ("s3://name:pass@bucket/x", "a web address with a user or password"),
    ],
)
def test_an_option_that_holds_a_secret_is_refused_by_name_only(value, said):
    with pytest.raises(UserError) as caught:
        refuse_secrets([("epochs", 3), ("logger.group", value)])
    assert str(caught.value).startswith(f"logger.group holds {said}: ")
    assert KEY not in str(caught.value) and "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["true", "deutsch-nodeadkeys", "imagenet", "/home/me/key", "${oc.env:HOME}/x", "https://host/a@b", "a@b", None],
)
def test_other_values_are_no_secrets(value):
    refuse_secrets([("logger.group", value)])


@pytest.mark.parametrize(
    "typed", ["logger.group=${oc.env:WANDB_API_KEY}", f"epochs={KEY}", "+x=${oc.env:WANDB_API_KEY}"]
)
def test_a_command_with_a_secret_ends_in_one_line_without_it(typed, tmp_path):
    said = run_here("train.py", "model=deit_tiny", "recipe=deit", typed, cwd=tmp_path)
    assert said.returncode == 2 and KEY not in said.stdout + said.stderr
    assert "holds the secret of the environment variable WANDB_API_KEY: a run keeps" in said.stderr
    assert said.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["PGPASSWORD", "MYSQL_PWD", "GITHUB_PAT", "DB_PASS", "OPENAI_APIKEY", "AZURE_CREDENTIALS", "aws_secret"]
)
def test_names_that_programs_give_to_secrets_are_known(name, monkeypatch):
    monkeypatch.setenv(name, "S0me-secret")
    with pytest.raises(UserError, match=f"the secret of the environment variable {name}"):
        refuse_secrets([("logger.group", "a-S0me-secret")])


def test_the_current_folder_is_no_secret(monkeypatch):
    monkeypatch.setenv("PWD", "/home/me/Train")
    monkeypatch.setenv("OLDPWD", "/home/me/Train")
    refuse_secrets([("data.root", "/home/me/Train"), ("output_dir", "${oc.env:PWD}/outputs")])


def test_a_secret_that_comes_from_a_file_of_options_is_refused_too():
    with pytest.raises(UserError, match=r"^logger\.group holds the secret of the environment variable WANDB_API_KEY"):
        settings("data=synthetic", "logger.group=${oc.env:WANDB_API_KEY}")


def test_messages_show_no_secret_and_no_password():
    text = f"{KEY}-more, {KEY}, https://me:w@rd@host/x and ssh://git@host, a true a@b"
    assert masked(text) == "***, ***, https://***@host/x and ssh://***@host, a true a@b"
