"""Sources: each kind fulfils the protocol, and a new kind needs only a class and a line in ``SOURCES``."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DataConfig, DataError, EvalSetsConfig, is_set_prepared, open_set, open_split, sources
from data.backends import build_backend, resolve_backend
from data.config import AugmentConfig
from data.geometry import BatchGeometry
from data.index import ImageIndex, cached_index, scanned
from data.index.headers import decoded, read_header
from data.loader import Loader
from data.plan import EvalPlan, TrainPlan
from data.prepare.check import check_images
from data.sources import SOURCES, Advice, EncodedSource, Source, open_source, source_kind
from data.sources.folder import FolderSource
from data.sources.shards import ShardSource
from data.sources.synthetic import SyntheticSource
from tests.packing import pack

CPU = torch.device("cpu")
CLASSES, EACH = ("0", "1", "2"), 4  # possible class names of ImageNet, so that an evaluation set can use them
KINDS = {"folder": FolderSource, "shards": ShardSource, "synthetic": SyntheticSource}
ENCODED = ("folder", "shards", "joined")


class JoinedSource(EncodedSource):
    """A source only for tests: ``data.root`` is a file that holds the images of all splits one after the other.

    Its first line is JSON that says where each image is: ``{split: {class/file: [begin, length]}}``.
    """

    advice = Advice(at_start="repair it at once", in_run="bring the file back", changed="touch the file")

    def __init__(self, file: Path, split: str, index: ImageIndex):
        self.file, self.place, self.index = file, file / split, index

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        return cfg.root is not None and cfg.root.endswith(".joined")

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "JoinedSource | None":
        file = Path(str(cfg.root))

        def is_current(index: ImageIndex) -> bool:
            return index.extra["changed"].item() == os.stat(file).st_mtime_ns

        index = cached_index(cfg, split, is_current, lambda: cls.scan(file, split), build)
        return None if index is None else cls(file, split, index)

    @staticmethod
    def scan(file: Path, split: str) -> ImageIndex:
        """The index, with the start of each image and the modification time of the file."""
        first, content = file.read_bytes().split(b"\n", 1)
        places = json.loads(first)[split]
        classes = sorted({path.split("/")[0] for path in places})
        listed = ((name, sorted(path for path in places if path.startswith(f"{name}/"))) for name in classes)

        def stretch(path: str) -> BytesIO:
            begin, length = places[path]
            return BytesIO(content[begin : begin + length])

        index = scanned(file / split, listed, lambda path: read_header(stretch(path)))
        begins = np.array([places[path][0] + len(first) + 1 for path in index.paths])
        return replace(index, extra={"begins": begins, "changed": np.array(os.stat(file).st_mtime_ns)})

    @property
    def layout(self) -> str:
        return "one file"

    def content(self, i: int) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(int(self.index.extra["begins"][i]))
            return file.read(int(self.index.lengths[i]))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.source.PAUSES", (0.0, 0.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise images, all different, in two splits; one image of each split is CMYK."""
    root = tmp_path_factory.mktemp("sources") / "set"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(EACH):
                pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
        Image.new("CMYK", (33, 22), (9, 80, 7, 60)).save(root / split / "2" / "print.jpg")
    return root


def join(root: Path, to: Path) -> Path:
    """Write an image folder as a file for :class:`JoinedSource`."""
    places: dict[str, dict[str, tuple[int, int]]] = {"train": {}, "val": {}}
    content = b""
    for path in sorted(path for path in root.rglob("*.*") if path.is_file() and not path.name.startswith(".")):
        split, *rest = path.relative_to(root).parts
        places[split]["/".join(rest)] = (len(content), path.stat().st_size)
        content += path.read_bytes()
    to.write_bytes(json.dumps(places).encode() + b"\n" + content)
    return to


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> DataConfig:
    """The options that choose a kind of source; the test's parameter names it."""
    if request.param == "synthetic":
        return DataConfig(name="synthetic", crop=16, synthetic_images=120, synthetic_classes=3)
    copy = Path(shutil.copytree(folder, tmp_path / "set"))
    if request.param == "folder":
        root = copy
    elif request.param == "shards":
        for split in ("train", "val"):
            root = pack(copy, tmp_path / "packed", split, shard_size=5_000)
    else:
        monkeypatch.setattr(sources, "SOURCES", (JoinedSource, *SOURCES))
        root = join(copy, tmp_path / "images.joined")
    return DataConfig(name="any", root=str(root), crop=16, resize=18)


