"""Parquet files, written by Hugging Face's package, become tar files that give the same images and labels."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath

import datasets
import pyarrow.parquet
import pytest
import timm.data

from data import DataConfig
from data.errors import DataError
from data.prepare import Task, prepare
from data.sets.dataset import open_split
from data.sources.webdataset import WebDatasetSource
from tests.archives import images_in, tiny_image
from tests.opening import source_of
from tests.runs import PROJECT, environment


@pytest.fixture(scope="module")
def written(numbered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in parquet files with several groups of rows, named and shuffled as on Hugging Face."""
    root = tmp_path_factory.mktemp("parquet")
    (root / "data").mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        paths = images_in(numbered / split)
        names = sorted({path.parent.name for path in paths})
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        labels = [int(path.parent.name) for path in paths]
        whole = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).shuffle(seed=0)
        for number in range(3):
            part = whole.shard(3, number, contiguous=True)
            part.to_parquet(root / "data" / f"{name}-0000{number}-of-00003.parquet", batch_size=4)
    return root


def task(written: Path, to: Path, **options) -> Task:
    defaults = {"tars": None, "folder": None, "layout": "tars", "splits": ["train", "val"], "workers": 2}
    return Task(**(defaults | {"parquet": written, "to": to} | options))


def test_the_images_and_labels_are_those_of_the_folder(numbered: Path, written: Path, tmp_path: Path) -> None:
    report = prepare(task(written, tmp_path / "set")).report
    for split in ("train", "val"):
        tars, folder = source_of(tmp_path / "set", split), source_of(numbered, split)
        assert isinstance(tars, WebDatasetSource)
        stems = [[str(PurePath(path).with_suffix("")) for path in source.index.paths] for source in (tars, folder)]
        assert stems[0] == stems[1]
        assert [tars.read(i) for i in range(len(tars))] == [folder.read(i) for i in range(len(folder))]
    assert re.match(r"train: \d+ images of \d+ classes, .* GB, in 3 WebDataset tar files: ", report[0])


def test_timm_reads_the_tar_files_too(written: Path, tmp_path: Path) -> None:
    prepare(task(written, tmp_path / "set", splits=["train"]))
    ours = open_split(DataConfig(name="any", root=str(tmp_path / "set")), "train")
    tars = f"train-{{00000..00002}}-of-00003.tar|{len(ours)}"
    root = str(tmp_path / "set" / "train")
    theirs = timm.data.create_dataset("wds/any", root=root, split=tars, batch_size=1, is_training=False)
    found = sorted((label, picture.size) for picture, label in theirs)
    sizes = zip(ours.index.widths.tolist(), ours.index.heights.tolist(), strict=True)
    assert found == sorted(zip(ours.labels.tolist(), sizes, strict=True))


