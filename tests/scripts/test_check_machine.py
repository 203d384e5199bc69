"""The check of a machine: each verdict in both directions, and the tool as a user runs it."""

import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data.backends.workers import SharedMemory
from engine.device import half_precision
from engine.measuring.gpus import GPUS
from engine.options.config import EvalOptions
from scripts import check_machine
from scripts.machine import exchange, gpu, host, versions
from scripts.machine.row import Row, rows_of, verdict
from tests.runs import PROJECT, environment

SCRIPT = PROJECT / "scripts/check_machine.py"


# --- rows and exit status


def test_a_verdict_falls_with_the_value() -> None:
    assert [verdict(value, 0.6, 0.3) for value in (0.7, 0.6, 0.59, 0.3, 0.29)] == ["ok", "ok", "warn", "warn", "bad"]


def test_advice_is_only_shown_when_there_is_something_to_do() -> None:
    assert str(Row("disk", "5 MB/s", "warn", "use another")).split(None, 2) == ["warn", "disk", "5 MB/s: use another"]
    assert "another" not in str(Row("disk", "5 MB/s", "ok", "use another"))


def test_a_check_that_raises_is_a_bad_row_after_its_good_ones() -> None:
    def check() -> Iterator[Row]:
        yield Row("first", "1")
        raise RuntimeError("no luck\nand a long story")

    first, last = rows_of("second", check)
    assert (first.name, last.name, last.verdict) == ("first", "second", "bad")
    assert "RuntimeError: no luck" in last.value and "\n" not in str(last)


@pytest.mark.parametrize(("worst", "status"), [("ok", 0), ("missing", 0), ("warn", 0), ("bad", 1)])
def test_only_a_bad_row_changes_the_exit_status(
    worst: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("a", "1"), Row("b", "2", worst), Row("c", "3")]  # type: ignore[arg-type]
    monkeypatch.setattr(check_machine, "checks", lambda *places: {"all": lambda: rows})
    monkeypatch.setattr(sys, "argv", ["check_machine.py"])
    assert check_machine.main() == status
    assert capsys.readouterr().out.splitlines()[:3] == [str(row) for row in rows]


def test_without_the_packages_it_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-S", SCRIPT], capture_output=True, text=True, env=environment(PYTHONPATH="")
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "No module named" in done.stderr and "make setup" in done.stderr


# --- versions


def test_other_versions_than_the_pins_are_named() -> None:
    pins = f"torch=={torch.__version__.split('+')[0]}  # a comment\nnumpy==0.1\nno-such-package==1.0\n-r other.txt\n"
    row = versions.packages(pins)
    assert row.value == f"numpy {np.__version__} (pinned 0.1), no-such-package missing (pinned 1.0)"
    assert row.verdict == "warn"
    assert versions.packages(f"numpy=={np.__version__}\n") == Row("packages", "all 1 as pinned in requirements.txt")


@pytest.mark.parametrize(
    ("found", "cuda", "works", "expected"),
    [
        ("580.65.06", "13.0", True, "ok"),
        ("575.57.08", "13.0", False, "bad"),
        ("575.57.08", "13.0", True, "ok"),  # with NVIDIA's compatibility package
        ("575.57.08", "12.8", False, "ok"),
        ("470.82.01", "12.8", False, "bad"),
        (None, "13.0", False, "missing"),
        (None, "13.0", True, "ok"),
    ],
)
def test_the_driver_must_fit_the_cuda_of_torch(found: str | None, cuda: str, works: bool, expected: str) -> None:
    assert versions.driver(found, cuda, works).verdict == expected


def test_dali_must_fit_the_cuda_of_torch() -> None:
    dali = pytest.importorskip("nvidia.dali")
    major = int(dali.__cuda_version__) // 1000
    assert versions.dali(f"{major}.0").verdict == "ok"
    assert versions.dali(f"{major - 1}.9").verdict == "warn"


# --- GPUs


@pytest.mark.parametrize(("share", "expected"), [(0.85, "ok"), (0.45, "warn"), (0.1, "bad")])
def test_a_speed_is_judged_by_the_data_sheet(share: float, expected: str) -> None:
    row = gpu.speed("memory", share * 3350e9, GPUS["H100"].bandwidth, "GB/s")
    assert row.verdict == expected and row.value == f"{share * 3350:.0f} GB/s, {share:.0%} of its peak"


def test_an_unknown_gpu_is_measured_and_not_judged() -> None:
    row = gpu.speed("products", 900e12, None, "TFLOP/s")
    assert row.verdict == "ok" and row.value.startswith("900 TFLOP/s (the peak of this GPU is not known")


def test_a_gpu_that_torch_cannot_use_is_bad_and_none_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for visible, expected in ((True, "bad"), (False, "warn")):
        monkeypatch.setattr("engine.device._gpu_visible", lambda visible=visible: visible)
        (row,) = gpu.usable()
        assert row.verdict == expected
        assert ("580" if visible else "slow") in row.advice


@pytest.mark.slow
def test_processes_sum_and_time_a_tensor() -> None:
    """The same code as on GPUs, with gloo instead of NCCL."""
    assert exchange.bus_bandwidth(2, "cpu", 4000) > 0


def test_an_error_in_a_process_is_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"^\w*Error: .*$"):
        exchange.bus_bandwidth(1, "nonsense", 4000)