def opened(cfg: DataConfig, split: str = "train") -> Source:
    source = open_source(cfg, split)
    assert source is not None
    return source


def encoded(cfg: DataConfig) -> EncodedSource:
    source = opened(cfg)
    assert isinstance(source, EncodedSource)
    return source


# --- what every source does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "kind"), KINDS.items(), ids=KINDS, indirect=["config"])
def test_a_split_is_opened_by_the_kind_that_fits(config: DataConfig, kind: type[Source]) -> None:
    assert source_kind(config, "train") is kind
    assert type(opened(config)) is kind
    assert kind in SOURCES


@pytest.mark.parametrize("config", [*KINDS, "joined"], indirect=True)
def test_a_source_says_which_images_there_are(config: DataConfig) -> None:
    source = opened(config)
    index = source.index
    assert len(source) == len(index) > 0
    assert index.classes == list(CLASSES)
    assert set(index.targets.tolist()) == set(range(len(CLASSES)))
    assert len({source.name(i) for i in range(len(source))}) == len(source)
    assert index.heights.min() > 0 and index.widths.min() > 0
    assert source.layout and str(source.place)
    assert len(opened(config, "val")) > 0


@pytest.mark.parametrize("config", [*KINDS, "joined"], indirect=True)
def test_another_process_gets_the_same_source(config: DataConfig) -> None:
    source = opened(config)
    copy = pickle.loads(pickle.dumps(source))
    assert type(copy) is type(source)
    assert copy.index.fingerprint() == source.index.fingerprint()
    assert [copy.name(i) for i in range(3)] == [source.name(i) for i in range(3)]
    if isinstance(source, EncodedSource):
        assert [copy.read(i) for i in range(3)] == [source.read(i) for i in range(3)]


@pytest.mark.parametrize("config", [*KINDS, "joined"], indirect=True)
def test_once_opened_nothing_is_left_to_build(config: DataConfig) -> None:
    first = opened(config)
    again = open_source(config, "train", build=False)
    assert again is not None
    assert again.index.fingerprint() == first.index.fingerprint()


@pytest.mark.parametrize("config", [*KINDS, "joined"], indirect=True)
@pytest.mark.parametrize("asked", ["torch", "dali"])
def test_every_source_has_a_backend(config: DataConfig, asked: str) -> None:
    config.backend = asked
    images = open_split(config, "train")
    kind = resolve_backend(config)
    assert kind == (images.source.backend or asked)
    backend = build_backend(kind, images.source, config, CPU, 0, 12)
    plan = TrainPlan(images.index, 0, config, AugmentConfig(mix_group=4), BatchGeometry(12, 4))
    (batch,) = Loader(backend, images.labels, CPU).train(plan, 0, 1)
    assert batch.images.shape == (12, 3, 16, 16)


def test_images_without_files_are_not_decoded() -> None:
    cfg = DataConfig(name="synthetic", crop=16)
    for kind in ("torch", "dali"):
        with pytest.raises(DataError, match=f"data.backend={kind} decodes files, but data=synthetic has none"):
            build_backend(kind, opened(cfg), cfg, CPU, 0, 4)


# --- what every source of files does --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_images_are_the_files_that_went_in(config: DataConfig, folder: Path) -> None:
    source = encoded(config)
    index = source.index
    assert len(source) == len(CLASSES) * EACH + 1
    assert index.lengths is not None
    assert [index.paths[i] for i in index.cmyk] == ["2/print.jpg"]
    for i, path in enumerate(index.paths):
        content = source.read(i)
        assert content == (folder / "train" / path).read_bytes()
        assert len(content) == index.lengths[i]
        image = decoded(content)
        assert (image.height, image.width) == (index.heights[i], index.widths[i])
        assert path.split("/")[0] == index.classes[index.targets[i]]
        assert path in source.name(i)


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_all_images_have_paths_or_none(config: DataConfig) -> None:
    source = encoded(config)
    paths = [source.path(i) for i in range(len(source))]
    if paths[0] is None:
        assert set(paths) == {None}
    else:
        assert [Path(str(path)).read_bytes() for path in paths] == [source.read(i) for i in range(len(source))]


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_the_fingerprint_is_that_of_the_folder(config: DataConfig, folder: Path) -> None:
    plain = opened(DataConfig(name="any", root=str(folder)))
    assert opened(config).index.fingerprint() == plain.index.fingerprint()


