"""What is missing on a machine ends a command in one line, and not in a traceback of torch."""

import tempfile

import pytest

from engine.prerequisites import refuse_unfit_machine


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    def run() -> str:
        with pytest.raises(SystemExit) as ended:
            refuse_unfit_machine()
        assert ended.value.code == 2
        return capsys.readouterr().err

    return run


def test_this_machine_is_fit() -> None:
    refuse_unfit_machine()


def test_a_machine_without_a_folder_for_temporary_files_is_refused(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/1/none"])
    assert refused() == "error: no folder for temporary files can be written: set TMPDIR to one that can\n"


def test_too_few_addresses_for_the_libraries_are_refused(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (3 * 2**30, -1))
    assert refused() == (
        "error: this shell allows a process 3.0 GiB of addresses (ulimit -v), and torch alone needs 4: set ulimit -v "
        "unlimited\n"
    )
    for enough in (-1, 8 * 2**30):
        monkeypatch.setattr("resource.getrlimit", lambda _, enough=enough: (enough, -1))
        refuse_unfit_machine()


@pytest.mark.parametrize("found", ["2.9.1", "2.9.0+cpu", "1.13.1"])
def test_a_torch_that_cannot_compile_the_models_is_refused(
    found: str, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.setattr("engine.prerequisites.version", lambda name: found)
    assert refused() == (
        f"error: torch {found} is too old, this needs 2.10 or newer: make setup installs the tested version\n"
    )


@pytest.mark.parametrize("found", ["2.10.0", "2.11.0a0+ef12", "2.14.1+cu130", "3.0"])
def test_newer_ones_and_those_of_nvidia_s_containers_are_taken(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.prerequisites.version", lambda name: found)
    refuse_unfit_machine()
