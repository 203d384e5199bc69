"""Evaluation sets: the real command against scores counted by hand; a wrong folder or list is refused in one line."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet

from data import SETS, DataConfig, DataError, EvalSetsConfig, is_set_prepared, open_set, refuse_other_than_imagenet
from engine.evaluation.evaluate import evaluate_checkpoint
from engine.evaluation.score_files import markdown_table
from engine.options.settings import eval_settings
from tests.opening import open_at
from tests.runs import composed, run

WNIDS = ImageNetInfo().label_names()
SIDE, COUNT, RANKS = 32, 56, 7
MODEL = "test_efficientnet"
HERE = DataConfig(name="none", crop=SIDE, resize=SIDE, backend="torch")
OPTIONS = (
    *("model=timm", f"model.name={MODEL}", "amp=fp32", "device=cpu", "max_workers=0", "data.backend=torch"),
    *(f"data.crop={SIDE}", f"data.resize={SIDE}", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"),
)


def info(name: str) -> str:
    return (resources.files("timm.data") / "_info" / name).read_text()


def indices(name: str) -> list[int]:
    """The classes of ImageNet-A or -R, from timm's file of indices; the project uses timm's file of WordNet ids."""
    return [int(word) for word in info(f"imagenet_{name}_indices.txt").split()]


def coloured(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return blocks.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")  # PNG keeps all pixels; readers ignore the file name's extension


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([coloured(seed) for seed in range(COUNT)])


def answers_of(model: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return model.eval()((pixels - 0.5) / 0.5)


@pytest.fixture(scope="module")
def weights(images, tmp_path_factory) -> Path:
    """A network with confident answers that differ from image to image."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL)
    for value in model.state_dict().values():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
    model.classifier.weight.data *= 3 / answers_of(model, images).std()
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def logits(images, weights) -> torch.Tensor:
    model = timm.create_model(MODEL)
    model.load_state_dict(safetensors.torch.load_file(weights))
    found = answers_of(model, images)
    assert len(set(found.argmax(1).tolist())) > COUNT // 4
    return found


def ranked(logits: torch.Tensor, among: list[int]) -> list[int]:
    """For image i, the class that the network ranks at place i mod 7: top-1 is then 1/7, top-5 is 5/7."""
    order = logits[:, among].argsort(1, descending=True)
    return [among[int(order[i, i % RANKS])] for i in range(COUNT)]


@pytest.fixture(scope="module")
def sets(images, logits, tmp_path_factory) -> Path:
    """Every set, with labels from the network's own ranking; ``flat.txt`` lists the labels of ``flat``."""
    root = tmp_path_factory.mktemp("sets")
    whole = list(range(1000))
    for name, among, folder in (
        ("v2", whole, str),
        ("sketch", whole, WNIDS.__getitem__),
        ("a", indices("a"), WNIDS.__getitem__),
        ("r", indices("r"), WNIDS.__getitem__),
    ):
        for i, label in enumerate(ranked(logits, among)):
            write(root / name / folder(label) / f"{i}.png", images[i])
    for i, label in enumerate(ranked(logits, whole)):
        write(root / "flat" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", images[i])
        with open(root / "flat.txt", "a") as file:
            file.write(f"{WNIDS[label]}\n")
    return root


@pytest.fixture(scope="module")
def real(images, logits, tmp_path_factory) -> tuple[Path, list[str]]:
    """Images with names for which the ranked label is one of ReaL's answers, and some names without an answer."""
    root = tmp_path_factory.mktemp("real")
    known = json.loads(info("imagenet_real_labels.json"))
    free = {label: [] for label in range(1000)}
    for number, labels in enumerate(known, 1):
        for label in labels:  # numbers with several labels come last
            free[label].insert(len(free[label]) * (len(labels) > 1), number)
    empty = [number for number, labels in enumerate(known, 1) if not labels]
    names: list[str] = []
    for i, label in enumerate(ranked(logits, list(range(1000)))):
        numbers = empty[i:] if i % 8 == 5 else reversed(free[label])
        candidates = (f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers)
        names.append(next(name for name in candidates if name not in names))
        write(root / "val" / names[-1], images[i])
    return root, names


def by_hand(logits: torch.Tensor, labels: list[int], among: list[int]) -> tuple[float, float, float]:
    masked = torch.full_like(logits, -torch.inf)
    masked[:, among] = logits[:, among]
    order = masked.argsort(1, descending=True)[:, :5].tolist()
    top1 = sum(label == best[0] for label, best in zip(labels, order, strict=True))
    top5 = sum(label in best for label, best in zip(labels, order, strict=True))
    loss = -masked.double().log_softmax(1)[range(len(labels)), labels].mean().item()
    return 100 * top1 / len(labels), 100 * top5 / len(labels), loss


def real_by_timm(logits: torch.Tensor, names: list[str]) -> tuple[float, float]:
    judge = RealLabelsImagenet([f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 50_001)])
    judge.filenames = names
    judge.add_result(logits)
    return judge.get_accuracy(1), judge.get_accuracy(5)