@pytest.mark.parametrize("kind", ["torch", "dali"])
@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_batches_are_those_of_the_folder(config: DataConfig, folder: Path, kind: str) -> None:
    made = []
    for cfg in (config, replace(config, root=str(folder))):
        source = encoded(cfg)
        backend = build_backend(kind, source, cfg, CPU, 0, 20)
        (images,) = backend.batches(iter([EvalPlan(source.index, cfg).crops(range(len(source)))]))
        made.append(images)
    assert torch.equal(*made)


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_a_read_is_tried_again(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    source = encoded(config)
    expected, content, failures = source.read(0), type(source).content, [OSError("away"), OSError("still away")]

    def failing(self: EncodedSource, i: int) -> bytes:
        if failures:
            raise failures.pop()
        return content(self, i)

    monkeypatch.setattr(type(source), "content", failing)
    assert source.read(0) == expected
    failures += [OSError("gone")] * 3
    with pytest.raises(OSError, match="gone"):
        source.read(0)


@pytest.mark.parametrize("kind", ["torch", "dali"])
@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_a_bad_image_is_named_with_the_advice_of_its_source(
    config: DataConfig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = encoded(config)
    gone = "its place is empty"

    def failing(self: EncodedSource, i: int) -> bytes:
        raise OSError(gone)

    monkeypatch.setattr(type(source), "content", failing)
    if (path := source.path(3)) is not None:
        os.unlink(path)  # DALI reads the file itself, not through ``content``
    backend = build_backend(kind, source, config, CPU, 0, 4)
    with pytest.raises(DataError) as caught:
        list(backend.batches(iter([EvalPlan(source.index, config).crops(range(3, 4))])))
    assert str(caught.value).startswith(f"{source.name(3)} cannot be decoded ({gone}): {source.advice.in_run}, then")


@pytest.mark.parametrize("config", ["folder", "joined"], indirect=True)
def test_files_that_are_no_images_are_named_at_the_start(config: DataConfig, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "train" / "1" / "bad.png").write_text("no image")
    if config.root is not None and config.root.endswith(".joined"):
        join(tmp_path / "set", Path(config.root))
    advice = {FolderSource: FolderSource.advice, JoinedSource: JoinedSource.advice}[source_kind(config, "train")]
    with pytest.raises(DataError, match=rf"1/bad\.png is not a JPEG or PNG image: {advice.at_start}, or leave"):
        open_source(config, "train")
    config.on_bad_image = "skip"
    assert len(opened(config)) == len(CLASSES) * EACH + 1
    assert open_source(config, "train", build=False) is not None


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_the_check_decodes_every_image(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.prepare.check.run_jobs", lambda jobs, workers: ((n, job()) for n, job in enumerate(jobs)))
    found = check_images(encoded(config), 1)
    assert (found.images, found.bad, len(found.cmyk)) == (len(CLASSES) * EACH + 1, [], 1)


# --- a new kind of source -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["joined"], indirect=True)
def test_an_index_lies_beside_a_file_and_follows_it(config: DataConfig, folder: Path, tmp_path: Path) -> None:
    assert open_source(config, "train", build=False) is None
    before = opened(config).index.fingerprint()
    assert [path.name for path in tmp_path.glob(".*")] == [".coldstart-index-images.joined-train.npz"]
    (tmp_path / "set" / "train" / "0" / "0.png").unlink()
    join(tmp_path / "set", Path(str(config.root)))
    os.utime(str(config.root), ns=(1, 1))
    assert open_source(config, "train", build=False) is None
    assert opened(config).index.fingerprint() != before


@pytest.mark.parametrize("config", ["joined"], indirect=True)
def test_an_evaluation_set_may_lie_in_such_a_file(config: DataConfig, tmp_path: Path) -> None:
    sets = EvalSetsConfig(v2=config.root)
    assert not is_set_prepared("v2", sets, config)
    images = open_set("v2", sets, config)
    assert images.answers.tolist() == [0] * EACH + [1] * EACH + [2] * (EACH + 1)
    assert is_set_prepared("v2", sets, config)
    (tmp_path / "other.txt").write_text("no source reads this")
    with pytest.raises(DataError, match=r"sets\.v2=.*other\.txt is not a folder"):
        open_set("v2", EvalSetsConfig(v2=str(tmp_path / "other.txt")), config)


def test_columns_of_a_source_take_no_name_of_the_index() -> None:
    index = replace(SyntheticSource(3, 3, 8).index, extra={"lengths": np.zeros(3)})
    with pytest.raises(AssertionError, match="lengths"):
        index.arrays()
