"""Preparing ImageNet from tar files and folders: the real command, repeated."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.index.arrays import write_arrays
from data.prepare import prepare
from data.prepare.check import Findings
from data.prepare.originals import TRAIN_TAR, image_folder
from data.prepare.target import Target, plan_file
from data.prepare.writing import write_class_folder, write_shard
from data.sources.shards import PACKED_INDEX, ShardSource
from scripts import prepare_imagenet
from tests import official as small
from tests.official import IMAGES, command, files_in, jpeg, refused, run, task, val_labels, write_official
from tests.opening import open_at, source_of

official, folder = small.official, small.folder


# --- the command ----------------------------------------------------------------------------------------------------


def test_official_tars_become_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made = write_official(
        tmp_path / "tars", extra={"../../../evil_1.JPEG": jpeg(3), "n99999999_1.JPEG": jpeg(4), "notes.txt": b"text"}
    )
    before = files_in(tmp_path / "tars")
    monkeypatch.setattr("sys.argv", command("--tars", tmp_path / "tars", "--to", tmp_path / "set")[1:])
    prepare_imagenet.main()
    printed = capsys.readouterr().out
    assert files_in(tmp_path / "set") == made
    assert files_in(tmp_path / "tars") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "tars"]
    classes = len(set(val_labels(4).values()))
    assert f"train: {classes * IMAGES} images of {classes} classes" in printed
    assert f"val: 4 images of {classes} classes" in printed
    assert "3 files left out:" in printed
    assert "../../../evil_1.JPEG is not named like n0" in printed
    assert f"next: torchrun train.py model=lipsformer_swin_tiny data.root={tmp_path / 'set'}" in printed
    assert "the official train images are 1281167: some are missing" in printed
    assert open_at(tmp_path / "set", build=False) is not None


def test_the_next_command_names_a_split_that_is_not_the_usual_one(
    small_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = shutil.copytree(small_images, tmp_path / "set")
    for splits, ending in (("train,val", ""), ("train", ""), ("train,test", " data.split=test")):
        if "test" in splits:
            (root / "val").rename(root / "test")
        monkeypatch.setattr("sys.argv", command("--folder", root, "--splits", splits)[1:])
        prepare_imagenet.main()
        assert capsys.readouterr().out.endswith(f"data.root={root}{ending}\n")


def test_official_tars_become_shards(
    official: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "set"
    options = ("--layout", "shards", "--shard-size", "20K", "--workers", 2, "--check")
    monkeypatch.setattr("sys.argv", command("--tars", official, "--to", to, *options)[1:])
    prepare_imagenet.main()
    for split in ("train", "val"):
        packed, plain = source_of(to, split), source_of(folder, split)
        assert isinstance(packed, ShardSource)
        assert packed.index.fingerprint() == plain.index.fingerprint()
        assert [packed.read(i) for i in range(len(packed))] == [plain.read(i) for i in range(len(plain))]
        assert (to / split / "index-check.txt").read_text().startswith(f"{split}: {len(plain)} images checked, 0 bad")
    assert len(list((to / "train").glob("shard-*.tar"))) > 1


@pytest.mark.slow
def test_checking_names_every_kind_of_odd_file(folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "set"))
    first = sorted((root / "train").iterdir())[0]
    picture = Image.open(io.BytesIO(jpeg(1)))
    turned = Image.Exif()
    turned[0x0112] = 6
    (first / "short.JPEG").write_bytes(jpeg(1)[:-700])
    (first / "text.JPEG").write_text("text")
    (first / "empty.JPEG").write_bytes(b"")
    picture.save(first / "png.JPEG", format="PNG")
    picture.convert("CMYK").save(first / "cmyk.JPEG")
    picture.save(first / "rgb.JPEG", keep_rgb=True)
    picture.convert("L").save(first / "grey.JPEG")
    picture.save(first / "turned.JPEG", exif=turned)
    picture.save(first / "exif.JPEG", exif=b"Exif\0\0garbage garbage", dpi=(72, 72))
    done = run("--folder", root, "--check", "--workers", 2)
    assert done.returncode == 1
    assert "3 images are bad" in done.stderr
    report = (root / "coldstart-index-train-check.txt").read_text()
    total = 9 + len(list(folder.glob("train/*/*")))
    lines = report.splitlines()
    assert lines[0] == f"train: {total} images checked, 3 bad, 1 greyscale"
    sections = "\n".join(lines).split("\n  3 bad")[1]
    for name in ("short.JPEG", "text.JPEG", "empty.JPEG"):
        assert f"{first / name} " in sections.split("  1 with an extension that does not match")[0]
    assert f"{first / 'png.JPEG'} is a PNG" in report
    odd_colours = "with CMYK or RGB colours in a JPEG; they can be used as they are, because Pillow decodes them:"
    assert f"2 {odd_colours}\n    {first / 'cmyk.JPEG'}\n    {first / 'rgb.JPEG'}" in report
    assert f"which is ignored, as in Pillow and torchvision:\n    {first / 'turned.JPEG'}" in report
    assert f"val: {len(val_labels(4))} images checked, 0 bad" in done.stdout


def test_a_mistake_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", command("--tars", tmp_path, "--to", tmp_path / "set")[1:])
    with pytest.raises(SystemExit) as ended:
        prepare_imagenet.main()
    missing = f"{tmp_path / TRAIN_TAR} is missing: put it there, or prepare only the rest with --splits val"
    assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {missing}\n")


@pytest.mark.parametrize(
    ("text", "expected"), [("1G", 10**9), ("500m", 5 * 10**8), ("20K", 20_000), ("1.5G", 15 * 10**8), ("77", 77)]
)
def test_sizes_may_have_units(text: str, expected: int) -> None:
    assert prepare_imagenet.parse(["--folder", "a", "--to", "b", "--shard-size", text]).shard_size == expected


@pytest.mark.parametrize(
    "wrong",
    [("--shard-size", "many"), ("--shard-size", "0"), ("--shard-size", "inf"), ("--workers", "0"), ("--tars", "c")],
)
def test_wrong_options_are_refused(wrong: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare_imagenet.parse(["--folder", "a", "--to", "b", *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_layout_follows_from_where_it_goes() -> None:
    assert prepare_imagenet.parse(["--folder", "a"]).layout == "keep"
    assert prepare_imagenet.parse(["--folder", "a", "--to", "b"]).layout == "folder"


# --- layouts --------------------------------------------------------------------------------------------------------


def test_a_folder_is_packed_copied_or_kept(folder: Path, tmp_path: Path) -> None:
    before = files_in(folder)
    prepare(task(folder=folder, to=tmp_path / "copy"))
    assert files_in(tmp_path / "copy") == before
    prepare(task(folder=folder, to=tmp_path / "shards", layout="shards", shard_size=20_000))
    packed, plain = source_of(tmp_path / "shards").index, source_of(folder).index
    assert packed.fingerprint() == plain.fingerprint()
    result = prepare(task(folder=tmp_path / "shards", layout="keep", check=True))
    assert (result.bad, result.report[0].split(":")[0]) == (0, "train")
    prepare(task(folder=folder, layout="keep"))
    assert files_in(folder) == before


def test_bad_and_grey_images_are_counted_whatever_their_form_and_split(folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "set"))
    first, picture = sorted((root / "train").iterdir())[0], Image.open(io.BytesIO(jpeg(1)))
    for mode in ("1", "L", "LA", "RGBA"):
        picture.convert(mode).save(first / f"{mode}.png")
    (first / "text.JPEG").write_text("text")  # which the index leaves out
    (first / "short.JPEG").write_bytes(jpeg(1)[:-700])
    result = prepare(task(folder=root, layout="keep", check=True))
    total = len(list(root.glob("train/*/*")))
    assert f"train: {total} images checked, 2 bad, 3 greyscale" in "\n".join(result.report)
    assert result.bad == 2  # also where the last split has none


def test_a_long_list_of_findings_says_how_many_names_are_left_out() -> None:
    found = Findings(images=9, bad=[f"{number}.JPEG" for number in range(5)])
    report = found.report("train", most=2).splitlines()
    assert report[1:] == ["  5 bad: incomplete or not decodable:", "    0.JPEG", "    1.JPEG", "    and 3 more"]
    assert found.report("train").splitlines()[-1] == "    4.JPEG"


def test_validation_images_side_by_side_are_sorted_into_classes(folder: Path, tmp_path: Path) -> None:
    """Kaggle's layout: train/<wnid>/, and val/ with all images."""
    (tmp_path / "kaggle" / "val").mkdir(parents=True)
    for path in folder.glob("val/*/*.JPEG"):
        shutil.copy(path, tmp_path / "kaggle" / "val")
    (tmp_path / "kaggle" / "val" / "notes.txt").write_text("text")
    result = prepare(task(folder=tmp_path / "kaggle", to=tmp_path / "set", splits=["val"]))
    assert files_in(tmp_path / "set" / "val") == files_in(folder / "val")
    assert "    val: notes.txt is not named like ILSVRC2012_val_00000001.JPEG" in result.report
    assert "has no class folders" in refused(task(folder=tmp_path / "kaggle", layout="keep", splits=["val"]))