def test_finished_tar_files_are_kept_and_a_lost_one_is_written_again(written: Path, tmp_path: Path) -> None:
    prepare(task(written, tmp_path / "set"))
    lost = tmp_path / "set" / "train" / "train-00001-of-00003.tar"
    content = lost.read_bytes()
    lost.unlink()
    (lost.with_name(".partial-12345678-any.tar")).touch()
    report = prepare(task(written, tmp_path / "set", splits=["train"])).report
    assert "  2 of 3 tar files had been written before" in report
    assert lost.read_bytes() == content
    assert not list(lost.parent.glob(".partial*"))


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(written: Path, tmp_path: Path) -> None:
    command = [sys.executable, PROJECT / "scripts/prepare_imagenet.py", "--parquet", written, "--to", tmp_path / "set"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    # "*.tar" would also find the incomplete files: Path.glob lets "*" match a leading dot.
    while process.poll() is None and not list((tmp_path / "set").glob("train/train-*.tar")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "had been written before" in done.stdout
    prepare(task(written, tmp_path / "other"))
    again, whole = source_of(tmp_path / "set"), source_of(tmp_path / "other")
    assert again.index.fingerprint() == whole.index.fingerprint()


# --- what is refused ------------------------------------------------------------------------------------------------


def copied(written: Path, tmp_path: Path) -> Path:
    root = tmp_path / "in" / "data"
    root.mkdir(parents=True)
    for path in (written / "data").iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    return root


def one_missing(data: Path) -> None:
    (data / "train-00002-of-00003.parquet").unlink()


def half_downloaded(data: Path) -> None:
    (data / "train-00002-of-00003.parquet.incomplete").touch()


def cut_short(data: Path) -> None:
    path = data / "train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-1000])


def damaged_inside(data: Path) -> None:
    path = data / "train-00001-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)


def other_columns(data: Path) -> None:
    datasets.Dataset.from_dict({"img": [1], "class": [2]}).to_parquet(data / "train-00000-of-00003.parquet")


def numbers_for_images(data: Path) -> None:
    datasets.Dataset.from_dict({"image": [1], "label": [2]}).to_parquet(data / "train-00000-of-00003.parquet")


def only_a_row_without_image(data: Path) -> None:
    rows = pyarrow.table({"image": [{"bytes": b"", "path": "gone.jpg"}], "label": [2]})
    pyarrow.parquet.write_table(rows, data / "train-00000-of-00003.parquet")


def only_a_label_that_is_no_class(data: Path) -> None:
    rows = pyarrow.table({"image": [{"bytes": b"any", "path": "1.jpg"}], "label": [-1]})
    pyarrow.parquet.write_table(rows, data / "train-00000-of-00003.parquet")


def labels_with_a_fraction(data: Path) -> None:
    """As pandas writes whole numbers among which one was missing. As names, 10.0 would come before 2.0."""
    rows = pyarrow.table({"image": [{"bytes": b"any", "path": "1.jpg"}], "label": [2.0]})
    pyarrow.parquet.write_table(rows, data / "train-00000-of-00003.parquet")


def none_of_the_split(data: Path) -> None:
    for path in data.glob("train-*"):
        path.unlink()


REFUSALS = {
    one_missing: r"data: number 2 of the 3 \.parquet files of train is missing: get it$",
    half_downloaded: r"train-00002-of-00003\.parquet\.incomplete is half downloaded: finish the download",
    cut_short: r"train-00001-of-00003\.parquet is damaged or cut short \(.*\): get it again$",
    damaged_inside: r"train-00001-of-00003\.parquet is damaged or cut short \(.*\): get it again$",
    other_columns: r"has no column 'image' but img, class: set --image-column and --label-column$",
    numbers_for_images: r"column 'image' is int64, no images: they are structs of bytes and path$",
    only_a_row_without_image: r"train-00000-of-00003\.parquet: row 0 has no image or no label, and no other row has",
    only_a_label_that_is_no_class: r"train-00000.*: row 0 has the label -1, which is no class, .* set --label-column$",
    labels_with_a_fraction: r"column 'label' is double, no classes: they are whole numbers or names; convert it",
    none_of_the_split: r"in holds no parquet files of train, such as train-00000-of-00294\.parquet$",
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.items(), ids=[damage.__name__ for damage in REFUSALS])
def test_it_is_refused_in_one_line(
    written: Path, tmp_path: Path, damage: Callable[[Path], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.prepare.task.run_jobs", lambda jobs, workers: ((n, job()) for n, job in enumerate(jobs)))
    data = copied(written, tmp_path)
    damage(data)
    with pytest.raises(DataError) as caught:
        prepare(task(data.parent, tmp_path / "set"))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_without_an_image_or_a_class_are_left_out_by_name(tmp_path: Path) -> None:
    """As files of a folder or of a tar file that are no images."""
    (tmp_path / "in").mkdir()
    path, image = tmp_path / "in" / "train-00000-of-00001.parquet", {"bytes": tiny_image(), "path": "x.jpg"}
    rows = [(image, 0), (None, 1), ({"bytes": b"", "path": "gone.jpg"}, 1), (image, None), (image, -1), (image, 1)]
    pyarrow.parquet.write_table(pyarrow.table({"image": [i for i, _ in rows], "label": [c for _, c in rows]}), path)
    report = prepare(task(tmp_path / "in", tmp_path / "set", splits=["train"])).report
    assert report[1:] == [
        "  4 files left out:",
        *(f"    {path}: row {row} has no image or no label" for row in (1, 2, 3)),
        f"    {path}: row 4 has the label -1, which is no class",
    ]
    assert sorted(source_of(tmp_path / "set").index.paths) == ["0/x.jpg", "1/x.jpg"]


def test_images_of_one_name_are_all_written(tmp_path: Path) -> None:
    """Hugging Face keeps only the last part of a path."""
    (tmp_path / "in").mkdir()
    rows = [{"bytes": tiny_image(), "path": path} for path in ("a/x.jpg", "b/x.jpg", "y.jpg")]
    table = pyarrow.table({"image": rows, "label": ["cat", "cat", "dog"]})
    pyarrow.parquet.write_table(table, tmp_path / "in" / "train-00000-of-00001.parquet")
    prepare(task(tmp_path / "in", tmp_path / "set", splits=["train"]))
    images = open_split(DataConfig(name="any", root=str(tmp_path / "set")), "train").index
    assert sorted(images.paths) == ["cat/x-000001.jpg", "cat/x.jpg", "dog/y.jpg"]


def test_without_pyarrow_it_says_what_to_install(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="needs pyarrow: install it with pip install pyarrow"):
        prepare(task(written, tmp_path / "set"))


def test_a_layout_cannot_be_chosen(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--parquet writes tar files of a WebDataset: leave --layout out"):
        prepare(task(written, tmp_path / "set", layout="shards"))


def test_another_column_on_a_begun_set_is_refused(written: Path, tmp_path: Path) -> None:
    other = tmp_path / "in" / "data"
    other.mkdir(parents=True)
    for path in (written / "data").glob("train-*"):
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.append_column("coarse", table["label"]), other / path.name)
    prepare(task(other.parent, tmp_path / "set", splits=["train"]))
    with pytest.raises(DataError, match="was prepared from another source or with another"):
        prepare(task(other.parent, tmp_path / "set", splits=["train"], label_column="coarse"))


def test_a_place_is_needed(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--parquet needs --to DIR"):
        prepare(replace(task(written, tmp_path), to=None, layout="keep"))
