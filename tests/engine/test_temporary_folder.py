"""Without a folder for temporary files, a command ends in one line and not in a traceback of torch."""

import tempfile

import pytest

from engine.temporary_folder import refuse_no_temporary_folder


def test_a_machine_without_one_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_no_temporary_folder()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/1/none"])
    with pytest.raises(SystemExit) as ended:
        refuse_no_temporary_folder()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: no folder for temporary files can be written: set TMPDIR to one that can\n"
    )
