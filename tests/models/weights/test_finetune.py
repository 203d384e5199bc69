"""A run that starts from weights: the classifier and position tables are adapted, everything else must match."""

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from engine.checkpoints.saved_model import model_settings, open_trained
from engine.checkpoints.starting_weights import StartingWeights
from engine.errors import UserError
from models import ModelError, build_model, load_weights, start_from
from models.weights.loading import classifiers
from tests.runs import SMALL, checkpoint, losses, run_here, same_tensors, train_here

SIZES = {"img_size": 28, "patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4), "num_classes": 5}
# A learning rate so small that the weights do not change visibly.
STILL = ("optim.lr=1e-12", "optim.min_lr=0", "max_steps=1")


def small(**changes) -> nn.Module:
    return timm.create_model("lipsformer_swin_tiny", **(SIZES | changes))


def test_matching_weights_load_without_a_notice(tmp_path):
    old, new = small(), small()
    torch.save(old.state_dict(), tmp_path / "w.pth")
    assert start_from(new, tmp_path / "w.pth") == []
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("lipsformer_swin_mini", {}, {"img_size": 56, "window_size": 14, "in_chans": 1}),
        ("deit_tiny", {"depth": 1, "img_size": 32}, {"depth": 1, "img_size": 48, "num_classes": 7}),
        ("flexivit_small", {"depth": 1, "img_size": 48}, {"depth": 1, "img_size": 80}),
    ],
)
def test_timm_adapts_a_file_as_start_from_does(name, old, new, tmp_path):
    weights = timm.create_model(name, **({"num_classes": 5} | old)).state_dict()
    torch.save(weights, tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth"), "num_classes": 5}
    options = {"num_classes": 5} | new
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).state_dict()
    ours = timm.create_model(name, **(options | {"in_chans": 3}))
    start_from(ours, weights)
    for key, value in ours.state_dict().items():
        assert key.startswith(("head.", "patch_embed.")) or torch.equal(loaded[key], value), key


@pytest.mark.parametrize(
    ("name", "head", "kwargs"),
    [
        ("lipsformer_swin_mini", "head", {}),
        ("resnet18", "fc", {}),
        ("swin_tiny_patch4_window7_224", "head.fc", {"embed_dim": 12, "num_heads": (1, 2, 4, 8)}),
        ("deit_tiny_distilled_patch16_224", "head", {"depth": 1}),
        ("deit_tiny", "head", {"depth": 1, "stabilizer": "sigma_reparam"}),
    ],
)
def test_a_head_for_other_classes_is_newly_initialised(name, head, kwargs):
    old, new = (timm.create_model(name, num_classes=classes, **kwargs) for classes in (7, 4))
    fresh = new.get_submodule(head).state_dict()
    fresh = {key: value.clone() for key, value in fresh.items()}
    assert start_from(new, old.state_dict(), "F") == ["the classifier is newly initialised: 4 classes instead of 7"]
    assert same_tensors(new.get_submodule(head).state_dict(), fresh)
    of_heads = tuple(f"{name}." for name in classifiers(new))
    headless = {key: value for key, value in old.state_dict().items() if not key.startswith(of_heads)}
    assert start_from(new, headless, "F") == ["the classifier is newly initialised: F has none"]
    assert same_tensors(new.get_submodule(head).state_dict(), fresh)
    body = {key: value for key, value in new.state_dict().items() if not key.startswith("head") and key[:3] != "fc."}
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in body.items())


def test_any_other_difference_is_an_error():
    for changes in ({"embed_dim": 24}, {"depths": (1, 2)}, {"num_heads": (4, 4)}):
        with pytest.raises(ModelError, match="F holds weights of another model"):
            start_from(small(), small(**changes).state_dict(), "F")
    half = {key: value for key, value in small().state_dict().items() if key != "head.bias"}
    with pytest.raises(ModelError, match=r"1 missing \(head.bias\)"):
        start_from(small(), half, "F")


