"""The entries are thin, and the rooms of the project import one another in one direction."""

import re

from tests.runs import PROJECT


def test_entries_are_thin():
    for entry in ("train.py", "eval.py"):
        assert len((PROJECT / entry).read_text().splitlines()) < 100


def test_arrows_go_one_way():
    """models, data, optim and stability import neither engine nor each other."""
    rooms = ("models", "data", "optim", "stability")
    for room in rooms:
        for path in (PROJECT / room).rglob("*.py"):
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.M))
            assert not imported & ({"engine", *rooms} - {room}), path
