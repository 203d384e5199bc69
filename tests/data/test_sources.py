"""Sources: each kind fulfils the protocol, and a new kind needs only a class and a line in ``SOURCES``."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import DataConfig, DataError, EvalSetsConfig, is_set_prepared, open_set, open_split, sources
from data.backends import build_backend, resolve_backend
from data.config import AugmentConfig
from data.loader import Loader
from data.planning.geometry import BatchGeometry
from data.planning.plan import TrainPlan
from data.sources import EncodedSource, Source, open_source, source_kind
from data.sources.folder import FolderSource
from data.sources.shards import ShardSource
from data.sources.synthetic import SyntheticSource
from tests import source_kinds
from tests.joined import join
from tests.source_kinds import CLASSES, EACH, ENCODED, SOURCE_CLASSES, opened

folder, config = source_kinds.folder, source_kinds.config

CPU = torch.device("cpu")

# --- what every source does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "kind"), SOURCE_CLASSES.items(), ids=SOURCE_CLASSES, indirect=["config"])
def test_a_split_is_opened_by_the_kind_that_fits(config: DataConfig, kind: type[Source]) -> None:
    assert source_kind(config, "train") is kind
    assert type(opened(config)) is kind
    assert kind in sources.SOURCES


@pytest.mark.parametrize("config", SOURCE_CLASSES, indirect=True)
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


@pytest.mark.parametrize("config", SOURCE_CLASSES, indirect=True)
def test_another_process_gets_the_same_source(config: DataConfig) -> None:
    source = opened(config)
    copy = pickle.loads(pickle.dumps(source))
    assert type(copy) is type(source)
    assert copy.index.fingerprint() == source.index.fingerprint()
    assert [copy.name(i) for i in range(3)] == [source.name(i) for i in range(3)]
    if isinstance(source, EncodedSource):
        assert [copy.read(i) for i in range(3)] == [source.read(i) for i in range(3)]


@pytest.mark.parametrize("config", SOURCE_CLASSES, indirect=True)
def test_once_opened_nothing_is_left_to_build(config: DataConfig) -> None:
    first = opened(config)
    again = open_source(config, "train", build=False)
    assert again is not None
    assert again.index.fingerprint() == first.index.fingerprint()


@pytest.mark.parametrize("config", SOURCE_CLASSES, indirect=True)
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


@pytest.mark.parametrize("config", ENCODED, indirect=True)
def test_an_evaluation_set_may_have_any_form(config: DataConfig, tmp_path: Path) -> None:
    sets, training = EvalSetsConfig(v2=config.root), replace(config, root=str(tmp_path))
    assert is_set_prepared("v2", sets, training) == (source_kind(config, "val") is ShardSource)  # shards have an index
    images = open_set("v2", sets, training)
    assert images.answers.tolist() == [0] * EACH + [1] * EACH + [2] * (EACH + 1)
    assert is_set_prepared("v2", sets, training)
    (tmp_path / "other.txt").write_text("no source reads this")
    with pytest.raises(DataError, match=r"sets\.v2=.*other\.txt is not a folder"):
        open_set("v2", EvalSetsConfig(v2=str(tmp_path / "other.txt")), config)


def test_columns_of_a_source_take_no_name_of_the_index() -> None:
    index = replace(SyntheticSource(3, 3, 8).index, extra={"lengths": np.zeros(3)})
    with pytest.raises(AssertionError, match="lengths"):
        index.arrays()


def test_images_without_files_are_made_whatever_the_root_holds(folder: Path) -> None:
    for name, kind in (("any", FolderSource), ("synthetic", SyntheticSource)):
        assert source_kind(DataConfig(name=name, root=str(folder)), "train") is kind
