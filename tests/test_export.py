"""Exported models compute what they did: torch.export and ONNX, read back from their files."""

import subprocess
import sys

import pytest
import timm
from runs import PROJECT, environment
from test_bench_models import SMALL

import models
from scripts.export import TOLERANCE, export

CASES = {
    "lipsformer_swin": ("lipsformer_swin_tiny", SMALL["lipsformer_swin_tiny"]),
    "lipsformer_swin, certified": (
        "lipsformer_swin_tiny",
        SMALL["lipsformer_swin_tiny"] | {"attention": "certified", "epsilon": 0.1},
    ),
    "lipsformer_cswin": ("lipsformer_cswin_tiny", SMALL["lipsformer_cswin_tiny"]),
    "cswin": ("cswin_tiny", SMALL["lipsformer_cswin_tiny"]),
    "vit": ("deit_tiny", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "vit, convolutional stem": (
        "deit_small_convstem",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "stem_width": 8},
    ),
    "vit, sigma_reparam": (
        "deit_tiny",
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "stabilizer": "sigma_reparam"},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_every_family_exports(family, tmp_path):
    name, sizes = CASES[family]
    assert models.FAMILIES
    found = export(timm.create_model(name, num_classes=5, **sizes).eval(), sizes["img_size"], tmp_path / "model")
    assert max(found.values()) < TOLERANCE
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "model.onnx"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "lipsformer_swim_tiny"], "there is no model 'lipsformer_swim_tiny': did you mean"),
        (["--model", "cswin_tiny", "--weights", "none.pt"], "there is no file none.pt"),
    ],
)
def test_mistakes_get_one_line(options, message, tmp_path):
    script = str(PROJECT / "scripts/export.py")
    out = subprocess.run(
        [sys.executable, script, *options], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert out.returncode == 2 and message in out.stderr and len(out.stderr.splitlines()) == 1
