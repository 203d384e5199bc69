"""What happened in the tests of whole systems: each says so in words, for a table at the end of the run."""

import pytest


def table(stats: dict[str, list[pytest.TestReport]]) -> list[str]:
    """The lines of a table with the seconds of each test, its set-up included, and what happened in it."""
    seconds: dict[str, float] = {}
    happened: dict[str, str] = {}
    for report in (each for kind in stats.values() for each in kind if isinstance(each, pytest.TestReport)):
        name = report.nodeid.rpartition("::test_")[2].replace("_", " ")
        seconds[name] = seconds.get(name, 0) + report.duration
        if report.when == "call" or not report.passed:
            happened[name] = str(dict(report.user_properties).get("happened", "")) if report.passed else report.outcome
    lines = [f"{seconds[name]:7.1f}  {name}: {what}" for name, what in happened.items()]
    return [f"{'seconds':>7}  test: what happened", *lines]
