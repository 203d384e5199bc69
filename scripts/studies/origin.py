"""With what a cell was trained: commit, machine and data."""

import hashlib
import io
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from data import DataConfig, open_split
from data.sources import EncodedSource
from engine.run_dir import RunDirectory
from scripts.studies.results import Origin
from scripts.studies.study import PROJECT

MOST_IMAGES = 100_000  # of a larger set the pixels are not read: it takes too long


def origin_of(run_dir: Path, threads: int, commit: str) -> Origin:
    """The origin of a run that has ended, and that began at ``commit``."""
    cfg = DataConfig(**RunDirectory(run_dir).settings()["data"])
    pixels = _pixels(cfg.name, cfg.root, cfg.archive, cfg.archive_sha256, cfg.train_split)
    return Origin(commit, processor(), threads, torch.__version__, pixels)


def commit_now() -> str:
    """The commit of this checkout, ten digits; ``+`` follows if files were changed since. It may change meanwhile."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return (_git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if changed else "")


@cache
def rules_at(commit: str, study: str) -> tuple[dict[str, Any], ...] | None:
    """The rules of a study's claims at a commit; none if it had no such file.

    Returns:
        None if git does not know the commit: there is no git, or this is a clone without its history.
    """
    commit = commit.removesuffix("+")
    if not _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
        return None
    written = _git("show", f"{commit}:conf/study/{study}.yaml")
    return tuple(claim["rule"] for claim in yaml.safe_load(written).get("claims", ())) if written else ()


def _git(*arguments: str) -> str:
    """What git answers; nothing if it fails."""
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def processor() -> str:
    """The type of the CPU, such as ``AMD EPYC, family 25, model 17, AVX512``, or the name of the GPU.

    A virtual machine may hide the name. Family and model still tell apart processors whose sums differ in the last bit.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        first, *_ = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")
    except OSError:
        first = ""
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = said.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {said[key]}" for key, word in (("cpu family", "family"), ("model", "model")) if key in said]
    return ", ".join([name, *numbers, torch.backends.cpu.get_cpu_capability()])


@cache
def _pixels(name: str, root: str | None, archive: str | None, archive_sha256: str | None, train_split: str) -> str:
    """SHA-256 of all decoded pixels of the training split, in the order of the index. The arguments are ``data.*``."""
    cfg = DataConfig(name=name, root=root, archive=archive, archive_sha256=archive_sha256, train_split=train_split)
    source = open_split(cfg, train_split).source
    if not isinstance(source, EncodedSource) or len(source) > MOST_IMAGES:
        return ""
    digest = hashlib.sha256()
    for i in range(len(source)):
        digest.update(np.asarray(Image.open(io.BytesIO(source.read(i))).convert("RGB")).tobytes())
    return digest.hexdigest()[:12]