def test_bias_tables_are_interpolated_to_the_window_size():
    """A table that grows linearly with the offset still does so after the interpolation."""
    old, new = small(window_size=7), small(window_size=4, img_size=32)
    name = "stages.0.0.attn.branch.relative_position_bias_table"
    offsets = torch.arange(-6.0, 7)
    plane = offsets[:, None] + 10 * offsets[None, :]
    weights = old.state_dict() | {name: plane.reshape(-1, 1).repeat(1, 2)}
    notices = start_from(new, weights, "F")
    assert notices == ["2 relative position bias tables were resized to the model's windows"]
    table = new.state_dict()[name].view(7, 7, 2)
    assert table[3, 3].tolist() == pytest.approx([0, 0], abs=1e-4)  # a token's bias towards itself
    assert torch.allclose(table, -table.flip(0, 1), atol=1e-3)
    assert (table.diff(dim=0) > 0).all() and (table.diff(dim=1) > 0).all()


def test_bias_tables_of_timms_swin_are_interpolated_too():
    def swin(size: int, window: int) -> nn.Module:
        sizes = {"embed_dim": 12, "num_heads": (1, 2, 4, 8)}
        return timm.create_model("swin_tiny_patch4_window7_224", img_size=size, window_size=window, **sizes)

    notices = start_from(swin(256, 8), swin(224, 7).state_dict())
    assert notices == ["12 relative position bias tables were resized to the model's windows"]


