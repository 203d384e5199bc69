"""A wrong argument of a benchmark ends in a line of argparse, before anything is measured."""

import sys
from importlib import import_module

import pytest

MODEL = "there is no model 'swin_tin': did you mean "
NO_NUMBER = "'0' is not a whole number of 1 or more"
NO_FOLDER = "/nowhere is not a folder"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("bench.trace_step", "swin_tin", MODEL),
        ("bench.trace_step", "lipsformer_swin_tiny --vs swin_tin", MODEL),
        ("bench.step_speed", "timm/resnet50 swin_tin", MODEL),
        ("bench.exchange_speed", "swin_tin", MODEL),
        ("bench.save_speed", "swin_tin", MODEL),
        ("bench.save_speed", "lipsformer_swin_tiny --to /nowhere", NO_FOLDER),
        ("bench.optim_speed", "--models swin_tin", MODEL),
        ("bench.model_speed", "--turns 0", NO_NUMBER),
        ("bench.depthwise_speed", "--batch-size 0", NO_NUMBER),
        ("bench.augment_speed", "--root /nowhere", NO_FOLDER),
        ("bench.loader_speed", "--root /nowhere", NO_FOLDER),
        ("bench.loader_speed", "--root conf", "conf/train is not a folder"),
        ("bench.access_speed", "--parquet /nowhere --root conf", NO_FOLDER),
        ("bench.access_speed", "--parquet conf --root conf", "conf holds no parquet files of train"),
        ("bench.index_speed", "--images 0", NO_NUMBER),
        ("model_table", "--turns 0", NO_NUMBER),
    ],
)
def test_a_wrong_argument_is_named_in_the_last_line(script, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        import_module(f"scripts.{script}").main()
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