def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target.shards(tmp_path, image_folder(folder, "train"), None, 20_000)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*shard-00000\.tar \(No space left on device\)"):
        write_shard(target.parts[0], None)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DataError, match=r"cannot write .* \(No space left on device\): free space"):
        write_class_folder(Target.folders(tmp_path, target.split, None).parts[0], None)
    assert not list(tmp_path.iterdir())


def test_shards_get_a_lost_index_back(folder: Path, tmp_path: Path) -> None:
    prepare(task(folder=folder, to=tmp_path, layout="shards", shard_size=20_000))
    written = (tmp_path / "train" / PACKED_INDEX).read_bytes()
    (tmp_path / "train" / PACKED_INDEX).unlink()
    prepare(task(folder=tmp_path, layout="keep"))
    assert (tmp_path / "train" / PACKED_INDEX).read_bytes() == written
    write_arrays(tmp_path / "train" / PACKED_INDEX, {"version": np.array(0)})
    assert "delete it and write it again" in refused(task(folder=tmp_path, layout="keep"))
    (tmp_path / "train" / PACKED_INDEX).unlink()
    first, last = sorted((tmp_path / "train").glob("shard-*.tar"))
    last.unlink()
    assert "does not hold all of its shards" in refused(task(folder=tmp_path, layout="keep"))
    for damaged in ("{", "[]", "{}", '{"shards": "x"}', "\udcff"):
        plan_file(tmp_path / "train").write_text(damaged, errors="surrogateescape")
        assert f"{plan_file(tmp_path / 'train')} is damaged (" in refused(task(folder=tmp_path, layout="keep"))
    assert "was prepared from another source" in refused(task(folder=folder, to=tmp_path, layout="shards"))
    plan_file(tmp_path / "train").unlink()  # without it, the numbers tell
    first.rename(last)
    assert "does not hold all of its shards" in refused(task(folder=tmp_path, layout="keep"))


