"""The messages of a run reach the console and the log file in every locale."""

import logging
import subprocess
import sys

from engine.log import log_to
from tests.runs import PROJECT, environment

SAY = r"""
import logging, sys
from pathlib import Path
from engine.log import log_to
log_to(Path(sys.argv[1]), speaks=True)
logging.getLogger("engine.x").info("1 \xd7 CPU, class \u72ac, folder \udce9")
"""


def test_no_message_is_lost_to_an_encoding(tmp_path):
    for locale in ({"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C.UTF-8"}):
        file = tmp_path / "train.log"
        command = [sys.executable, "-c", SAY, str(file)]
        out = subprocess.run(command, cwd=PROJECT, env=environment(**locale), capture_output=True, timeout=60)
        assert out.returncode == 0 and out.stderr == b"", out.stderr.decode()
        shown = "1 × CPU, class 犬, folder \\udce9" if "UTF-8" in str(locale) else r"1 \xd7 CPU, class \u72ac"
        assert shown in out.stdout.decode()
        assert file.read_text(encoding="utf-8").splitlines()[-1].endswith("1 × CPU, class 犬, folder \\udce9")


def test_a_file_name_cannot_command_the_terminal(tmp_path, capsys):
    log_to(tmp_path / "train.log", speaks=True)
    logging.getLogger("engine.x").info("the class %s\nis empty", "a\x1b[2J\x9b31m\rb")
    log_to(None, speaks=True)
    said = "the class a\\x1b[2J\\x9b31m\\x0db\nis empty\n"
    assert capsys.readouterr().out == said
    assert (tmp_path / "train.log").read_text().endswith(said)
