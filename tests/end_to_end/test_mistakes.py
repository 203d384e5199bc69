"""A user's mistake ends in one line that says what to do and in exit code 2; nothing is lost."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DataError
from engine.errors import USER_ERRORS, UserError
from tests.runs import SMALL, run, run_here, train_here

NO_ERROR = re.compile(r"Traceback|Error executing|HYDRA_FULL_ERROR")


@pytest.fixture
def fails(tmp_path, monkeypatch):
    """Run an entry in this process until it exits with an error, and return what it wrote to stderr."""

    def attempt(*overrides: str, entry: str = "train") -> str:
        monkeypatch.delenv("IMAGENET_DIR", raising=False)
        said = run_here(f"{entry}.py", *overrides, cwd=tmp_path)
        assert said.returncode == 2, said
        assert not NO_ERROR.search(said.stderr), said.stderr
        assert said.stderr.count("\n") == 1 and said.stderr.startswith("error: "), said.stderr
        return said.stderr

    return attempt


MISTAKES = [
    (["epochs=abc"], r"epochs: 'abc' is not a whole number"),
    (["epochss=3"], r"no option 'epochss': did you mean epochs"),
    (["model.embed_dimm=3"], r"no option 'model.embed_dimm': did you mean model.embed_dim"),
    (["model=swin_tiny", "model.attention=certified"], r"no option 'model.attention'(?!.*did you mean model.att)"),
    (["model=timm", "model.kwargs.width=3"], r"type \+model.kwargs.width=…, with a \+ in front"),
    (["optim=adamw3"], r"did you mean adamw or adamw2\?$"),
    (["logger=[wandb,none"], r"brackets must be closed"),
    (["+callbacks.metrics=engine.callbacks.progress.Progress"], r"choose another name"),
    (["data.archive=a.tar", "data.archive_sha256=null"], r"belong together: set both"),
    (["model="], r"model= is unknown: choose cswin_base, "),
    (
        ["model.name=cswin_tiny"],
        r"model.name=cswin_tiny does not choose a model: set model=cswin_tiny, or model=timm",
    ),
    (["betas=[0.9,0.98]"], r"no option 'betas': did you mean optim.betas"),
    (["+foo=3"], r"no option 'foo'"),
    (["augment.erase=0.25"], r"augment\.erase has a new name: type augment\.random_erasing=…"),
    (
        ["augment.reprob=0.25"],
        r"no option 'augment\.reprob': timm's reprob is augment\.random_erasing here, see docs/timm",
    ),
    (["experiment=quickstart", "model.epochs=3"], r"there is no option 'model\.epochs'"),  # the file sets epochs
    (["data.mean=[123.675,116.28,103.53]"], r"data\.mean=.* is for pixels from 0 to 255; .*: set \[0\.485, "),
    (["compile=yes"], r"compile=yes is unknown: choose auto, true, false$"),
    (["channels_last=maybe"], r"channels_last: 'maybe' is not true or false"),
    (["data.mean=0.5"], r"data\.mean takes a list of values in brackets, such as 'data\.mean=\[0\.5,0\.5\]'"),
    (["checkpoint=https://a.b/c.pth"], r"is a web address: download the file"),
    (["--config-name=eval"], r"train\.py reads conf/train\.yaml: leave out --config-name"),
    (["data.backend=dalli"], r"data.backend=dalli is unknown: did you mean dali"),
    (["batch_size=0"], r"batch_size=0 must be more than 0"),
    (["resume=atuo"], r"resume=atuo is unknown: choose auto, never"),
    (["augment.scale=[1,0.08]"], r"augment.scale=\[1.0, 0.08\] must begin with the smaller"),
    (["data=synthetic", "data.synthetic_classes=1"], r"images have only one class: a classifier needs 2 or more"),
    (["micro_batch_size=8"], r"micro_batch_size=8 is smaller than augment.mix_group=32"),
    (["micro_batch_size=most"], r"micro_batch_size=most is unknown: choose auto, a number more than 0"),
    (["optim.lr=1e-6"], r"the smallest learning rate, \S+, is above the peak of 1e-06.*: add optim\.min_lr=1e-08"),
    (["study=adamw2"], r"a study is many trainings: type python scripts/lab\.py NAME"),
    (["micro_batch_size=12.5"], r"micro_batch_size: '12.5' is neither a whole number nor a word that --help lists"),
    (["model=timm"], r"model.name is not set"),
    (["model=timm", "model.name=resnet5"], r"no model 'resnet5': did you mean resnet50"),
    (
        ["augment.auto_augment=rand-m9-w0"],
        r"=rand-m9-w0: 'w0' is unknown: choose parts such as m9, mstd0.5",
    ),
    (["data=synthetic", "data.crop=230"], r"image size 230 does not fit: .* such as 224 or 448"),
    (["data=synthetic", "data.resize=200"], r"data.resize=200 is smaller than data.crop=224"),
    (["data=synthetic", "model.num_classes=10"], r"model has 10 classes"),
    (["data=synthetic", "batch_size=20480"], r"batch_size=20480 is more than the 10240 training images"),
    ([], r"no images for data=imagenet: set data.root=.* or the environment variable IMAGENET_DIR.*quickstart"),
    (["epochs"], r"'epochs' cannot be read: type epochs=VALUE"),
    (["checkpoint={every_steps:0}"], r"checkpoint.every_steps=0 must be more than 0"),
    (["checkpoint=runs/epoch=3.ckpt", "data=synthetic"], r"there is no file \S*/runs/epoch=3.ckpt"),
    (["data.root=/tmp/a(b)"], r"data.root=/tmp/a\(b\) is not a folder"),
    (["data.root=/tmp/" + "x" * 300], r"data.root=\S* is too long: .* a name in it 255"),
    (["name=" + "x" * 300], r"name=x*… is too long"),
    (["name="], r"name is empty: leave it out"),
    (["name='a"], r"""name='a cannot be read: type 'name="'"'"'a"'$"""),
    (["name=[a,b]"], r"""name takes one value: put text with brackets .*, 'name="\[a,b\]"'"""),
    (["name=${foo}"], r"Interpolation key 'foo' not found"),
    (["name=a${foo"], r"name=a\$\{foo cannot be read: '\$\{' stands for the value of another option"),
    (["data.root=1.10,b"], r"""=1.10,b has several values: add -m .* or type 'data.root="1.10,b"' for one"""),
    (["optim.betas=0.9,0.98"], r"add -m to run each of them, or type 'optim.betas=\[0.9,0.98\]' for a list"),
    (["wandb.mode=online"], r"no option 'wandb\.mode': did you mean logger\.mode\?$"),
    (["train.epochs=3"], r"no option 'train\.epochs': did you mean epochs\?$"),
    (["benchmark=true"], r"'benchmark' is an option of eval\.py, not of train\.py: leave it out$"),
    (["monitor=false"], r"monitor is a group of options: type monitor\.NAME=…, --help lists them$"),
    (["data=/path/to/imagenet"], r"data=/path/to/imagenet is unknown: type data\.root=/path/to/imagenet, and data=fol"),
    (["experiment=quickstart.yaml"], r"experiment=quickstart\.yaml has an ending: type experiment=quickstart$"),
    (["experiment=conf/quickstart"], r"experiment=conf/quickstart is unknown: did you mean quickstart\?$"),
    (["model=resnet50"], r"no file conf/model/resnet50.yaml: type model=timm model.name=resnet50, or write that file"),
    (["logger=wandb,tensorboard"], r"add -m to run each of them, or type 'logger=\[wandb,tensorboard\]' for a list"),
    ([""], r"'' cannot be read: type OPTION=VALUE"),
    (["epochs =3"], r"'epochs =3' cannot be read: type OPTION=VALUE, without spaces"),
    (["logger.project=null"], r"logger.project cannot be null"),
    (["logger.project=a/b"], r"logger.project=a/b must have .* none of"),
    (["model=null"], r"a config group cannot be null"),
    (["--resolve"], r"--resolve flag can only be used"),
    (["--epochs=3"], r"no flag --epochs=3: options are typed without dashes, epochs=3"),
    (["-cd", "nowhere"], r"config directory '\S*nowhere' not found"),
    (["hydra/launcher=joblib"], r"hydra/launcher=joblib is unknown"),
    (["-m", "model=glob(nothing*)"], r"the sweep has no runs: its glob\(…\), range\(…\) or list holds no value$"),
    (["-m", "seed=1,1"], r"the sweep over seed contains 1 twice"),
    (["seed=1,2", "-m", "output_dir=x"], r"output_dir=x would be the directory of every run"),
    (["-m", "seed=1,2", "hydra.sweeper.max_batch_size=0"], r"AssertionError"),
]
# Other options that break the same rules.
FURTHER_MISTAKES = [
    (["+experiment=quickstart"], r"experiment has a value already: type experiment=… once, without a"),
    (["model=cswin_tiny", "model.embed_dimm=3"], r"did you mean model.embed_dim"),
    (["model.pach_size=3"], r"did you mean model.patch_size\?$"),
    (["recipe=deitt"], r"recipe=deitt is unknown: did you mean deit"),
    (["model=lipsformer_swim_tiny"], r"model=lipsformer_swim_tiny is unknown: did you mean lipsformer_swin_tiny"),
    (["augment.scale=[1.5,3]"], r"augment\.scale=.* must be 2 numbers of more than 0, and 1 at most"),
    (["ema=1"], r"ema=1\.0 must be 0 or more, and less than 1"),
    (["data=imagnet"], r"data=imagnet is unknown: did you mean imagenet"),
    (["amp=bf61"], r"amp=bf61 is unknown: did you mean bf16"),
    (["optim.betas=[0.9,1.5]"], r"optim.betas=\[0.9, 1.5\] must be 2 numbers of 0 or more, and less than 1"),
    (["optim.betas=[0.9]"], r"optim.betas=\[0.9\] must be 2 numbers"),
    (["data.std=[1,0,1]"], r"data.std=\[1.0, 0.0, 1.0\] must be 3 numbers of more than 0"),
    (["data.backend=synthetic"], r"data.backend=synthetic is unknown"),
    (["augment.random_erasing=1.5"], r"augment.random_erasing=1.5 must be between 0 and 1"),
    (
        ["augment.auto_augment=augmix-m5"],
        r"=augmix-m5 is unknown: choose rand-m9-mstd0.5-inc1 with timm's",
    ),
    (["augment.color_jitter=-1"], r"augment.color_jitter=-1.0 must be 0 or more"),
    (["data=synthetic", "model.img_size=448"], r"model.img_size=448 differs from data.crop=224"),
    (["data=synthetic", "data.crop_ratio=1.1"], r"data.crop_ratio=1.1 must be more than 0, and 1 at most"),
    (
        ["model=cswin_tiny", "data=synthetic", "model.stripes=[1,3,7,7]"],
        r"stripes of width 3 do not divide its map",
    ),
    (
        ["data=synthetic", "model.attention=certifed"],
        r"model.attention=certifed is unknown: did you mean certified",
    ),
    (["data=synthetic", "data.subset=0.05"], r"batch_size=1024 is more than the 1000 training images"),
    (["data.subset=1.5"], r"data.subset=1.5 must be more than 0, and 1 at most"),
    (["data.subset=0"], r"data.subset=0.0 must be more than 0"),
    (["augment.repeats=0"], r"augment.repeats=0 must be more than 0"),
    (["data.root=/no/such/place"], r"data.root=/no/such/place is not a folder"),
    (["checkpoint=none.pth"], r"there is no file \S*/none.pth"),
    (["optim.betas=[0.9,"], r"optim.betas=\[0.9, cannot be read: brackets must be closed"),
    (["=x"], r"'=x' cannot be read: type OPTION=VALUE"),
    (["seed=18446744073709551616"], r"seed=18446744073709551616 must be 18446744073709551615 or less"),
    (["epochs=9223372036854775808"], r"epochs=9223372036854775808 must be 9223372036854775807 or less"),
    (["schedule.warmup_epochs=inf"], r"schedule.warmup_epochs=inf must be finite"),
    (["optim.clip=none"], r"optim\.clip: 'none' is not a number: type optim\.clip=null$"),
    (["ema=false"], r"ema: 'False' is not a number: type ema=null$"),
    (["epochs=none"], r"epochs: 'none' is not a whole number$"),
    (["~optim.lr"], r"~optim\.lr would remove an option: type optim\.lr=… to change it$"),
    (["~epochs=9"], r"~epochs=9 would remove an option"),
    (["optim.betas=[0.9,nan]"], r"optim.betas=.* is not a number"),
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [*MISTAKES, *(pytest.param(*mistake, marks=pytest.mark.slow) for mistake in FURTHER_MISTAKES)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(overrides, message, fails):
    assert re.search(message, fails("device=cpu", *overrides))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("name: deit_tiny", r"the file of deit_tiny in conf/model/ names no family: begin it with .*FAMILY@_here_"),
        ("defaults: [/schema/model/vti@_here_]", r"conf/model/mine.yaml: there is no family vti: did you mean vit\?"),
        (
            "defaults: [/schema/model/vit@_here_]\nkernels: 5",
            r"/model/mine.yaml sets 'model.kernels', which is no option: correct it or remove it there",
        ),
    ],
    ids=["no family", "an unknown family", "an unknown option"],
)
def test_a_mistake_in_a_model_s_file(file, message, fails, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text(file)
    assert re.search(message, fails(f"--config-dir={tmp_path}", "model=mine", "recipe=plain", "data=synthetic"))


@pytest.mark.parametrize("group", ["recipe", "experiment", "sweep"])
def test_files_of_the_user_s_own_are_suggested(group, fails, tmp_path):
    (tmp_path / group).mkdir()
    (tmp_path / group / "warmer.yaml").write_text("# @package _global_\n")
    said = fails("--config-dir", str(tmp_path), "model=deit_tiny", f"{group}=warmr", "data=synthetic")
    assert f"{group}=warmr is unknown: did you mean warmer?" in said


@pytest.mark.parametrize("group", ["recipe", "experiment", "logger", "sweep"])
def test_a_file_that_must_set_options_of_all_groups_but_does_not_say_so(group, fails, tmp_path):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text("epochs: 3\noptim:\n  lr: 1e-3\n")
    said = fails("--config-dir", str(tmp_path), "model=deit_tiny", f"{group}=mine", "data=synthetic")
    assert re.search(rf"/{group}/mine.yaml must begin with the line '# @package _global_'", said)


@pytest.mark.parametrize("content", ["epochs: [1, 2", "epochs:\t2"])
def test_a_file_that_is_no_yaml(content, fails, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{content}\n")
    said = fails("--config-dir", str(tmp_path), "experiment=mine")
    assert re.search(r"/experiment/mine.yaml, line [23] is no valid YAML: ", said)


def test_weights_that_are_not_finite_are_no_start(fails, tmp_path):
    weights = {"head.weight": torch.ones(2, 2), "head.bias": torch.tensor([0.0, float("nan")])}
    torch.save(weights, tmp_path / "nan.pth")
    said = fails("model=deit_tiny", "data=synthetic", f"checkpoint={tmp_path / 'nan.pth'}")
    assert "nan.pth has numbers that are not finite (head.bias): start from other weights" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(fails):
    assert "device=cuda, but this machine has no GPU" in fails("data=synthetic", "device=cuda")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"no checkpoint: add checkpoint=PATH"),
        (["checkpoint=none.pt"], r"no checkpoint none.pt"),
        (["checkpoint=x", "split=val"], r"no option 'split': did you mean data.split"),
        (["checkpoint=x", "logger=none"], r"'logger' is an option of train\.py, not of eval\.py: leave it out$"),
        (["checkpoint=x", "batch_size=64"], r"not of eval\.py: did you mean eval\.batch_size\?$"),
    ],
    ids=["nothing", "missing", "key", "group of train.py", "option of train.py"],
)
def test_mistakes_of_eval_get_one_line(overrides, message, fails):
    assert re.search(message, fails(*overrides, entry="eval"))


