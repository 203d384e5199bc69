"""The examples of docs/extending.md: its blocks are applied to a copy of the project, and its commands train there."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import PROJECT, SMALL, environment, metrics, train_here

TEXT = (PROJECT / "docs/extending.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in TEXT.split("\n## ")[1:]}
BLOCK = re.compile(r"^`(?P<file>[^`\n]+)`(?P<new>, new)?:\n|^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
DIFF = re.compile(r"(?: (?P<before>[^\n]+\n))?(?P<added>(?:\+[^\n]*\n)+)(?: (?P<after>[^\n]+\n))?")
COMMAND = re.compile(r"^    python train.py (.*)$", re.M)
CODE = ("pyproject.toml", "train.py", "conf", "data", "engine", "models", "optim", "stability", "tests")
RUFF = (sys.executable, "-m", "ruff")

# Two steps of any model on few images, in a run without instruments.
TINY = {
    **{"data": "folder", "data.crop": "28", "data.resize": "28", "data.backend": "torch"},
    **{"max_workers": "0", "batch_size": "32", "augment.mix_group": "8", "epochs": "2", "max_steps": "2"},
    **{"log_every": "1", "logger": "none", "eval.batch_size": "64", "device": "cpu", "monitor.every": "0"},
}


def blocks(section: str) -> list[tuple[str, bool, str, str]]:
    """File, whether it is new, language and text of each block of a section."""
    found, file, new = [], "", False
    for match in BLOCK.finditer(section):
        if match["file"]:
            file, new = match["file"], match["new"] is not None
        else:
            found.append((file, new, match["kind"], match["text"]))
    return found


def apply(root: Path, file: str, new: bool, kind: str, text: str) -> None:
    """Write a new file, or put the lines of a diff after the line before them; if that is gone, before the next one."""
    path = root / file
    if new:
        assert not path.exists() and kind != "diff", file
        path.write_text(text)
        return
    assert kind == "diff", f"{file} is no new file: show a diff"
    match = DIFF.fullmatch(text)
    assert match, f"show one line, the lines to add and one line, not\n{text}"
    added = re.sub(r"^\+", "", match["added"], flags=re.M)
    content = path.read_text()
    for anchor, both in ((match["before"], "{0}{1}"), (match["after"], "{1}{0}")):
        if anchor and len(places := re.split(f"^{re.escape(anchor)}", content, flags=re.M)) == 2:
            path.write_text(both.format(anchor, added).join(places))
            return
    raise AssertionError(f"in {file}, these lines have no neighbour of the page that stands there once:\n{added}")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with all extensions."""
    root = tmp_path_factory.mktemp("extended")
    for name in CODE:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        else:
            shutil.copy(source, root)
    shutil.copytree(PROJECT / "data/assets", root / "data/assets")
    for section in SECTIONS.values():
        for block in blocks(section):
            apply(root, *block)
    # Where an import stands depends on those around it, which are not of the page.
    changed = [file for section in SECTIONS.values() for file, new, *_ in blocks(section) if not new]
    subprocess.run([*RUFF, "check", "--select", "I", "--fix", *changed], cwd=root, check=True, capture_output=True)
    return root