def test_processes_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PATIENCE", 0)
    with pytest.raises(RuntimeError, match="have not answered"):
        exchange.bus_bandwidth(2, "cpu", 4000)  # they need more than a second to start
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("rate", "expected"), [(300e9, "ok"), (2e9, "warn"), (1e8, "bad"), (None, "bad")])
def test_slow_links_between_gpus_are_told(rate: float | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(count: int) -> float:
        if rate is None:
            raise RuntimeError("NCCL hangs")
        return rate

    monkeypatch.setattr(gpu, "bus_bandwidth", measured)
    (row,) = gpu.exchange(8)
    assert row.verdict == expected
    assert row.value == ("NCCL hangs" if rate is None else f"{rate / 1e9:.1f} GB/s of bus bandwidth between 8 GPUs")


@pytest.mark.gpu(2)
def test_gpus_sum_and_time_a_tensor() -> None:
    assert exchange.bus_bandwidth(torch.cuda.device_count()) > 0


@pytest.mark.parametrize(("name", "expected"), [("Tesla T4", ["warn", "warn", "ok", "bad", "ok"]), ("X1", ["ok"] * 5)])
def test_each_part_of_a_gpu_has_its_verdict(name: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = name != "X1"
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30 if known else 15 * 2**30, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not known)
    monkeypatch.setattr(gpu, "product_rate", lambda device, dtype: 10e12)
    monkeypatch.setattr(gpu, "copy_rate", lambda device: 250e9)
    rows = list(gpu.one(1))
    assert [row.verdict for row in rows] == expected
    assert rows[0].value == f"{name}, {8 if known else 15}.0 of 16.0 GiB free"
    assert rows[3].name == f"GPU 1 {'fp16' if known else 'bf16'} products"


def test_rates_are_operations_and_bytes_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_a_second(work: Callable[[], object], device: torch.device) -> float:
        work()
        return 0.5

    monkeypatch.setattr(gpu, "seconds_each", half_a_second)
    monkeypatch.setattr(gpu, "SIDE", 10)
    monkeypatch.setattr(gpu, "COPIED", 1000)
    assert gpu.product_rate(torch.device("cpu"), torch.float32) == 2 * 10**3 / 0.5
    assert gpu.copy_rate(torch.device("cpu")) == (1000 + 1000) / 0.5


@pytest.mark.gpu
def test_the_rows_of_a_gpu() -> None:
    rows = {row.name: row for row in gpu.one(0)}
    products = f" {half_precision()} products"
    assert list(rows) == [f"GPU 0{part}" for part in ("", " bf16", " JPEG decoder", products, " memory copy")]
    assert torch.cuda.get_device_name(0) in rows["GPU 0"].value
    assert "not known" not in rows["GPU 0 JPEG decoder"].value  # nvJPEG has answered
    assert all("peak" in rows[f"GPU 0 {part}"].value for part in (products.strip(), "memory copy"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nvjpeg_is_asked_in_vain() -> None:
    assert gpu.jpeg_engines() is None


# --- the host


@pytest.mark.parametrize(("each", "expected"), [(8, "ok"), (7, "warn")])
def test_eight_cores_a_gpu_are_enough(each: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4 * each)))
    assert host.cores(4, float("inf")).verdict == expected
    assert host.cores(0, float("inf")).verdict == "ok"


def test_a_quota_below_the_cores_is_named(tmp_path: Path) -> None:
    (tmp_path / "half").write_text("50000 100000\n")
    (tmp_path / "free").write_text("max 100000\n")
    row = host.cores(0, host.quota(tmp_path / "half"))
    assert (row.verdict, "quota of 0.5" in row.value, "max_workers=1" in row.advice) == ("warn", True, True)
    assert host.quota(tmp_path / "free") == host.quota(tmp_path / "none") == float("inf")


def test_the_64_mb_of_docker_are_too_little_shared_memory() -> None:
    assert host.shared_memory(8, 64 * 2**20).verdict == "warn"
    assert host.shared_memory(8, 2**50).verdict == "ok"


def test_the_shared_memory_is_what_a_run_with_the_torch_backend_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with the default batch sizes; a backend of each for training and for validation."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(SharedMemory, "_all", set())
    train, val = (SharedMemory(4, images * 3 * 224**2, 2) for images in (512, EvalOptions().batch_size))
    needed = train.needed + val.needed
    assert [host.shared_memory(2, free).verdict for free in (needed, needed - 1)] == ["ok", "warn"]


@pytest.mark.parametrize(("most", "expected"), [(1024, "warn"), (2048, "ok"), (-1, "ok")])
def test_the_limit_of_open_files(most: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, most))
    assert host.open_files().verdict == expected


def test_files_of_many_classes_are_read(small_images: Path) -> None:
    files = host.sample(small_images)
    assert len({file.parent for file in files}) == 10 and all(file.is_file() for file in files)
    row = host.reading(small_images, 0)
    assert row.verdict == "ok" and re.match(r"\d+ images/s, \d+ MB/s from 80 files", row.value)
    assert host.reading(small_images, 10**9).verdict == "bad"


def test_shards_are_read_from_their_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PIECE", 1000)
    (tmp_path / "train").mkdir()
    for name in ("shard-00000.tar", "shard-00001.tar"):
        (tmp_path / "train" / name).write_bytes(bytes(5000))
    assert [host.read_start(file) for file in host.sample(tmp_path)] == [1000, 1000]


def test_a_data_root_that_is_not_set_is_missing_and_a_wrong_one_bad(tmp_path: Path) -> None:
    assert host.reading(None, 1).verdict == "missing"
    assert host.reading(tmp_path / "nowhere", 1).verdict == "bad"
    assert host.reading(tmp_path, 1).verdict == "bad"


def test_the_written_file_is_removed_and_folders_are_not_made(tmp_path: Path) -> None:
    speed, space = host.writing(tmp_path / "outputs" / "deep")
    assert "MB/s" in speed.value and "GiB free" in space.value
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_bad() -> None:
    (row,) = host.writing(Path("/proc/outputs"))
    assert row.verdict == "bad" and "output_dir=" in row.advice