def test_a_removed_shard_is_written_again(folder: Path, tmp_path: Path) -> None:
    packing = task(folder=folder, to=tmp_path, layout="shards", shard_size=20_000)
    prepare(packing)
    before = files_in(tmp_path)
    shard = tmp_path / "train" / "shard-00001.tar"
    os.truncate(shard, 5000)
    assert f"{shard} is damaged or cut short" in refused(packing)
    shard.unlink()
    left = [tmp_path / "train" / f".partial-{number}-{shard.name}" for number in range(2)]
    left[0].touch()  # what killed writers leave, of a shard and of a class folder
    left[1].mkdir()
    (left[1] / "image.JPEG").touch()
    prepare(packing)
    assert files_in(tmp_path) == before and not any(path.exists() for path in left)


@pytest.mark.parametrize("order", [(0, 0), (1, 0)], ids=["a class in two shards", "classes in another order"])
def test_shards_that_do_not_belong_together_get_no_index(order: tuple[int, int], folder: Path, tmp_path: Path) -> None:
    prepare(task(folder=folder, to=tmp_path, layout="shards", shard_size=1))  # a shard for each class
    (tmp_path / "train" / PACKED_INDEX).unlink()
    shards = sorted((tmp_path / "train").glob("shard-*.tar"))
    contents = [shards[number].read_bytes() for number in order]
    for shard, content in zip(shards, contents, strict=False):
        shard.write_bytes(content)
    assert "do not belong together: pack the images again" in refused(task(folder=tmp_path, layout="keep"))


def test_images_are_made_smaller_where_asked_for(folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "set"))
    first = sorted((root / "train").iterdir())[0]
    (first / "large.JPEG").write_bytes(jpeg(5, 300, 200, quality=95))
    (first / "damaged.JPEG").write_bytes(jpeg(5, 300, 200)[:-2000])
    (first / "long.JPEG").write_bytes(jpeg(5, 300, 100))
    prepare(task(folder=root, to=tmp_path / "small", shorter_side=100, splits=["train"]))
    with Image.open(tmp_path / "small" / "train" / first.name / "large.JPEG") as image:
        assert (image.format, image.size) == ("JPEG", (150, 100))
        whole = Image.open(first / "large.JPEG").resize((150, 100), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(whole, dtype=int)).mean() < 3
    was, made = files_in(root / "train"), files_in(tmp_path / "small" / "train")
    changed = {name for name in was if made[name] != was[name]}
    assert changed == {f"{first.name}/large.JPEG"}