def test_weights_alone_ask_for_their_model(fails, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    assert "w.pt holds only weights: add model=NAME, such as" in fails("checkpoint=w.pt", entry="eval")
    assert "model.name is not set" in fails("checkpoint=w.pt", "model=timm", entry="eval")


def test_a_folder_that_differs_between_splits(fails, tmp_path):
    for split, names in (("train", "ab"), ("val", "ac")):
        for name in names:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (30, 30)).save(tmp_path / "images" / split / name / "1.png")
    said = fails("experiment=quickstart", "data=folder", "data.root=images", "data.crop=28", "batch_size=1")
    assert re.search(r"classes differ: 'b' only in the training folder", said)


def test_an_unwritable_output_dir(fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert re.search(r"output_dir=file/x cannot be written", fails("experiment=quickstart", "output_dir=file/x"))


def test_a_file_that_is_no_image_is_named_and_can_be_skipped(small_images, tmp_path, monkeypatch, capsys):
    import shutil

    monkeypatch.chdir(tmp_path)
    images = shutil.copytree(small_images, tmp_path / "images")
    bad = next((images / "train").iterdir()) / "zz.jpg"
    bad.write_text("this is text")
    common = (*SMALL, f"data.root={images}", "name=a", "max_steps=1")
    with pytest.raises(DataError, match=r"zz.jpg is not a JPEG or PNG image: .*data.on_bad_image=skip"):
        train_here(*common)
    assert not Path("outputs").exists(), "nothing is left behind"
    capsys.readouterr()
    train_here(*common, "data.on_bad_image=skip")
    assert capsys.readouterr().out.count("left out 1 files that are not images") == 1
    assert Path("outputs/a/checkpoints/last.pt").is_file()


@pytest.mark.slow
def test_a_process_too_many_is_told_once(small_images, tmp_path):
    """Under torchrun every process finds the mistake, but only one prints it."""
    typed = (*SMALL, f"data.root={small_images}", "batch_size=8", "augment.mixup=0.8")
    out = run("train.py", *typed, cwd=tmp_path, processes=2)
    assert out.returncode != 0
    ours = re.findall(r"error: .*mix_group.*", out.stderr)
    assert len(ours) == 1 and "set batch_size=16 or more, or augment.mix_group=4 or less" in ours[0]
    assert "Traceback" not in out.stderr[: out.stderr.index(ours[0])]


def test_real_process_exits_with_two(tmp_path):
    out = run("train.py", "epochss=3", cwd=tmp_path)
    assert (out.returncode, out.stderr) == (2, "error: there is no option 'epochss': did you mean epochs?\n")
    assert not (tmp_path / "outputs").exists()


def test_every_room_s_error_is_a_users_mistake():
    assert {UserError, DataError} <= set(USER_ERRORS)
