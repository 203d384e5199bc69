"""Weight files: every layout is read, no code in them runs, and weights that do not fit are named."""

import argparse
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import models
from models.weights.loading import named_for
from tests.authors import save, yacs_config
from tests.runs import same_tensors

SMALL = {"img_size": 28, "patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4), "num_classes": 5}


def small(**changes) -> nn.Module:
    return timm.create_model("lipsformer_swin_tiny", **(SMALL | changes))


W = {"a.weight": torch.arange(3.0), "b": torch.ones(1)}
OTHER = {"a.weight": torch.zeros(3), "b": torch.zeros(1)}
DDP = {f"module.{name}": value for name, value in W.items()}
WRAPPINGS = {
    "bare": W,
    "ordered": OrderedDict(W),
    "swin": {"model": W, "epoch": 3, "config": yacs_config(MODEL=yacs_config(DEPTHS=[2, 2]), LR=1e-3)},
    "ddp": {"state_dict": DDP, "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": []}},
    "compiled": {"state_dict": {f"_orig_mod.{name}": value for name, value in W.items()}},
    "cswin": {
        **{"epoch": 299, "arch": "CSWin_64", "state_dict": OTHER, "version": 2, "metric": 82.8},
        **{"args": argparse.Namespace(lr=2e-3, mean=(0.5, 0.5)), "state_dict_ema": DDP},
    },
    "deepspeed": {"module": W, "optimizer": None, "global_steps": 3},
    "no average": {"state_dict_ema": None, "state_dict": W},
    "ours": {"format": 1, "step": 7, "config": {"model": {"name": "x"}}, "model": OTHER, "ema": W},
    "ours without": {"format": 1, "step": 7, "config": {"model": {"name": "x"}}, "model": W, "ema": None},
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_every_layout_is_read(kind, tmp_path):
    assert same_tensors(models.read_weights(save(WRAPPINGS[kind], tmp_path / "w.pth")), W)
    assert "yacs.config" not in sys.modules


@pytest.mark.parametrize("kind", ["cswin", "ours"])
def test_weights_that_are_not_averaged_can_be_read_too(kind, tmp_path):
    assert same_tensors(models.read_weights(save(WRAPPINGS[kind], tmp_path / "w.pth"), averaged=False), OTHER)


def test_safetensors_are_read(tmp_path):
    safetensors.torch.save_file(W, tmp_path / "w.safetensors")
    assert same_tensors(models.read_weights(str(tmp_path / "w.safetensors")), W)


def test_files_of_old_torch_versions_are_read(tmp_path):
    """Before torch 1.6 a file was not a zip archive."""
    path = save(WRAPPINGS["swin"], tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same_tensors(models.read_weights(path), W)


def test_settings_become_plain_containers(tmp_path):
    content = models.read_file(save(WRAPPINGS["swin"], tmp_path / "w.pth"))
    assert type(content["config"]) is OrderedDict and type(content["config"]["MODEL"]) is OrderedDict
    content = models.read_file(save(WRAPPINGS["cswin"], tmp_path / "w.pth"))
    assert type(content["args"]) is OrderedDict


def test_reading_a_file_does_not_change_what_torch_trusts(tmp_path):
    path = save({"args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    models.read_file(path)
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


class Evil:
    """Copies a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (shutil.copyfile, (__file__, self.path))


class Unknown:
    pass


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda path: Evil(path), r"shutil\.copyfile"),
        (lambda path: print, "print"),
        (lambda path: Unknown(), r"\S*test_loading\.Unknown"),
        (lambda path: argparse.ArgumentParser, r"argparse\.ArgumentParser"),
        (lambda path: __import__("os").system, r"posix\.system"),
    ],
    ids=["run", "builtin", "class", "neighbour", "blocked"],
)
def test_any_other_code_is_refused_by_name(content, name, tmp_path):
    path = save({"state_dict": W, "extra": content(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(models.ModelError, match=rf"w.pth cannot be read: it holds {name}, which may run code") as error:
        models.read_weights(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_files_without_weights_are_refused_in_one_line(tmp_path):
    torch.save(W, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.safetensors").write_bytes(safetensors.torch.save(W)[:-4])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    torch.save({0: torch.ones(1)}, tmp_path / "unnamed.pth")
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    (tmp_path / "folder.pth").mkdir()
    expected = {
        **dict.fromkeys(("cut.pth", "cut.safetensors", "empty.pth", "text.pth"), "is damaged or holds no weights"),
        **dict.fromkeys(
            ("numbers.pth", "unnamed.pth", "nothing.pth", "list.pth"), "holds no weights: expected a dictionary"
        ),
        "folder.pth": "is a folder: give the path of a weight file",
        "missing.pth": "there is no file",
    }
    for name, message in expected.items():
        with pytest.raises(models.ModelError, match=message) as error:
            models.read_weights(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value) and "trust" not in str(error.value)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(1).expand(2**30),
        torch.zeros(2**12).as_strided((2**11, 2**11), (1, 1)),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
    ],
    ids=["repeated", "overlapping", "sparse", "without numbers"],
)
def test_tensors_that_are_not_what_their_file_holds_are_refused(weight, tmp_path):
    """A file of 1.5 kB may say that its number is repeated a billion times: a look at all would take the memory."""
    torch.save({"a": torch.ones(3), "b": weight}, tmp_path / "w.pt")
    with pytest.raises(
        models.ModelError, match=r"w.pt holds b not as an ordinary tensor with all its numbers: save it"
    ):
        models.read_weights(tmp_path / "w.pt")


def test_views_are_read(tmp_path):
    views = {"t": torch.arange(6.0).view(2, 3).T, "mean": torch.ones(1).expand(3, 1, 1), "part": torch.ones(9)[2:4]}
    torch.save(views, tmp_path / "w.pt")
    assert same_tensors(models.read_weights(tmp_path / "w.pt"), views)


def test_a_file_loads_into_a_model(tmp_path):
    weights = small().state_dict()
    other = small()
    models.load_weights(other, save({"model": weights}, tmp_path / "w.pth"))
    assert same_tensors(other.state_dict(), weights)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))])
@pytest.mark.parametrize("load", [models.load_weights, models.load_resized, models.start_from])
def test_weights_load_into_a_wrapped_model(load, wrap):
    weights, other = small().state_dict(), small()
    load(wrap(other), weights)
    assert same_tensors(other.state_dict(), weights)


@pytest.mark.parametrize("prefix", ["model.", "net._orig_mod."])
def test_weights_with_the_prefix_of_a_larger_module_load(prefix, tmp_path):
    """Lightning saves weights in this way."""
    weights, other = small().state_dict(), small()
    inner = {"state_dict": {prefix + name: value for name, value in weights.items()}, "epoch": 3}
    models.load_weights(other, save(inner, tmp_path / "w.ckpt"))
    assert same_tensors(other.state_dict(), weights)


def test_tables_that_the_model_computes_are_left_out():
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=12, num_heads=(1, 2, 4, 8))
    extra = {name: value for name, value in model.named_buffers() if name not in model.state_dict()}
    assert any(name.endswith("attn_mask") for name in extra)
    assert named_for(model, model.state_dict() | extra).keys() == model.state_dict().keys()


def test_a_checkpoint_of_another_model_names_the_keys(tmp_path):
    weights = small(embed_dim=24, num_heads=(2, 4)).state_dict()
    del weights["head.bias"]
    weights["extra.weight"] = torch.zeros(1)
    pattern = (
        r"holds weights of another model: 1 missing \(head.bias\); 1 unexpected \(extra.weight\); .* of another shape"
    )
    with pytest.raises(models.ModelError, match=f"^F {pattern}"):
        models.load_weights(small(), weights, "F")
    with pytest.raises(models.ModelError, match=f"w.pth {pattern}"):
        models.load_weights(small(), save(weights, tmp_path / "w.pth"))


def test_weights_without_batch_norms_counter_load(tmp_path):
    """BatchNorm has ``num_batches_tracked`` since torch 0.4.1."""
    model = timm.create_model("resnet10t", num_classes=3)
    weights = {name: torch.randn_like(v) for name, v in model.state_dict().items() if "num_batches" not in name}
    models.load_weights(model, save(weights, tmp_path / "w.pth"))
    assert same_tensors({name: v for name, v in model.state_dict().items() if name in weights}, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_load(dtype, tmp_path):
    model, weights = small(), {name: value.to(dtype) for name, value in small().state_dict().items()}
    models.load_weights(model, save(weights, tmp_path / "w.pth"))
    assert same_tensors(model.state_dict(), {name: value.float() for name, value in weights.items()})