@pytest.mark.slow
def test_every_set_in_one_command(sets, real, logits, weights, tmp_path):
    """Two processes, and a batch size that divides no set: the scores are those counted by hand; for ReaL, timm's."""
    folder, names = real
    typed = [f"sets.{name}={sets / name}" for name in ("v2", "a", "r", "sketch")]
    flat = (f"sets.imagenet={sets}/flat", f"sets.labels={sets}/flat.txt", f"sets.real={folder}")
    options = (*OPTIONS, f"checkpoint={weights}", "eval.batch_size=5", "output=scores.json")
    out = run("eval.py", *options, *typed, *flat, cwd=tmp_path, processes=2, IMAGENET_DIR="/nowhere")
    assert out.returncode == 0, out.stderr
    found = json.loads((tmp_path / "scores.json").read_text())["sets"]
    assert list(found) == list(SETS)
    whole = list(range(1000))
    among = {"imagenet": whole, "v2": whole, "sketch": whole, "a": indices("a"), "r": indices("r")}
    for name, classes in among.items():
        top1, top5, loss = by_hand(logits, ranked(logits, classes), classes)
        assert 10 < top1 < 20 and 65 < top5 < 75
        assert found[name] == {"top1": top1, "top5": top5, "loss": pytest.approx(loss, rel=1e-4), "images": COUNT}
    top1, top5 = real_by_timm(logits, names)
    assert found["real"] == {"top1": pytest.approx(top1), "top5": pytest.approx(top5), "images": COUNT - COUNT // 8}
    assert 10 < top1 < top5 < 90
    table = (tmp_path / "scores.md").read_text()
    assert table in out.stdout and f"{COUNT} of 7500 |" in table and "ImageNet-Sketch" in table


def opened(name: str, **folders) -> object:
    return open_set(name, EvalSetsConfig(**{key: str(value) for key, value in folders.items()}), HERE)


def test_a_list_may_give_names_or_numbers(sets, tmp_path):
    """The answers are the same. A list with names may be in any order."""
    wnids = (sets / "flat.txt").read_text().split()
    names = sorted(path.name for path in (sets / "flat").iterdir())
    lists = {
        "numbers": [str(WNIDS.index(wnid)) for wnid in wnids],
        "names": [f"{name} {wnid}" for name, wnid in reversed(list(zip(names, wnids, strict=True)))],
        "paths": [f"val/{name} {WNIDS.index(wnid)}" for name, wnid in zip(names, wnids, strict=True)],
    }
    expected = opened("imagenet", imagenet=sets / "flat", labels=sets / "flat.txt").answers
    assert [WNIDS[i] for i in expected] == wnids
    for name, lines in lists.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n\n")
        assert np.array_equal(opened("imagenet", imagenet=sets / "flat", labels=tmp_path / name).answers, expected)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0"] * (COUNT - 1), rf"has {COUNT - 1} lines for {COUNT} images"),
        (["0"] * (COUNT + 1), rf"has {COUNT + 1} lines for {COUNT} images"),
        (["1000"] * COUNT, "development kit are in another order"),
        (["n00000001"] * COUNT, "'n00000001' is not a WordNet id of ImageNet or a number"),
        (["-1"] * COUNT, "'-1' is not a WordNet id"),
        (["9" * 5000] * COUNT, "9' is not a WordNet id"),
        (["a b c"] * COUNT, "write one label on each line"),
        (["0"] * (COUNT - 1) + ["a 0"], "write one label on each line"),
        (["ILSVRC2012_val_00000001.JPEG 0"], "has no label for ILSVRC2012_val_00000002.JPEG"),
        ([], "write one label on each line"),
    ],
)
def test_a_wrong_list_is_refused(lines, message, sets, tmp_path):
    (tmp_path / "list").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        opened("imagenet", imagenet=sets / "flat", labels=tmp_path / "list")