def loaded(root: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import a new file of the copy under its own name, beside the modules of this process."""
    name = file.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, root / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


def test_the_table_counts_the_files() -> None:
    rows = re.findall(r"^\| \[(.*?)\]\(.*?\) \| (\d+) \| (\d+) \|", TEXT, re.M)
    said = {name: (int(touched), int(new)) for name, touched, new in rows}
    files = {name[0].lower() + name[1:]: {(f, new) for f, new, *_ in blocks(s)} for name, s in SECTIONS.items()}
    assert said == {name: (len(found), sum(new for _, new in found)) for name, found in files.items()}
    assert len(said) == 7 and max(touched for touched, _ in said.values()) <= 4
    assert all(sum(new and f.endswith(".py") for f, new in found) == 1 for found in files.values())


def test_the_blocks_fit_the_project_as_it_is(extended: Path) -> None:
    """And keep to its style."""
    files = [file for section in SECTIONS.values() for file, *_ in blocks(section) if file.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        result = subprocess.run([*RUFF, *check, *files], cwd=extended, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_lines_of_others_beside_an_anchor_do_not_matter(tmp_path: Path) -> None:
    diff = " a\n+new\n z\n"
    for before, after in (
        ("a\nz\n", "a\nnew\nz\n"),
        ("a\nmine\nz\n", "a\nnew\nmine\nz\n"),
        ("mine\nz\n", "mine\nnew\nz\n"),
        ("a\na\nmine\nz\n", "a\na\nmine\nnew\nz\n"),
    ):
        (tmp_path / "file").write_text(before)
        apply(tmp_path, "file", False, "diff", diff)
        assert (tmp_path / "file").read_text() == after
    (tmp_path / "file").write_text("a \nmine\n")
    with pytest.raises(AssertionError, match="no neighbour of the page"):
        apply(tmp_path, "file", False, "diff", diff)


def test_the_logger_and_the_callback_watch_a_run(
    extended: Path, small_images: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {}
    for name, key in (("A logger", "csv"), ("A callback", "lowest")):
        for file, _, kind, text in blocks(SECTIONS[name]):
            if kind == "python":
                loaded(extended, file, monkeypatch)
            chosen |= dict(re.findall(rf"({key})[:=] ?(engine\.[\w.]+)", text + SECTIONS[name]))
    callbacks = [f"+callbacks.{name}={path}" for name, path in chosen.items()]
    common = (*SMALL, *callbacks, f"data.root={small_images}", "name=a", "monitor.every=0")
    train_here(*common, "max_steps=2")
    check_losses(here / "outputs/a")
    with open(here / "outputs/a/losses.csv", "a") as file:
        file.write("3,9.0,0.1\n")  # a step after the checkpoint, which comes again
    train_here(*common, "max_steps=4")
    check_losses(here / "outputs/a")


def check_losses(run: Path) -> None:
    """The losses in the CSV file are those of the metrics, and the lowest is named at the end."""
    lines = metrics(run, "train")
    with open(run / "losses.csv", newline="") as file:
        assert [(int(step), float(loss)) for step, loss, _ in csv.reader(file)] == [
            (line["step"], line["loss"]) for line in lines
        ]
    lowest = min(lines, key=lambda line: line["loss"])
    assert f"lowest loss {lowest['loss']:.4f} at step {lowest['step']}" in (run / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_trains(extended: Path, small_images: Path) -> None:
    """One process takes all of them, one after the other: imports cost more than two steps."""
    images = [(path, path.relative_to(small_images).parts) for path in sorted(small_images.rglob("*.png"))]
    lines = (f"{split},{name},{os.path.relpath(path, extended)}\n" for path, (split, name, _) in images)
    (extended / "images.csv").write_text("".join(lines))
    commands = []
    for number, typed in enumerate(COMMAND.findall(TEXT)):
        options = {"data.root": str(small_images)} | dict(option.split("=", 1) for option in shlex.split(typed))
        commands.append([f"{key}={value}" for key, value in ({"name": f"run{number}"} | TINY | options).items()])
    assert len(commands) == 8
    program = (
        "import json, sys; from pathlib import Path; from tests.runs import run_here\n"
        "for command in json.load(sys.stdin):\n"
        "    out = run_here('train.py', *command, cwd=Path.cwd())\n"
        "    print(command, out.stdout, out.stderr)\n"
        "    out.check_returncode()\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program],
        **{"cwd": extended, "env": environment(), "input": json.dumps(commands), "capture_output": True, "text": True},
    )
    assert out.returncode == 0, out.stdout + out.stderr
    for text in ("mean_vit, ", "conf/recipe/plain.yaml", "augment.auto_augment=gamma", "optim.lr=0.001"):
        assert text in out.stdout, text
    assert "data: folder, 320 training and 80 validation images, 10 classes, read by torch" in out.stdout
    runs = sorted(path.parent for path in (extended / "outputs").glob("*/metrics.jsonl"))
    assert len(runs) == len(commands)
    assert all([line["step"] for line in metrics(run, "train")] == [1, 2] for run in runs), runs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_projects_tests_take_what_was_added(extended: Path) -> None:
    files = (
        *("models/test_families.py", "models/test_timm_citizens.py", "models/test_models.py"),
        *("data/test_plan.py", "optim/test_torch_optimizer_cases.py"),
    )
    named = "mean_vit or signum or these_are_all or every_family or these_plans or global_batch"
    command = ["-m", "pytest", "-q", "-m", "not slow", "-k", named, *(f"tests/{file}" for file in files)]
    out = subprocess.run([sys.executable, *command], cwd=extended, env=environment(), capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
