"""A crash inside a library, which no Python code can catch."""

import re
import signal
import subprocess
import time

from tests.runs import SMALL, command, environment, metrics


def test_a_crash_in_a_library_shows_where_it_was(here):
    # With images in memory. Python prints the threads while they run: one that is decoding can break the printing.
    in_memory = [option for option in SMALL if not option.startswith("data")]
    common = (*in_memory, "data=synthetic", "data.crop=28", "data.synthetic_images=320", "name=a", "epochs=9000")
    run = subprocess.Popen(command("train.py", *common), env=environment(), stderr=subprocess.PIPE, text=True)
    log = here / "outputs/a/metrics.jsonl"
    while not (log.is_file() and metrics(here / "outputs/a")):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGSEGV)
    _, said = run.communicate(timeout=250)
    assert run.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in said
    assert re.search(r'File ".*engine/training_run.py", line \d+ in train', said), said