def test_wrong_folders_are_refused(sets, real, tmp_path):
    for message, name, folders in (
        ("sets.v2=nowhere is not a folder: set it to the folder that holds ImageNet-V2", "v2", {"v2": "nowhere"}),
        (r"folder '\d+' in .* is not one of the 200 classes of ImageNet-A", "a", {"a": sets / "v2"}),
        (r"folder 'n\d+' in .*not one of the 200 classes of ImageNet-A", "a", {"a": sets / "r"}),
        (r"folder 'n\d+' in .*not one of the 200 classes of ImageNet-R", "r", {"r": sets / "sketch"}),
        (
            r"folder 'a' in .*not one of the 1000 classes of ImageNet: .*WordNet ids or 0 to 999",
            "imagenet",
            {"imagenet": sets},
        ),
        ("has no class folders: set sets.a", "a", {"a": sets / "flat"}),
        ("has no class folders: add sets.labels=FILE", "imagenet", {"imagenet": sets / "flat"}),
        ("labels=nowhere cannot be read", "imagenet", {"imagenet": sets / "flat", "labels": "nowhere"}),
        ("has labels of its own: leave it out", "imagenet", {"imagenet": sets / "v2", "labels": sets / "flat.txt"}),
        ("is not named like an ImageNet validation image", "real", {"real": sets / "v2"}),
    ):
        with pytest.raises(DataError, match=message):
            opened(name, **folders)
    (tmp_path / "v2" / "1000").mkdir(parents=True)
    with pytest.raises(DataError, match=r"folder '1000' in .* is not one of the 1000 classes"):
        opened("v2", v2=tmp_path / "v2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        opened("real", real=tmp_path / "empty")
    unlabelled = next(path for path in (real[0] / "val").iterdir() if path.name == real[1][5])
    write(tmp_path / "none" / unlabelled.name, coloured(0))
    with pytest.raises(DataError, match="ReaL has no label for any image"):
        opened("real", real=tmp_path / "none")


def test_the_sets_are_those_of_the_metadata():
    """The labels of the classes in timm's file of indices, and the number of images that ReaL labels."""
    for name in ("a", "r"):
        assert sorted(indices(name)) == indices(name) and len(indices(name)) == 200
    assert sum(map(bool, json.loads(info("imagenet_real_labels.json")))) == SETS["real"].images


def test_masks_are_timms_indices(sets):
    for name in ("a", "r"):
        images = opened(name, **{name: sets / name})
        assert images.classes.tolist() == indices(name)
        place = images.index.paths[0].split("/")[0]
        assert WNIDS[images.classes[images.answers[0]]] == place


def test_an_index_is_written_once(sets):
    config = EvalSetsConfig(real=str(sets / "flat"), v2=str(sets / "v2"))
    for name in ("real", "v2"):
        open_set(name, config, HERE)
        assert is_set_prepared(name, config, HERE)


def test_a_flat_folder_is_still_no_training_set(sets):
    with pytest.raises(DataError, match="has no class folders: it must hold <class>/<image>"):
        open_at(sets, "flat")


def test_only_models_of_imagenets_classes():
    refuse_other_than_imagenet(None, None)
    refuse_other_than_imagenet(1000, WNIDS)
    refuse_other_than_imagenet(1000, [str(i) for i in range(1000)])
    with pytest.raises(DataError, match="the model has 10"):
        refuse_other_than_imagenet(10, None)
    for other in (WNIDS[::-1], [f"class {i}" for i in range(1000)]):
        with pytest.raises(DataError, match="the model has other classes"):
            refuse_other_than_imagenet(1000, other)


def test_mistakes_end_before_the_model_is_built(sets, weights, here, monkeypatch):
    monkeypatch.setattr("engine.evaluation.evaluate.trained_model", lambda *_: pytest.fail("built"))
    for typed, message in (
        ((f"sets.a={sets}/a", "model.num_classes=10"), "the sets have ImageNet's 1000 classes, but the model has 10"),
        ((f"sets.a={sets}/a", "sets.r=nowhere"), "sets.r=nowhere is not a folder"),
        ((f"sets.labels={sets}/flat.txt",), "add sets.imagenet=FOLDER"),
        ((f"sets.a={sets}/a", "output=a.md"), "choose another extension than .md"),
    ):
        options = (*OPTIONS, f"checkpoint={weights}", *typed)
        with pytest.raises(ValueError, match=message):
            evaluate_checkpoint(eval_settings(composed(*options), None, options), None)


def test_a_table_is_markdown_and_aligned():
    table = markdown_table(("set", "n"), [("a", "10"), ("long name", "9")])
    assert table == "| set       |  n |\n| --------- | -: |\n| a         | 10 |\n| long name |  9 |"
