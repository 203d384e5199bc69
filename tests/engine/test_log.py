"""The messages of a run reach the console and the log file, whatever the terminal can show."""

import io
import logging
import sys

import pytest

from engine.log import log_from, log_to, print_error


# What Python opens in the locale POSIX, with PYTHONIOENCODING=ascii, and in a locale of UTF-8.
@pytest.mark.parametrize("terminal", [("ascii", "surrogateescape"), ("ascii", "strict"), ("utf-8", "strict")])
def test_no_message_is_lost_to_an_encoding(terminal, tmp_path, monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, *terminal))
    log_to(tmp_path / "train.log", speaks=True)
    logging.getLogger("engine.x").info("1 × CPU, class 犬, folder \udce9")
    log_to(None, speaks=True)
    shown = "1 × CPU, class 犬, folder \\udce9" if "utf-8" in terminal else r"1 \xd7 CPU, class \u72ac, folder \udce9"
    assert screen.getvalue().decode().splitlines() == [shown]
    written = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert written.splitlines()[-1].endswith("1 × CPU, class 犬, folder \\udce9")


def test_a_file_name_cannot_command_the_terminal(tmp_path, capsys):
    log_to(tmp_path / "train.log", speaks=True)
    logging.getLogger("engine.x").info("the class %s\nis empty", "a\x1b[2J\x9b31m\rb")
    log_to(None, speaks=True)
    said = "the class a\\x1b[2J\\x9b31m\\x0db\nis empty\n"
    assert capsys.readouterr().out == said
    assert (tmp_path / "train.log").read_text().endswith(said)


def test_an_error_is_one_line_whatever_a_file_is_named(capsys):
    print_error("a\nerror: b\x1b[2J is empty: delete it")
    assert capsys.readouterr().err == "error: a\\x0aerror: b\\x1b[2J is empty: delete it\n"


def test_the_callback_of_another_package_is_heard_too(tmp_path, capsys):
    log_to(tmp_path / "train.log", speaks=True)
    log_from("somebody")
    logging.getLogger("somebody.callbacks").info("lowest loss")
    assert "lowest loss" in capsys.readouterr().out
    assert "lowest loss" in (tmp_path / "train.log").read_text()


def test_a_log_that_cannot_be_opened_is_a_warning(tmp_path, capsys):
    path = tmp_path / "train.log"
    path.symlink_to("train.log")
    log_to(path, speaks=True)
    logging.getLogger("data").info("on")
    log_to(None, speaks=True)
    reason = "Too many levels of symbolic links"
    assert capsys.readouterr().out == f"{path} cannot be written ({reason}): the run continues without it\non\n"