def test_position_embeddings_are_interpolated_to_the_image_size():
    for name, prefix in (("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2), ("deit3_small", 0)):
        old, new = (timm.create_model(name, img_size=size, depth=1) for size in (64, 96))
        notices = start_from(new, old.state_dict())
        assert notices == [f"pos_embed was resized from {16 + prefix} to {36 + prefix} tokens"]
        expected = resample_abs_pos_embed(old.pos_embed, [6, 6], num_prefix_tokens=prefix)
        torch.testing.assert_close(new.pos_embed, expected)
        assert torch.equal(new.pos_embed[:, :prefix], old.pos_embed[:, :prefix])


def test_a_table_that_cannot_be_resized_is_refused_in_one_line():
    model = timm.create_model("deit_tiny_patch16_224", img_size=64, depth=1)
    weights = model.state_dict() | {"pos_embed": torch.zeros(1, 12, 192)}
    with pytest.raises(ModelError, match="the position tables of F cannot be resized") as error:
        start_from(model, weights, "F")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def pretrained(small_images, tmp_path_factory) -> Path:
    """A checkpoint of ten classes, with a moving average."""
    run_dir = tmp_path_factory.mktemp("pretrained") / "a"
    train_here(*SMALL, f"data.root={small_images}", f"output_dir={run_dir}", "ema=0.5", "max_steps=2")
    return run_dir


@pytest.fixture(scope="module")
def three_classes(small_images, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("three")
    for split in ("train", "val"):
        for folder in sorted((small_images / split).iterdir())[:3]:
            shutil.copytree(folder, root / split / folder.name)
    return root


def test_a_run_starts_from_weights(pretrained, three_classes, tmp_path):
    """With the real command: it uses the averaged weights and a new classifier, and a resume does not need the file."""
    shutil.copy(pretrained / "checkpoints/last.pt", tmp_path / "start.pt")
    command = (*SMALL, *STILL, "model.num_classes=3", f"data.root={three_classes}", "name=b", "checkpoint=start.pt")
    out = run_here("train.py", *command, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert (
        f"starting from the moving average of the weights in {tmp_path}/start.pt\n"
        "the classifier is newly initialised: 3 classes instead of 10\n" in out.stdout
    )
    assert "newly initialised" in (tmp_path / "outputs/b/train.log").read_text()
    before, after = checkpoint(pretrained)["ema"], checkpoint(tmp_path / "outputs/b")["model"]
    assert after["head.weight"].shape[0] == 3
    for name in before.keys() - {"head.weight", "head.bias"}:
        torch.testing.assert_close(after[name], before[name], atol=1e-9, rtol=0)
    (tmp_path / "start.pt").unlink()
    again = run_here("train.py", *command, "max_steps=2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "continuing from step 1" in again.stdout and "starting from" not in again.stdout


@pytest.mark.parametrize("is_ours", [True, False])
def test_only_weights_of_others_are_compared_with_their_registration(is_ours, pretrained, small_images, here, capsys):
    file = pretrained / "checkpoints/last.pt"
    if not is_ours:
        torch.save(checkpoint(pretrained)["ema"], file := here / "bare.pth")
    grey = ("data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]", "model.num_classes=10")
    train_here(*SMALL, *STILL, *grey, f"data.root={small_images}", "name=b", f"checkpoint.start={file}")
    assert ("other colours than lipsformer_swin_mini is registered with" in capsys.readouterr().out) != is_ours


def test_a_classifier_of_other_classes_is_kept_but_not_in_silence(pretrained):
    file = str(pretrained / "checkpoints/last.pt")
    start = StartingWeights.read(file)
    assert start.classes is not None and len(start.classes) == 10
    model = build_model(model_settings(open_trained(file)), 10, 28)
    others = ["other", *start.classes[1:]]
    said = f"the classifier is kept, although it was trained on other classes ({start.classes[0]}, not other)"
    source = f"starting from the moving average of the weights in {file}"
    assert start.load_into(model, start.classes) == [source]
    assert start.load_into(model, others) == [source, said]


def test_weights_that_only_lack_classes_say_how_many_they_have():
    with pytest.raises(ModelError, match=r"; its classifier has 5 classes \(model.num_classes=5\)$"):
        load_weights(small(num_classes=7), small().state_dict())
    with pytest.raises(ModelError) as refused:
        load_weights(small(num_classes=7), small(depths=(1, 2)).state_dict())
    assert "its classifier" not in str(refused.value)


def test_the_starting_weights_are_part_of_a_runs_recipe(pretrained, small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=b", "max_steps=1")
    train_here(*common, f"checkpoint.start={pretrained}/checkpoints/last.pt")
    with pytest.raises(UserError, match=r"another recipe: checkpoint.start \S+last.pt → None"):
        train_here(*common)
    train_here(*common, f"checkpoint.start={pretrained}/checkpoints/last.pt", "checkpoint.keep=2", "max_steps=2")


def test_a_moving_average_starts_from_the_weights(pretrained, small_images, here):
    train_here(
        *(*SMALL, *STILL, f"data.root={small_images}", "name=b", "ema=0.9"),
        f"checkpoint.start={pretrained}/checkpoints/last.pt",
    )
    for name, value in checkpoint(pretrained)["ema"].items():
        torch.testing.assert_close(checkpoint(Path("outputs/b"))["ema"][name], value, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [("none.pth", r"there is no file \S*/none.pth"), (".", "is a folder"), ("text.pth", "text.pth cannot be read")],
)
def test_the_file_is_read_before_any_image(value, message, here):
    Path("text.pth").write_text("no weights")
    with pytest.raises(ModelError, match=message):
        train_here(*SMALL, "data.root=/no/such/place", "name=b", f"checkpoint.start={value}")
    assert not Path("outputs").exists()


def test_a_file_of_another_model_is_refused_before_training(pretrained, small_images, here):
    with pytest.raises(ModelError, match=r"last.pt holds weights of another model: .*missing"):
        train_here(
            *(*SMALL, f"data.root={small_images}", "name=b", "model.depths=[1,2]"),
            f"checkpoint.start={pretrained}/checkpoints/last.pt",
        )
    assert not Path("outputs").exists()


def test_evaluation_does_not_replace_the_classifier(pretrained, three_classes, tmp_path):
    torch.save(checkpoint(pretrained)["model"], tmp_path / "w.pth")
    options = ("model=lipsformer_swin_mini", "model.depths=[1,1]", "model.embed_dim=12", "model.num_heads=[1,2]")
    data = ("data=folder", f"data.root={three_classes}", "data.crop=28", "data.resize=28", "max_workers=0")
    out = run_here("eval.py", *options, *data, "checkpoint=w.pth", cwd=tmp_path)
    assert out.returncode == 2 and re.search(r"2 of another shape \(head.weight \(10, ", out.stderr), out.stderr


def test_the_example_goes_on_from_a_quickstart_and_every_layer_has_its_rate(small_images, here):
    small = [option for option in SMALL if not option.startswith("experiment=")]
    common = (*small, f"data.root={small_images}", "max_steps=8")
    train_here("experiment=quickstart", *common, "name=first", "optim.lr=4e-3")
    start = "checkpoint.start=outputs/first/checkpoints/last.pt"
    train_here("experiment=finetune_example", *common, start, "name=tuned")
    first, tuned = (losses(here / "outputs" / name) for name in ("first", "tuned"))
    assert tuned[1] < first[1] - 0.1
    groups = checkpoint(here / "outputs/tuned")["stepper"]["optimizer"]["param_groups"]
    scales = {group["lr_scale"] for group in groups}
    assert max(scales) == 1 and len(scales) > 3
    assert len({round(group["lr"] / group["lr_scale"], 12) for group in groups}) == 1
